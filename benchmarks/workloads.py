"""Models that stress the network differently, and what they are fed, for benchmarks/end_to_end.py.

| | parameters | what it is |
|---|---|---|
| ResNet | 0.34 million | the example's: few parameters for the computation |
| VGG-like | 7.4 million | two convolutions and wide dense layers: many parameters for the computation |
| LSTM | 19.8 million | language model of two layers (Zaremba et al., 2014, "medium"), 10,000 words |
| transformer | 4.8 million | six small layers on the text's bytes: many tensors |

Texts are those of the Penn Treebank, ``ptb.train.txt`` or ``ptb.valid.txt`` of a folder. Without it, the models of text
take tokens drawn at random, if that is asked for: labels then say "synthetic tokens".
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

# isort: split
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import networks

WORDS = 10_000
TEXTS = ("ptb.train.txt", "ptb.valid.txt")
TEXT_MODELS = ("LSTM", "transformer")
SYNTHETIC = ", synthetic tokens"
BATCHES = 4
"""So many different ones are taken in turn."""

Batch = tuple[torch.Tensor, torch.Tensor]


class NoText(ValueError):
    """There is no text in the folder, or no folder."""


class LSTM(nn.Module):
    """Two layers of 650 units between an embedding and a decoder of 10,000 words."""

    def __init__(self, units: int = 650) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, units)
        self.layers = nn.LSTM(units, units, num_layers=2, batch_first=True)
        self.decoder = nn.Linear(units, WORDS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.layers(self.embedding(tokens))[0]).flatten(0, 1)


class Transformer(nn.Module):
    """Encoder layers with a causal mask, on bytes: six of width 256."""

    def __init__(self, width: int = 256, length: int = 64, layers: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.positions = nn.Parameter(torch.zeros(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.decoder = nn.Linear(width, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.layers(self.embedding(tokens) + self.positions, mask=self.mask)).flatten(0, 1)


def wide() -> nn.Module:
    """An MLP of 21.0 million parameters."""
    hidden = [nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(4096, 10))


def deep() -> nn.Module:
    """42 layers of 512: 10.6 million parameters."""
    layers: list[nn.Module] = [nn.Linear(1024, 512), nn.ReLU()]
    for _ in range(40):
        layers += [nn.Linear(512, 512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, 10))


@dataclass(frozen=True)
class Workload:
    """A network, what one sample is (its shape, or a number of tokens), and how many a rank takes in a step."""

    make: Callable[[], nn.Module]
    sample: tuple[int, ...]
    batch: int


WORKLOADS = {
    "ResNet": Workload(networks.resnet, (1, 28, 28), 32),
    "VGG-like": Workload(networks.vgg, (1, 28, 28), 32),
    "LSTM": Workload(LSTM, (20,), 8),
    "transformer": Workload(Transformer, (64,), 8),
    "MLP 21.0M": Workload(wide, (1024,), 64),
    "42 layers of 512": Workload(deep, (1024,), 64),
}
MATRIX = ("ResNet", "VGG-like", "transformer", "LSTM")


def find_text(folder: Path | None) -> Path:
    """The text in a folder.

    Raises:
        NoText: there is none; says what is looked for.
    """
    if folder is None:
        raise NoText("the LSTM and the transformer read text: give --data-dir, or --synthetic-tokens")
    for name in TEXTS:
        if (folder / name).is_file():
            return folder / name
    raise NoText(f"{folder} holds neither {' nor '.join(TEXTS)}: give the folder of the Penn Treebank text")


def tokens(label: str, text: Path | None) -> torch.Tensor:
    """All tokens of the text, for one of the models of text: words by frequency, or bytes; None: drawn at random."""
    if text is None:
        size = WORDS if label == "LSTM" else 256
        return torch.randint(0, size, (100_000,), generator=torch.Generator().manual_seed(0))
    if label == "transformer":
        return torch.frombuffer(bytearray(text.read_bytes()), dtype=torch.uint8).long()
    words = text.read_text(encoding="utf-8").replace("\n", " <eos> ").split()
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    ranks = {word: number for number, word in enumerate(sorted(counts, key=lambda w: (-counts[w], w)))}
    return torch.tensor([min(ranks[word], WORDS - 1) for word in words])


def batches(label: str, batch: int, rank: int, text: Path | None) -> list[Batch]:
    """What a rank is fed: inputs, and the labels for a cross entropy."""
    generator = torch.Generator().manual_seed(rank)
    shape = WORKLOADS[label].sample
    if label not in TEXT_MODELS:
        return [
            (torch.randn(batch, *shape, generator=generator), torch.randint(0, 10, (batch,), generator=generator))
            for _ in range(BATCHES)
        ]
    stream, length = tokens(label, text), shape[0]
    result = []
    for _ in range(BATCHES):
        starts = torch.randint(0, len(stream) - length - 1, (batch,), generator=generator)
        rows = torch.stack([stream[start : start + length + 1] for start in starts.tolist()])
        result.append((rows[:, :-1].contiguous(), rows[:, 1:].flatten()))
    return result
