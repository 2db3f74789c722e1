"""Where device kernels run: the current stream, pinned memory, and what must not be reused too early.

This is where kernels order work between a GPU and the host; ``hvd_compress.drivers.torch.streams`` orders it between
the thread that trains, the compressor's and Horovod. Triton's interpreter, with which the
kernels are tested on machines without a GPU, runs everything at once and in order, and so cannot show a mistake here.
These are the rules, and why they suffice:

* **One stream.** Everything is put on the stream that is current when a method is called: Triton's launches, PyTorch's
  operations, and copies. Whoever calls chooses it (``torch.cuda.stream``), and makes it wait for the event behind which
  the gradients are complete. Work on one stream runs in order, so kernels need no events among themselves.
* **Temporaries** come from PyTorch's caching allocator, which gives memory that was freed to the same stream only. A
  temporary may therefore be dropped as soon as the last kernel that uses it is launched. Arguments that were allocated
  on another stream are the caller's to ``record_stream``.
* **To the device** (``upload``): bytes are first copied to a pinned tensor of our own, so that the caller may write to
  its array as soon as the method returns. PyTorch's pinned allocator records an event behind every copy that it starts
  from its memory, and does not give memory out again before that has happened; dropping the pinned tensor is safe.
* **To the host** (``copy_to_host``, and ``download`` by it): copies, all of them started first, and then one wait for
  an event behind the last. Nothing is read before. Where the target is pinned (``empty_on_host``) the device writes to
  it; where it is not, CUDA copies by way of memory of its own, and waits for that. This is the only place in which the
  host waits, so that its calls are what a method costs in synchronizations.
* **Within a program** instances run in any order, and at the same time: none reads what another one writes, but for
  counters, which are atomic. Where one instance reads what it has written itself by other threads, there is a barrier
  (``tl.debug_barrier``, CUDA's ``__syncthreads``), and no load is moved ahead of it (``num_stages=1``: loops are not
  pipelined).
* **Floating point.** Launches forbid to fuse a product and a sum (``enable_fp_fusion``), which would round once where
  the specification rounds twice.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]

STORED_AS: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.uint16): np.dtype(np.int16),
    np.dtype(np.uint32): np.dtype(np.int32),
    np.dtype(np.uint64): np.dtype(np.int64),
}
"""Unsigned integers are in tensors as the signed ones of the same bits: PyTorch hardly knows the others."""
OPTIONS = {"enable_fp_fusion": False, "num_stages": 1}
"""What every program is compiled with."""


def numpy_type(dtype: torch.dtype) -> np.dtype[Any]:
    """Return the type of arrays that hold what tensors have as ``dtype``."""
    found: np.dtype[Any] = torch.empty(0, dtype=dtype).numpy().dtype
    return found


_INTERPRETING = threading.Lock()
"""Triton's interpreter puts its own functions in the place of the language's while a program runs: one at a time."""


class Launcher:
    """Allocates on one device, launches there, and copies to it and from it.

    Args:
        device: a CUDA device, or the CPU under Triton's interpreter.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.downloads = 0
        """How often the host has waited for the device."""
        self._cuda = device.type == "cuda"

    def empty(self, n: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a new, uninitialized tensor of ``n`` elements on the device."""
        return torch.empty(n, dtype=dtype, device=self.device)

    def zeros(self, n: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a new tensor of ``n`` zeros on the device."""
        return torch.zeros(n, dtype=dtype, device=self.device)

    def full(self, n: int, value: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a new tensor of ``n`` times this value on the device."""
        return torch.full((n,), value, dtype=dtype, device=self.device)

    def empty_on_host(self, n: int, dtype: DTypeLike) -> Array:
        """Return a new, uninitialized array of ``n`` elements on the host: pinned, if there is a GPU to copy with."""
        if not self._cuda:
            return np.empty(n, dtype)
        stored = np.dtype(dtype)
        words = torch.empty(n * stored.itemsize, dtype=torch.uint8, pin_memory=True)
        return words.numpy().view(stored)  # keeps the tensor alive

    def launch(self, program: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        """Run so many instances of a Triton ``program`` on the current stream of the device; none is nothing."""
        if programs == 0:
            return
        if not self._cuda:
            with _INTERPRETING:
                program[(programs,)](*arguments, **OPTIONS, **constants)
            return
        with torch.cuda.device(self.device):  # Triton launches on the current device
            program[(programs,)](*arguments, **OPTIONS, **constants)

    def upload(self, array: Array) -> torch.Tensor:
        """Return a copy of the one-dimensional ``array`` on the device; unsigned integers as signed ones."""
        source = torch.from_numpy(np.ascontiguousarray(array).view(STORED_AS.get(array.dtype, array.dtype)))
        if not self._cuda:
            return source.clone()
        pinned = torch.empty(source.shape, dtype=source.dtype, pin_memory=True).copy_(source)
        return pinned.to(self.device, non_blocking=True)

    def download(self, *tensors: torch.Tensor) -> list[Array]:
        """Return copies of the tensors on the host, after one wait for all of them."""
        arrays = [self.empty_on_host(tensor.numel(), numpy_type(tensor.dtype)) for tensor in tensors]
        self.copy_to_host(*zip(tensors, arrays, strict=True))
        return [array.reshape(tensor.shape) for tensor, array in zip(tensors, arrays, strict=True)]

    def copy_to_host(self, *copies: tuple[torch.Tensor, Array]) -> None:
        """Copy tensors to contiguous arrays of as many elements, after one wait for all of them."""
        self.downloads += 1
        for tensor, array in copies:
            if tensor.numel():
                target = torch.from_numpy(array.view(STORED_AS.get(array.dtype, array.dtype)))
                target.copy_(tensor.reshape(-1), non_blocking=True)
        if self._cuda:
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(torch.cuda.current_stream(self.device))
            done.synchronize()
