"""Error feedback: what a step did not send is added to the next step's gradient.

A memory owns two buffers. The one that holds what was left over is only read while a step is under way; the sum of
it and the gradient is written to the other. When every worker's step turned out well, ``commit`` swaps the two, and
the old one becomes the buffer that the mean is decoded into; when it did not, ``rollback`` leaves the memory exactly,
bit for bit, as it was. That costs no copy, no pass, and no third buffer. A driver that has to decode before it knows
how the whole step turned out calls ``stage`` first, with a buffer of its own for the mean.

What has decayed below the smallest normal number (``2**-126``) counts as zero when a gradient is added to it: the
kernels' protocol says so.

The mean is handed out, and whoever has it may keep it: a buffer that somebody still refers to is not written again,
but replaced by a new one when the next step begins.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from hvd_compress.kernels import Float32, Kernels, Moments, Pieces, Selection, UInt32

_log = logging.getLogger(__name__)


class Memory:
    """No memory at all: the values are the gradient, and what is not sent is gone (also the base of the others)."""

    names: ClassVar[tuple[str, ...]] = ()
    """The arrays that persist from step to step, for checkpoints."""

    def __init__(self, kernels: Kernels, size: int) -> None:
        self.size = size
        self.finite = True
        self.exposed = False
        """Whether the algorithm was given ``values`` in this step, and may have written anything to them."""
        self._kernels = kernels
        self._spare = kernels.empty(size)
        self._retired: Float32 | None = None
        self._held: Float32 | None = None
        self._pieces: Pieces = ()
        self._values: Float32 | None = None
        self._committed = False
        self._decided = True  # no step is under way whose values are newer than the persistent arrays
        self._out: Float32 | None = None

    @property
    def remembers(self) -> bool:
        """Whether this step's values are memory plus gradient, and what is left in them is kept."""
        return bool(self.names)

    def begin(self, pieces: Pieces) -> None:
        """Start a step: ``pieces`` (float32, one-dimensional) concatenated are the gradient. They are kept, not
        copied, and may be read until the exchange has returned."""
        self._pieces = pieces
        self._values = None
        self._committed = False
        self._decided = False
        self._out = None
        self.finite = True
        self.exposed = False
        self._replace_spare()

    def clip(self, limit: float) -> None:
        """Scale every piece of the gradient whose Euclidean norm exceeds ``limit`` down to that norm. Before the values
        are read; a piece that is not finite stays as it is."""
        clipped = []
        for piece in self._pieces:
            norm = self._kernels.norm([piece], True)
            clipped.append(self._kernels.scaled(piece, limit / norm) if limit < norm < math.inf else piece)
        self._pieces = clipped

    def values(self) -> Float32:
        """Return memory plus gradient, float32; see ``Bucket.values``."""
        if self._values is None:
            self.finite = self._add(self._pieces)
            self._values = self._spare
            self._pieces = ()
        return self._values

    def pieces(self) -> Pieces:
        """Return the values in pieces; see ``Bucket.pieces``."""
        return self._pieces if self._values is None and self._held is None else [self.values()]

    def sample(self, key: int, lines: int, out: Float32) -> Moments:
        """Run ``Kernels.sample`` on the values."""
        memory, pieces = self._source()
        return self._kernels.sample(memory, pieces, key, lines, out)

    def select(self, threshold: float, capacity: int, indices: UInt32, values: Float32) -> Selection:
        """Run ``Kernels.select`` on the values: the kept elements leave them."""
        memory, pieces = self._source()
        selection = self._kernels.select(memory, pieces, self._spare, threshold, capacity, indices, values)
        if selection.finite:
            self._values = self._spare
            self._pieces = ()
        else:
            self.finite = False
        return selection

    def restore(self, indices: UInt32, values: Float32) -> None:
        """Put selected elements back, all of them or some."""
        self._kernels.restore(self.values(), indices, values)

    def stage(self, out: Float32) -> None:
        """Let the mean be decoded, into ``out``; ``commit`` or ``rollback`` follows when the outcome is known."""
        self._settle()
        self._out = out

    def commit(self) -> None:
        """Keep what is left in the values as the new memory: the step went well everywhere."""
        self._settle()
        self._decided = True

    def rollback(self) -> Float32:
        """Leave the memory as it was before the step. Return a buffer for whatever the mean is to be."""
        self._pieces = ()
        self._values = None
        self._decided = True
        return self._spare

    def sound(self) -> bool:
        """Return whether the values, as the algorithm has left them so far, are finite and may be remembered.

        Values that it was not given are not looked at."""
        if not (self.remembers and self.exposed):
            return True
        values = self.values()
        return self.finite and self._kernels.all_finite(values)

    def mend(self) -> None:
        """Forget what the algorithm has left over that is not finite: it would make every later step so. Nobody can be
        told any more that the step is bad."""
        if not self.sound():
            lost = self._kernels.clear_not_finite(self.values())
            _log.warning("%d of %d elements would have been remembered as infinite or NaN: lost", lost, self.size)

    def decoded(self) -> Float32:
        """Return a buffer for the mean; see ``Bucket.decoded``."""
        if not self._committed:
            raise RuntimeError("Bucket.decoded is available after the last collective of an exchange, not before")
        return self._spare if self._out is None else self._out

    def shares(self, array: Float32) -> bool:
        """Return whether ``array`` lies in a buffer that the next step writes to, other than that of the mean."""
        overlap = self._kernels.overlap
        return any(overlap(array, own) for own in self.arrays().values()) or (
            self._out is not None and overlap(array, self._spare)
        )

    def arrays(self) -> dict[str, Float32]:
        """Return the persistent arrays by name, not copied."""
        return {}

    def lay_out(self, parts: Sequence[slice]) -> None:
        """Learn where the parameters of the bucket are; before the first step."""

    def read(self, part: slice) -> dict[str, Float32]:
        """Return what is remembered of a parameter, by the names of ``arrays``; copies, on the host."""
        return {key: np.array(self._kernels.on_host(array[part])) for key, array in self.arrays().items()}

    def write(self, part: slice, arrays: Mapping[str, Float32 | int]) -> None:
        """Remember this of a parameter instead, by the names of ``arrays``; numbers of the host."""
        for key, array in self.arrays().items():
            self._kernels.put(array[part], arrays[key])

    @property
    def holds_back(self) -> bool:
        """Whether anything is ever held back."""
        return self.held_back() is not None

    def held_back(self) -> Float32 | None:
        """Return what a flush has to send, not copied; None when nothing is ever held back."""
        return None

    def flush_parts(self) -> list[Float32]:
        """Return what the workers add up in a flush, as the step leaves it, not copied: what is held back, and then
        what is not sent but must be the same on all of them afterwards. Once the exchange has decoded."""
        held = self.held_back()
        return [] if held is None else [held if self._decided else self.values()]

    def take_flush(self, mean: Float32) -> Float32:
        """Take the mean over the workers of ``flush_parts``, concatenated; return the part of it that was held back.
        ``clear`` follows when the step turns out well."""
        return mean

    def clear(self) -> None:
        """Forget everything: it has been sent."""
        for array in self.arrays().values():
            array[:] = 0

    def _replace_spare(self) -> None:
        """Take another buffer if somebody refers to this one: who kept the last mean, or accumulated gradients in it.

        Where that happens in every step, two buffers take turns. Whoever pools arrays knows by itself which are free.
        """
        if self._kernels.pooled:
            self._spare = self._kernels.empty(0)  # freed first; and there is one, should there be no room for another
            self._spare = self._kernels.empty(self.size)
            return
        retired, self._retired = self._retired, None
        if sys.getrefcount(self._spare) > 2:  # the attribute, and the argument
            self._retired = self._spare
            if retired is None or sys.getrefcount(retired) > 2:
                retired = self._kernels.empty(self.size)
            self._spare = retired

    def _settle(self) -> None:
        if self.remembers:
            self.values()  # what nobody asked for is left over in full
        self._pieces = ()
        self._committed = True

    def _source(self) -> tuple[Float32 | None, Pieces]:
        return (self._values, ()) if self._values is not None else (self._held, self._pieces)

    def _add(self, pieces: Pieces) -> bool:
        return self._kernels.add(self._held, pieces, self._spare)


