"""The order of work between the streams of a GPU. This file holds what Triton's interpreter cannot show.

Three parties use the same tensors on a GPU, each on a stream of its own, and nobody waits for another but by events:

* **The backward pass**: each gradient is complete on the stream that is current when Horovod hands it over.
* **The library**: all that it does to gradients, memories and means is on one stream, ``DeviceStream``'s own. During
  the backward pass a worker thread puts work there, afterwards the thread that calls ``optimizer.step()``; never both
  at a time, for that thread first waits for the worker. Kernels of one stream run in order, and need no events among
  them.
* **The optimizer**: reads and writes means on the stream that is current in ``step()``.

What passes from one to another, and why that is safe:

* **A gradient comes in** (``take``). An event is recorded behind it on the stream that it is complete on: the one that
  is current in the thread that hands it over. That thread is autograd's own, of which the engine makes the stream of a
  parameter's accumulation current while hooks run. Where a gradient must be copied first (``tensors.piece``), that is
  done on the same stream, and the copy is what is taken: a copy on ours would not wait. The worker has its stream wait
  for the event (``behind``) before anything of a bucket is launched there; the thread of the backward pass waits for
  nothing. Each gradient has an event of its own, so that no bucket waits for later ones.
* **Its memory goes back.** A gradient belongs to the stream that it was allocated on, and once PyTorch drops it, that
  stream may write there at once, while our stream still reads. ``record_stream`` tells the allocator of our use; it
  then gives the memory out again only behind what is on our stream when the gradient is dropped.
* **What the library allocates** (memories, workspaces, means) is allocated while its stream is current, on whichever
  thread (``allocating``): so it belongs to that stream, and needs no such word.
* **A mean goes out** (``working``, ``hand_back``). An event behind all our work is recorded, and the stream of
  ``step()`` waits for it. From then on the optimizer may read and write the mean. ``record_stream`` for that stream,
  because it is the one that uses memory of another's: when the next step drops the mean, our stream gets the memory
  back behind the optimizer's use.
* **The next step** needs no event for that: what it reads of the optimizer's work are gradients, which have theirs.
* **Numbers that only say whether gradients are finite** (``FiniteCheck``) are used on our stream and dropped when the
  host has waited for their copy, so that nothing on the device still reads them.
* **What Horovod is given** on a GPU: it records an event of its own on the stream that is current where the collective
  is started, which is ours, and has its stream wait for that. The tensor is kept until the result has been taken
  (``transport``): with asynchronous completion NCCL may still read it when Horovod has let go of it.
* **A collective's result** (``after_horovod``). Without ``HOROVOD_ENABLE_ASYNC_COMPLETION`` a handle that is done means
  that the GPU is done too. With it, Horovod orders the result before what comes later on the default stream of the
  device, in the thread that completes it; so our stream waits for an event on that one. A result that Horovod has
  allocated belongs to the stream that is current in its thread, the default one; ``record_stream`` tells of our use.
* **Graph capture** cannot be served: what the host waits for would never come, and a graph that is replayed would hand
  over nothing. Whoever captures the backward pass is told so (``note``).

On the CPU, under the interpreter, everything is done at once and in order, and ``InOrder`` takes the place of CUDA's
streams: the same calls, of which none does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


class CudaStreams:
    """CUDA's streams and events, as PyTorch has them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def new(self) -> Any:
        """Return a new stream."""
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def current(self) -> Any:
        """Return the stream that this thread puts work on."""
        return torch.cuda.current_stream(self._device)

    def default(self) -> Any:
        """Return the device's default stream."""
        return torch.cuda.default_stream(self._device)

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Make ``stream`` this thread's current one inside of ``with``."""
        return torch.cuda.stream(stream)

    def event(self, stream: Any) -> Any:
        """Return a new event behind what is on ``stream``."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def wait(self, stream: Any, event: Any) -> None:
        """Let what is put on ``stream`` from now on run behind ``event``. The host does not wait."""
        stream.wait_event(event)

    def use(self, tensor: torch.Tensor, stream: Any) -> None:
        """Tell the allocator that ``stream`` uses a tensor that belongs to another."""
        tensor.record_stream(stream)

    def capturing(self) -> bool:
        """Return whether what this thread puts on its stream is not run, but becomes part of a graph."""
        return torch.cuda.is_current_stream_capturing()


class InOrder:
    """What takes the place of streams where everything is done at once."""

    def new(self) -> Any:
        return None

    def current(self) -> Any:
        return None

    def default(self) -> Any:
        return None

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def event(self, stream: Any) -> Any:
        return None

    def wait(self, stream: Any, event: Any) -> None:
        """Nothing to wait for."""

    def use(self, tensor: torch.Tensor, stream: Any) -> None:
        """Nobody else uses it."""

    def capturing(self) -> bool:
        return False


def streams_of(device: torch.device) -> CudaStreams | InOrder:
    """Return the streams of a device."""
    return CudaStreams(device) if device.type == "cuda" else InOrder()


class DeviceStream:
    """The library's own stream on a device."""

    def __init__(self, device: torch.device) -> None:
        self._streams = streams_of(device)
        self._own = self._streams.new()
        self._events: list[Any] = []  # behind gradients that no work has been put behind yet

    def note(self) -> None:
        """Note what is on this thread's stream: all work to come runs behind it.

        Raises:
            RuntimeError: the stream is being captured in a graph.
        """
        self.refuse_capture()
        self._events.append(self._streams.event(self._streams.current()))

    def take(self, gradient: Any) -> None:
        """Note a gradient that is complete on this thread's stream, and will be read on the library's."""
        self.note()
        self._streams.use(gradient, self._own)

    def refuse_capture(self) -> None:
        """Raise RuntimeError if this thread's stream is being captured in a graph."""
        if self._streams.capturing():
            raise RuntimeError(
                "gradients cannot be compressed while a CUDA graph is captured: what is sent goes through the host, "
                "which a graph does not repeat. Leave backward and optimizer.step() out of the capture "
                "(torch.cuda.graph, make_graphed_callables), or train without compression"
            )

    def allocating(self) -> AbstractContextManager[Any]:
        """Allocate on the library's stream inside of ``with``."""
        return self._streams.on(self._own)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work on the library's stream inside of ``with``, behind all that this thread's stream and the gradients have
        to do; what comes after it on this thread's stream runs behind it."""
        current = self._streams.current()
        events = self.events()
        try:
            with self._behind(events):
                yield
        finally:
            self._streams.wait(current, self._streams.event(self._own))

    def hand_back(self, means: Iterable[torch.Tensor]) -> None:
        """Give these tensors to whoever works on this thread's stream."""
        for mean in means:
            self._streams.use(mean, self._streams.current())

    def events(self) -> list[Any]:
        """Return events behind what was noted since the last time, and behind this thread's stream."""
        events, self._events = self._events, []
        return [*events, self._streams.event(self._streams.current())]

    def behind(self, events: list[Any], work: Callable[[], Any]) -> Any:
        """Do ``work`` on the library's stream, behind these events."""
        with self._behind(events):
            return work()

    def after_horovod(self, output: torch.Tensor) -> None:
        """Let what this thread's stream does from now on run behind a collective that is done, and may read its
        ``output``."""
        self._streams.wait(self._streams.current(), self._streams.event(self._streams.default()))
        self._streams.use(output, self._streams.current())

    @contextmanager
    def _behind(self, events: list[Any]) -> Iterator[None]:
        with self._streams.on(self._own):
            for event in events:
                self._streams.wait(self._own, event)
            yield


class OrderedExecutor(ThreadPoolExecutor):
    """One thread, whose work runs on the library's stream, behind what the thread that gives it has put on its own."""

    def __init__(self, stream: DeviceStream, name: str) -> None:
        super().__init__(1, thread_name_prefix=name)
        self._stream = stream

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """See ``Executor.submit``."""
        return super().submit(self._stream.behind, self._stream.events(), lambda: work(*arguments, **named))
