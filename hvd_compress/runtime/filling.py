"""Which bucket a gradient goes to, and what has arrived there in this step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hvd_compress.kernels import Float32
from hvd_compress.runtime.bucketing import Parameter
from hvd_compress.runtime.buckets import ParameterBucket
from hvd_compress.runtime.core import StepCore


@dataclass(eq=False)
class FillingBucket:
    """A bucket, and the gradients for it that have arrived in this step."""

    bucket: ParameterBucket
    indices: list[int]
    pieces: list[Float32 | None]
    missing: int

    def put(self, position: int, gradient: Float32) -> None:
        """Take the gradient of the parameter at this position."""
        self.pieces[position] = gradient
        self.missing -= 1

    def take(self) -> list[Float32]:
        """Return the gradients, zeros for those that have not come, and begin anew."""
        pieces = [
            self._zeros(parameter.size) if piece is None else piece
            for parameter, piece in zip(self.bucket.members, self.pieces, strict=True)
        ]
        self.empty()
        return pieces

    def _zeros(self, n: int) -> Float32:
        zeros = self.bucket.bucket.kernels.empty(n)
        zeros[:] = 0
        return zeros

    def empty(self) -> None:
        """Forget the gradients."""
        self.pieces = [None] * len(self.indices)
        self.missing = len(self.indices)


class FillingBuckets:
    """The buckets of the step to come, and where in them a parameter's gradient goes.

    In the first step every parameter is a bucket of its own, made when its gradient comes; then they are fused.
    """

    def __init__(self, core: StepCore, parameters: Sequence[Parameter]) -> None:
        self.fused = False
        """Whether the layout is that of the steps to come."""
        self._core = core
        self._parameters = parameters
        self._all: list[FillingBucket] = []
        self._place: dict[int, tuple[FillingBucket, int]] = {}

    def __iter__(self) -> Iterator[FillingBucket]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def layout(self) -> list[list[int]]:
        """The parameters of every bucket, by their numbers."""
        return [filling.indices for filling in self._all]

    def place(self, index: int) -> tuple[FillingBucket, int]:
        """Return the bucket of a parameter, and its position there."""
        if index not in self._place:
            self._new(self._parameters[index].name, [index])
        return self._place[index]

    def complete_layout(self) -> None:
        """See to it that every parameter has a bucket, also those whose gradients have not come."""
        for index in range(len(self._parameters)):
            self.place(index)

    def empty(self) -> None:
        """Forget the gradients that have come."""
        for filling in self._all:
            filling.empty()

    def restore(self) -> None:
        """Lay buckets out anew, as they were when the state was saved that is to be restored, so that what does not
        fit is found before the first step."""
        self._all, self._place, self.fused = [], {}, False
        known = {parameter.name: index for index, parameter in enumerate(self._parameters)}
        layout = self._core.saved.layout
        if any(name not in known for names in layout for name in names):
            return  # what is wrong is told to all workers
        for names in layout:
            if len({self._core.kinds.get(name, "") for name in names}) > 1:
                self._core.error = self._core.error or (
                    f"the saved state has parameters in one bucket that are now treated differently: {names}"
                )
        places = {parameter.name: parameter.place for parameter in self._parameters}
        if layout and all(len({places[name] for name in names}) == 1 for names in layout):
            self.lay_out([[known[name] for name in names] for names in layout])
        elif self._core.saved.step:
            self.complete_layout()

    def lay_out(self, layout: list[list[int]]) -> None:
        """Fuse parameters to these buckets; their memories move along, and so do gradients that wait."""
        waiting = [
            (index, piece)
            for filling in self._all
            for index, piece in zip(filling.indices, filling.pieces, strict=True)
            if piece is not None
        ]
        self._all = []
        self._place = {}
        for number, indices in enumerate(layout):
            self._new(f"bucket{number}", indices)
        for index, piece in waiting:
            filling, position = self._place[index]
            filling.put(position, piece)
        self.fused = True
        self._core.buckets.drop_empty()

    def _new(self, name: str, indices: list[int]) -> None:
        bucket = self._core.new_bucket(name, [self._parameters[index] for index in indices])
        filling = FillingBucket(bucket, indices, [None] * len(indices), len(indices))
        self._all.append(filling)
        self._place.update({index: (filling, position) for position, index in enumerate(indices)})
