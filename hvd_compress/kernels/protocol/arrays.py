"""What memories, workspaces and algorithms do with whole arrays, besides the kernels: all that depends on their place.

A kernel set's arrays are NumPy's; those of ``device`` are tensors of PyTorch on a GPU. Of both, whoever holds one may
use slices, ``len``, ``shape``, ``dtype`` and ``nbytes``, ``x[...] = number``, ``x[...] = y``, ``x *= number``,
``x += y`` and ``x * number``. For everything else there is a method here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import DTypeLike, NDArray

from hvd_compress.kernels.protocol.definitions import Float32


class ArrayOperations(Protocol):
    """What a kernel set provides for arrays. Those that it makes are where its kernels run, unless said otherwise."""

    pooled: bool
    """Whether an array that is dropped is had again at no cost, when nobody refers to its numbers any more."""
    identity: str
    """What tells apart where the kernels run from places that may round a transform differently; nothing: the host."""

    def empty(self, n: int) -> Float32:
        """Return a new, uninitialised array of ``n`` elements: at least line-aligned, in huge pages where large."""
        ...

    def empty_on_host(self, n: int) -> Float32:
        """Return a new, uninitialised array of ``n`` elements on the host."""
        ...

    def reserve(self, nbytes: int) -> None:
        """See to it that temporary arrays of so many bytes can be made next, or raise MemoryError."""
        ...

    def view(self, x: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
        """Return the bytes of ``x`` as another type. A tensor has unsigned integers as signed ones of the same bits."""
        ...

    def copy(self, x: Float32) -> Float32:
        """Return a copy of ``x``, where it is."""
        ...

    def joined(self, parts: Sequence[Float32]) -> Float32:
        """Return the parts one after the other, as a new array."""
        ...

    def scaled(self, x: Float32, factor: float, out: Float32 | None = None) -> Float32:
        """Return ``x`` times ``factor``, which is rounded to float32: float32, of the shape of ``x``, in ``out`` if
        that is given."""
        ...

    def on_host(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return ``x`` on the host, only to be read: itself if it is there, else a copy that the host waits for."""
        ...

    def from_host(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return ``x``, which is on the host, where the kernels run: itself, or a copy."""
        ...

    def beside(self, x: Float32, y: Float32) -> Float32:
        """Return ``y`` where ``x`` is: itself if it is there, or a copy."""
        ...

    def if_finite(self, x: Float32, otherwise: Float32 | None) -> Float32:
        """Return ``x`` if all of its elements are finite; if not, ``otherwise``, which is beside it, or zeros."""
        ...

    def flat(self, piece: Float32) -> Float32:
        """Return a gradient as a one-dimensional float32 array, in the order of its indices: itself, if it is one."""
        ...

    def put(self, x: Float32, numbers: Float32 | float) -> None:
        """Write numbers of the host, as many as ``x`` has or one for all, to ``x``."""
        ...

    def is_vector(self, x: Any, n: int) -> bool:
        """Return whether ``x`` is a one-dimensional float32 array of ``n`` elements, where the kernels run."""
        ...

    def overlap(self, x: NDArray[Any], y: NDArray[Any]) -> bool:
        """Return whether the two may share memory."""
        ...

    def all_finite(self, x: Float32) -> bool:
        """Return whether all elements are finite."""
        ...

    def clear_not_finite(self, x: Float32) -> int:
        """Set the elements that are not finite to zero; return how many there were."""
        ...
