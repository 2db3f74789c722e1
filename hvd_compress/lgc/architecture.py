"""What an autoencoder of LGC looks like: plain numbers, so that whoever needs no torch can know them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

ENCODER = (64, 128, 256, 64, 4)
DECODER = (32, 64, 128, 32)
"""The paper's widths."""

VARIANTS = ("allreduce", "gather")


@dataclass(frozen=True)
class Architecture:
    """Output channels of the encoder's and the decoder's convolutions; the last of the encoder is the code's."""

    variant: str = "allreduce"
    encoder: tuple[int, ...] = ENCODER
    decoder: tuple[int, ...] = DECODER
    innovation: float = 0.0
    """Gather variant: the fraction of a vector's entries that a worker sends as they are."""

    @property
    def channels(self) -> int:
        """Of the code."""
        return self.encoder[-1]

    @property
    def stride(self) -> int:
        """Entries of a vector for each place of its code."""
        return int(2 ** (len(self.encoder) - 1))

    @property
    def receptive_field(self) -> int:
        """Entries of a vector that a place of its code depends on."""
        return int(2 * self.stride - 1)

    def positions(self, length: int) -> int:
        """Places in the code of a vector of ``length`` entries."""
        return -(-length // self.stride)

    def numbers(self, length: int) -> int:
        """Numbers in the code of a vector of ``length`` entries."""
        return self.channels * self.positions(length)

    def innovations(self, length: int) -> int:
        """Entries of a vector of ``length`` that are sent as they are."""
        return max(1, round(self.innovation * length)) if self.variant == "gather" else 0

    def to_config(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Architecture:
        """Inverse of ``to_config``; raises ValueError if this is none."""
        arguments: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}
        try:
            return cls(**arguments)
        except TypeError as error:
            raise ValueError(f"not an architecture: {config!r}") from error

    def difference(self, wanted: Architecture) -> str:
        """What of this one is not as ``wanted``, for a message."""
        return "; ".join(
            f"{field.name} is {getattr(self, field.name)}, expected {getattr(wanted, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(wanted, field.name)
        )
