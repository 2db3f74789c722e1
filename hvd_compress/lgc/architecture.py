"""What an autoencoder of LGC looks like: plain numbers, so that whoever needs no torch can know them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from hvd_compress.validation import require_choice, require_number, shown

ENCODER = (64, 128, 256, 64, 4)
DECODER = (32, 64, 128, 32)
"""The paper's widths."""

VARIANTS = ("allreduce", "gather")


@dataclass(frozen=True)
class Architecture:
    """The output channels of the encoder's and the decoder's convolutions; the encoder's last are the code's."""

    variant: str = "allreduce"
    encoder: tuple[int, ...] = ENCODER
    decoder: tuple[int, ...] = DECODER
    innovation: float = 0.0
    """Gather variant: the fraction of a vector's entries that a worker sends as they are."""

    @property
    def channels(self) -> int:
        """The code's channels."""
        return self.encoder[-1]

    @property
    def stride(self) -> int:
        """The entries of a vector for each place of its code."""
        return int(2 ** (len(self.encoder) - 1))

    @property
    def receptive_field(self) -> int:
        """The entries of a vector that a place of its code depends on."""
        return int(2 * self.stride - 1)

    def positions(self, length: int) -> int:
        """Return the places in the code of a vector of ``length`` entries."""
        return -(-length // self.stride)

    def numbers(self, length: int) -> int:
        """Return the numbers in the code of a vector of ``length`` entries."""
        return self.channels * self.positions(length)

    def innovations(self, length: int) -> int:
        """Return how many entries of a vector of ``length`` are sent as they are."""
        return max(1, round(self.innovation * length)) if self.variant == "gather" else 0

    @property
    def parameters(self) -> int:
        """The number of weights, biases included."""
        down, up = (1, *self.encoder), (self.channels, *self.decoder)
        last = up[-1] + (self.variant == "gather")  # which sees the innovation as a channel more
        kernels = [3] * (len(self.encoder) - 1) + [1]
        encoder = sum(a * b * kernel + b for (a, b), kernel in zip(pairwise(down), kernels, strict=True))
        return encoder + sum(3 * a * b + b for a, b in pairwise(up)) + last + 1

    @property
    def most_nbytes(self) -> int:
        """More bytes than a file of weights has: 4 for each of them, and a description of every layer."""
        return 4 * self.parameters + 512 * (len(self.encoder) + len(self.decoder) + 4)

    def to_config(self) -> dict[str, Any]:
        """Return plain data that ``from_config`` takes."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_config(cls, config: Any) -> Architecture:
        """Return the architecture that ``to_config`` described. Raise ValueError if it is none."""
        if not isinstance(config, dict) or config.keys() != {field.name for field in fields(cls)}:
            raise ValueError(f"not an architecture: {config!r:.200}")
        sends = config["variant"] != "allreduce"  # which has no innovations, and a 0 for their share
        try:
            return architecture(**(config if sends else {**config, "innovation": config["innovation"] or 1.0}))
        except TypeError as error:
            raise ValueError(f"not an architecture: {error}") from error

    def difference(self, wanted: Architecture) -> str:
        """Return what of this one is not as ``wanted``, for a message."""
        return "; ".join(
            f"{field.name} is {getattr(self, field.name)}, expected {getattr(wanted, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(wanted, field.name)
        )


def architecture(variant: Any, encoder: Any, decoder: Any, innovation: Any) -> Architecture:
    """Return the autoencoder of these widths.

    Raises:
        TypeError, ValueError: the variant does not exist, these are no widths, or they do not fit each other.
    """
    require_choice("variant", variant, VARIANTS)
    for name, widths, least in (("encoder", encoder, 2), ("decoder", decoder, 1)):
        if not isinstance(widths, (tuple, list)) or any(isinstance(w, bool) or not isinstance(w, int) for w in widths):
            raise TypeError(f"{name} must be a sequence of ints, got {shown(widths)}")
        if len(widths) < least or min(widths) < 1:
            raise ValueError(f"{name} must have {least} or more widths of at least 1, got {shown(tuple(widths))}")
    if len(decoder) != len(encoder) - 1:
        raise ValueError(
            f"decoder must have one width less than the encoder, so that lengths fit: the encoder has {len(encoder)}, "
            f"got {shown(tuple(decoder))}"
        )
    require_number("innovation", innovation, "in (0, 1]", lambda share: 0 < share <= 1)
    return Architecture(variant, tuple(encoder), tuple(decoder), float(innovation) if variant == "gather" else 0.0)