class Residual(Memory):
    """Error feedback (Seide et al. 2014; Karimireddy et al. 2019): ``a = m + g``, send ``C(a)``, ``m = a - C(a)``."""

    names = ("residual",)

    def __init__(self, kernels: Kernels, size: int) -> None:
        super().__init__(kernels, size)
        self._residual = kernels.empty(size)
        self._residual[:] = 0
        self._held = self._residual

    def commit(self) -> None:
        super().commit()
        self._residual, self._spare = self._spare, self._residual
        self._held = self._residual

    def arrays(self) -> dict[str, Float32]:
        return {"residual": self._residual}

    def held_back(self) -> Float32:
        return self._residual

    def _add(self, pieces: Pieces) -> bool:
        finite = super()._add(pieces)
        if not finite:  # the algorithm gets harmless numbers; what it makes of them is thrown away
            self._spare[:] = self._residual
        return finite


class PausableResidual(Residual):
    """Error feedback that single steps do without: a paused step neither reads what is held back nor changes it."""

    def __init__(self, kernels: Kernels, size: int) -> None:
        super().__init__(kernels, size)
        self._paused = False

    @property
    def remembers(self) -> bool:
        return not self._paused

    def begin(self, pieces: Pieces) -> None:
        self._paused = False
        self._held = self._residual
        super().begin(pieces)

    def pause(self) -> None:
        """Do without memory in the step that has begun; before its values are asked for."""
        self._paused = True
        self._held = None

    def commit(self) -> None:
        if self._paused:
            Memory.commit(self)
        else:
            super().commit()

    def held_back(self) -> Float32 | None:  # type: ignore[override]
        return None if self._paused else self._residual

    def _add(self, pieces: Pieces) -> bool:
        return Memory._add(self, pieces) if self._paused else super()._add(pieces)


