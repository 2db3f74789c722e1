"""The autoencoder of LGC (Abrahamyan et al., IEEE TNNLS 2021, section IV): 1-D convolutions over a vector of values.

torch is imported here and by whoever imports this: nothing on the way to ``import hvd_compress`` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import nn
from torch.nn import functional

from hvd_compress.kernels import Float32
from hvd_compress.lgc.architecture import Architecture

FORMAT = 1
"""Version of weight files."""

SLOPE = 0.01
"""The slope of the leaky ReLU below zero."""


class Autoencoder(nn.Module):
    """Vectors to codes of a quarter of their size (with the paper's widths), and back.

    Encoder: convolutions of kernel 3 and stride 2, one for each width but the last; the last has kernel 1 and makes
    the channels of the code. Decoder: as many transposed convolutions of kernel 3 and stride 2, then one of kernel 1 to
    a single channel, which in the gather variant sees the innovation as one channel more.

    A code has ``architecture.positions(length)`` places of ``architecture.channels`` numbers; the decoder's output is
    cut to the vector's length, so that any length comes back exactly as long.
    """

    def __init__(self, architecture: Architecture, seed: int = 0) -> None:
        super().__init__()
        self.architecture = architecture
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder, inside = [], 1
            for width in architecture.encoder[:-1]:
                encoder.append(nn.Conv1d(inside, width, 3, stride=2, padding=1))
                inside = width
            self.encoder = nn.ModuleList(encoder)
            self.code = nn.Conv1d(inside, architecture.channels, 1)
            decoder, inside = [], architecture.channels
            for width in architecture.decoder:
                decoder.append(nn.ConvTranspose1d(inside, width, 3, stride=2, padding=1, output_padding=1))
                inside = width
            self.decoder = nn.ModuleList(decoder)
            self.out = nn.Conv1d(inside + (architecture.variant == "gather"), 1, 1)

    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the codes of vectors, float32 ``(n, length)``, as float32 ``(n, channels, positions(length))``."""
        hidden = vectors.unsqueeze(1)
        for layer in self.encoder:
            hidden = functional.leaky_relu(layer(hidden), SLOPE)
        coded: torch.Tensor = self.code(hidden)
        return coded

    def decode(self, codes: torch.Tensor, length: int, innovations: torch.Tensor | None = None) -> torch.Tensor:
        """Return the vectors, float32 ``(n, length)``, that codes as ``encode`` makes them stand for.

        ``innovations`` (float32, ``(n, length)``, zero where nothing was sent) belong to the gather variant, and to it
        alone.
        """
        hidden = codes
        for layer in self.decoder:
            hidden = functional.leaky_relu(layer(hidden), SLOPE)
        hidden = hidden[:, :, :length]
        if innovations is not None:
            hidden = torch.cat([hidden, innovations.unsqueeze(1)], 1)
        decoded: torch.Tensor = self.out(hidden).squeeze(1)
        return decoded

    def count(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


class Codec:
    """An autoencoder that is no longer trained, on NumPy arrays. Codes are float16, which is how they travel."""

    def __init__(self, model: Autoencoder) -> None:
        self.architecture = model.architecture
        self.parameters = model.count()
        self._model = model.eval()

    def encode(self, vectors: Float32, workers: int) -> NDArray[np.float16]:
        """Return the codes of vectors, float32 ``(n, length)``, as float16 ``(n, numbers of a code)``; ``workers`` such
        codes can be summed."""
        with torch.inference_mode():
            codes = self._model.encode(torch.from_numpy(vectors)).reshape(len(vectors), -1)
            most = 65504 / workers
            return codes.clamp(-most, most).to(torch.float16).numpy()

    def decode(self, codes: NDArray[np.float16] | Float32, length: int, innovations: Float32 | None = None) -> Float32:
        """Return the vectors that codes stand for, float32 ``(n, length)``."""
        with torch.inference_mode():
            wide = torch.from_numpy(np.asarray(codes, np.float32)).reshape(len(codes), self.architecture.channels, -1)
            extra = None if innovations is None else torch.from_numpy(innovations)
            decoded: Float32 = self._model.decode(wide, length, extra).numpy()
            return decoded


def to_bytes(model: Autoencoder) -> bytes:
    """Return weights as safetensors, with the architecture and the version of the format: the same bytes for the same
    weights, for which the metadata must have a single entry."""
    about = {"lgc": json.dumps({"format": FORMAT, "architecture": model.architecture.to_config()})}
    return write_tensors({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, about)


def metadata(content: bytes, key: str) -> Any:
    """Return what the metadata of safetensors has, as JSON, under a key.

    Raises:
        ValueError: this is no safetensors, or it has no such metadata.
    """
    length = int.from_bytes(content[:8], "little")
    try:
        return json.loads(json.loads(content[8 : 8 + length])["__metadata__"][key])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it has no metadata {key!r}: {error!r:.200}") from error


def tensors_of(content: bytes) -> dict[str, torch.Tensor]:
    """Return the tensors of safetensors. Raise ValueError if they cannot be read."""
    try:
        tensors: dict[str, torch.Tensor] = read_tensors(content)
    except Exception as error:  # safetensors has an error of its own, and torch many, for types it does not know say
        raise ValueError(f"it cannot be read: {error}") from error
    return tensors


def load_weights(model: Autoencoder, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give an autoencoder its weights. Raise ValueError unless they are its own: float32, finite, of its shapes."""
    own = model.state_dict()
    if own.keys() != tensors.keys():
        raise ValueError(f"its weights are {sorted(tensors)}, expected {sorted(own)}")
    for name, tensor in tensors.items():
        if (tensor.dtype, tensor.shape) != (own[name].dtype, own[name].shape):
            raise ValueError(
                f"{name!r} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected {own[name].dtype} of shape "
                f"{tuple(own[name].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name!r} has weights that are not finite")
    model.load_state_dict(dict(tensors))


def architecture_of(content: bytes, source: str) -> Architecture:
    """Return what the weights in ``content`` are for.

    Raises:
        ValueError: this is not a file of weights, or of a version that this library does not read.
    """
    try:
        about = metadata(content, "lgc")
        version, described = about["format"], about["architecture"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} holds no weights of an LGC autoencoder: {error}") from error
    if type(version) is not int or version != FORMAT:
        raise ValueError(f"{source} has format version {version!r:.50}, this library reads {FORMAT}")
    try:
        return Architecture.from_config(described)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def from_bytes(content: bytes, architecture: Architecture, source: str = "the weights") -> Autoencoder:
    """Return the autoencoder that ``to_bytes`` wrote down.

    Raises:
        ValueError: the weights are for another architecture, are damaged, or are not finite.
    """
    found = architecture_of(content, source)
    if found != architecture:
        raise ValueError(f"{source} is for another autoencoder: {found.difference(architecture)}")
    model = Autoencoder(architecture)
    try:
        load_weights(model, tensors_of(content))
    except ValueError as error:
        raise ValueError(f"{source} is damaged: {error}") from error
    return model


def read(path: Path | str, architecture: Architecture) -> Autoencoder:
    """Return the autoencoder in a file. Raise FileNotFoundError, or what ``from_bytes`` does."""
    return from_bytes(Path(path).read_bytes(), architecture, str(path))


def innovations_of(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ``count`` entries of largest magnitude of each row (float32 ``(n, length)``), and zeros; rounded to
    float16, as they travel."""
    places = vectors.abs().topk(count, 1).indices
    sent = torch.zeros_like(vectors)
    return sent.scatter_(1, places, vectors.gather(1, places).to(torch.float16).to(torch.float32))
