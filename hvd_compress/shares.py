"""The memory of a worker that compresses a share of each bucket, the same part of every parameter.

The workers of a node divide a bucket between them. Every parameter is cut into as many pieces as there are shares, so
that a piece stays with its worker whatever bucket its parameter is fused to; a share is one piece of each parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hvd_compress.kernels import Float32, Kernels, Pieces
from hvd_compress.memory import Memory


class Cut(NamedTuple):
    """Where a parameter's pieces are: its ``part`` of the bucket is cut every ``length`` elements, and its piece of a
    share begins at ``offset``. The last pieces may be shorter, and what is missing of them is zeros."""

    part: slice
    offset: int
    length: int

    def piece(self, share: int) -> slice:
        """Return where in the bucket a share's piece is."""
        begin = min(self.part.start + share * self.length, self.part.stop)
        return slice(begin, min(begin + self.length, self.part.stop))

    def place(self, share: int) -> slice:
        """Return where in the share that piece is."""
        piece = self.piece(share)
        return slice(self.offset, self.offset + piece.stop - piece.start)


class ShareMemory(Memory):
    """What one worker remembers of a bucket: of its share, what an ordinary memory of that size does.

    The gradients that it begins a step with are the bucket's. ``inner`` gets the share, when the node's workers have
    summed it. What a restored state holds of other shares is kept apart in ``strays``, until it is flushed; then
    ``on_strays`` is called.

    Args:
        kernels: the kernels.
        size: of the bucket.
        make: makes a memory of a size.
        shares: how many there are.
        share: this worker's; None for a worker that has none.
        on_strays: called when a part of another share is to be remembered, and has to be sent.
        per_share: how many workers there are to each that has this share: so much is the mean over those that have it,
            where the others have zeros, more than the mean over all.
    """

    def __init__(
        self,
        kernels: Kernels,
        size: int,
        make: Callable[[Kernels, int], Memory],
        shares: int,
        share: int | None,
        on_strays: Callable[[], None],
        per_share: float,
    ) -> None:
        super().__init__(kernels, size)
        self.count = shares
        self.share = share
        self.strays: dict[str, Float32] = {}
        self.cuts: list[Cut] = []
        self._make = make
        self._on_strays = on_strays
        self._per_share = np.float32(per_share)
        self._unsent: dict[str, Float32] = {}  # of a flush: what is not sent, of all shares
        self.lay_out([slice(0, size)])

    def lay_out(self, parts: Sequence[slice]) -> None:
        self.cuts, offset = [], 0
        for part in parts:
            length = -(-(part.stop - part.start) // self.count)
            self.cuts.append(Cut(part, offset, length))
            offset += length
        self.length = offset
        """Elements of a share."""
        self.bucket: Any = None  # in which the share is exchanged, as soon as there is one
        self.inner = self._make(self._kernels, offset)

    def scatter(self, rows: Float32) -> None:
        """Write the gradients to the shares, ``rows`` (float32, shape ``(shares, length)`` or wider)."""
        pieces = self._by_parameter()
        for cut, gradient in zip(self.cuts, pieces, strict=True):
            for share, row in enumerate(rows):
                piece, place = cut.piece(share), cut.place(share)
                row[place] = gradient[piece.start - cut.part.start : piece.stop - cut.part.start]
                row[place.stop : cut.offset + cut.length] = 0

    def gather(self, rows: Float32, out: Float32) -> Float32:
        """Write the shares, ``rows``, back to where they are in the bucket, ``out``; return that."""
        for cut in self.cuts:
            for share, row in enumerate(rows):
                out[cut.piece(share)] = row[cut.place(share)]
        return out

    def read(self, part: slice) -> dict[str, Float32]:
        arrays = {key: np.zeros(part.stop - part.start, np.float32) for key in self.inner.arrays()}
        for key, array in self.inner.arrays().items():
            if self.share is not None:
                cut = self._cut(part)
                piece = cut.piece(self.share)
                inside = slice(piece.start - part.start, piece.stop - part.start)
                arrays[key][inside] = self._kernels.on_host(array[cut.place(self.share)])
            if key in self.strays:
                arrays[key] += self.strays[key][part]
        return arrays

    def write(self, part: slice, arrays: Mapping[str, Float32 | int]) -> None:
        for key, array in self.inner.arrays().items():
            values = np.broadcast_to(np.asarray(arrays[key], np.float32), part.stop - part.start).copy()
            if key in self.strays:
                self.strays[key][part] = 0
            if self.share is not None:
                cut = self._cut(part)
                piece = cut.piece(self.share)
                inside = slice(piece.start - part.start, piece.stop - part.start)
                self._kernels.put(array[cut.place(self.share)], values[inside])
                values[inside] = 0
            if values.any():
                self.strays.setdefault(key, np.zeros(self.size, np.float32))[part] = values
                if key == self._sent_key:
                    self._on_strays()

    def arrays(self) -> dict[str, Float32]:
        return {**self.inner.arrays(), **{f"stray {key}": array for key, array in self.strays.items()}}

    @property
    def holds_back(self) -> bool:
        return self.inner.holds_back

    def held_back(self) -> Float32 | None:
        held = self.inner.held_back()
        return None if held is None else self._with_strays(held)

    def flush_parts(self) -> list[Float32]:
        held, *unsent = self.inner.flush_parts()
        return [self._with_strays(held), *map(self._whole, unsent)]

    def take_flush(self, mean: Float32) -> Float32:
        held, *_ = self.inner.flush_parts()
        rows = mean[self.size :].reshape(-1, self.size) * self._per_share
        self.inner.take_flush(self._kernels.joined([held, *map(self._share_of, rows)]))
        self._unsent = dict(zip((key for key in self.inner.arrays() if key != self._sent_key), rows, strict=True))
        return mean[: self.size]

    def clear(self) -> None:
        """Forget what has been sent. Of what is not, all workers have the same now, of all shares, until the next
        step: so each has what the others go on with."""
        self.inner.clear()
        self.strays.clear()
        for key, whole in self._unsent.items():
            self.strays[key] = np.array(self._kernels.on_host(whole - self._whole(self._share_of(whole))))

    def stage(self, out: Float32) -> None:
        self._settle()
        self._out = out

    def commit(self) -> None:
        self._settle()
        self.inner.commit()
        for key in self.strays.keys() - {self._sent_key}:  # the other shares' workers have gone on with theirs
            del self.strays[key]

    def rollback(self) -> Float32:
        self.inner.rollback()
        return super().rollback()

    def sound(self) -> bool:
        """Return whether nothing is wrong that only this worker knows: its peers have been told of its share."""
        return True

    def mend(self) -> None:
        self.inner.mend()

    @property
    def _sent_key(self) -> str:
        """The key of the array that a flush sends."""
        return "velocity" if "velocity" in self.inner.arrays() else "residual"

    def _whole(self, share: Float32) -> Float32:
        """Return a share as a bucket that is zeros elsewhere."""
        whole = self._zeros(self.size)
        if self.share is not None:
            for cut in self.cuts:
                whole[cut.piece(self.share)] = share[cut.place(self.share)]
        return whole

    def _share_of(self, whole: Float32) -> Float32:
        """Return this worker's share of a bucket; zeros for a worker that has none."""
        share = self._zeros(self.length)
        if self.share is not None:
            for cut in self.cuts:
                share[cut.place(self.share)] = whole[cut.piece(self.share)]
        return share

    def _with_strays(self, share: Float32) -> Float32:
        """Return a share of what a flush sends as a bucket, with the strays."""
        whole = self._whole(share)
        if self._sent_key in self.strays:
            whole += self._kernels.from_host(self.strays[self._sent_key])
        return whole

    def _zeros(self, n: int) -> Float32:
        zeros = self._kernels.empty(n)
        zeros[:] = 0
        return zeros

    def _cut(self, part: slice) -> Cut:
        return next(cut for cut in self.cuts if cut.part == part)

    def _by_parameter(self) -> Pieces:
        pieces = [self._kernels.flat(piece) for piece in self._pieces]
        if [len(piece) for piece in pieces] == [cut.part.stop - cut.part.start for cut in self.cuts]:
            return pieces
        whole = self._kernels.joined([*pieces, self._kernels.empty(0)])
        return [whole[cut.part] for cut in self.cuts]

    def _settle(self) -> None:
        self._pieces = ()
        self._committed = True