class MomentumCorrection(Memory):
    """DGC's memory (Lin et al., ICLR 2018, section 3): momentum is accumulated before sparsification.

    ``u = beta*u + g``, ``v = v + u``; ``v`` is compressed, and both ``u`` and ``v`` are cleared where it was sent. With
    ``nesterov`` it is ``v = v + beta*u + g``.

    A selection that may take every element masks no momentum: such a step is that of momentum SGD, in which nothing is
    late. Nor does a flush clear it: the workers' momenta are replaced by their mean, which moves the weights alike.
    """

    names = ("momentum", "velocity")

    def __init__(self, kernels: Kernels, size: int, beta: float, *, nesterov: bool = False) -> None:
        super().__init__(kernels, size)
        self._beta = beta
        self._nesterov = nesterov
        self._velocity = kernels.empty(size)
        self._momentum = kernels.empty(size)
        self._momentum_spare = kernels.empty(size)
        self._velocity[:] = 0
        self._momentum[:] = 0
        self._selected = np.zeros(0, np.uint32)  # by the last selection, and the momentum that was there
        self._masked = np.zeros(0, np.float32)
        self._average = np.zeros(0, np.float32)

    def pieces(self) -> Pieces:
        return [self.values()]

    def sample(self, key: int, lines: int, out: Float32) -> Moments:
        self.values()
        return super().sample(key, lines, out)

    def select(self, threshold: float, capacity: int, indices: UInt32, values: Float32) -> Selection:
        self.values()
        if not self.finite:
            return Selection(0, 0, False)
        selection = super().select(threshold, capacity, indices, values)
        self._selected = indices[: selection.kept]
        self._masked = np.empty(selection.kept, np.float32)
        self._kernels.take(self._momentum_spare, self._selected, self._masked)
        if capacity < self.size:
            self._kernels.restore(self._momentum_spare, self._selected, np.zeros(selection.kept, np.float32))
        return selection

    def restore(self, indices: UInt32, values: Float32) -> None:
        super().restore(indices, values)
        masked = self._masked[np.searchsorted(self._selected, indices)]
        self._kernels.restore(self._momentum_spare, indices, masked)

    def commit(self) -> None:
        super().commit()
        self._velocity, self._spare = self._spare, self._velocity
        self._momentum, self._momentum_spare = self._momentum_spare, self._momentum

    def arrays(self) -> dict[str, Float32]:
        return {"momentum": self._momentum, "velocity": self._velocity}

    def held_back(self) -> Float32:
        return self._velocity

    def flush_parts(self) -> list[Float32]:
        return [self._velocity, self._momentum] if self._decided else [self.values(), self._momentum_spare]

    def take_flush(self, mean: Float32) -> Float32:
        self._average = self._kernels.copy(mean[self.size :])
        return mean[: self.size]

    def clear(self) -> None:
        self._velocity[:] = 0
        self._momentum[:] = self._average

    def _add(self, pieces: Pieces) -> bool:
        finite = self._kernels.add_momentum(
            self._momentum, self._velocity, pieces, self._beta, self._nesterov, self._momentum_spare, self._spare
        )
        if not finite:
            self._spare[:] = self._velocity
        return finite
