"""A worker whose gradients are named NumPy arrays: what the simulation and the MPI driver have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvd_compress.compressor import Compressor
from hvd_compress.exchange import AllReduce
from hvd_compress.kernels import Float32
from hvd_compress.runtime.agreement import Agreements, proposal
from hvd_compress.runtime.bucketing import Parameter, is_compressed
from hvd_compress.runtime.engine import Engine
from hvd_compress.runtime.transport import Handle, Transport
from hvd_compress.validation import warn_of_range

Gradients = Mapping[str, NDArray[Any]]
LABEL = "hvd_compress"
"""Begins the names of all collectives."""


class ArrayWorker:
    """Runs a compressor on one worker's named arrays. Arrays below ``min_numel`` elements are averaged uncompressed.

    It is the compressor's driver, for its state; Horovod's two methods are not for it.
    """

    def __init__(self, compressor: Compressor, transport: Transport) -> None:
        if compressor.runtime.driver is not None:
            raise ValueError(f"{compressor!r} already serves another driver; make one compressor for each")
        if compressor.memory_unit == "update":
            raise ValueError(f"{compressor!r} needs the optimizer's learning rate, and here is none: use PyTorch")
        momentum = compressor.mean_momentum()
        if momentum is not None and momentum.weight_decay:
            raise ValueError(
                f"{compressor!r} needs the weights for weight_decay={momentum.weight_decay}, and here gradients come "
                "without: add weight decay to the gradients, and leave weight_decay=0"
            )
        compressor.runtime.driver = self
        self._compressor = compressor
        self._transport = transport
        self._engine: Engine | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._compressed: list[str] = []
        self._plain: dict[str, tuple[Handle, Float32]] = {}

    def enter_world(self, transport: Transport) -> None:
        """Go on among other workers, whom ``transport`` reaches."""
        self._transport = transport
        self._plain.clear()
        if self._engine is not None:
            self._engine.enter_world(transport, LABEL)

    def begin(self, gradients: Gradients) -> None:
        """Start a step with these gradients (floating point, any shape; converted to float32, not changed).

        Raises:
            TypeError: an array is not floating point.
            ValueError: names or shapes differ from the first step's.
        """
        flat = {name: self._flatten(name, array) for name, array in gradients.items()}
        shapes = {name: np.shape(array) for name, array in gradients.items()}
        if self._engine is None:
            self._shapes = shapes
            least = self._compressor.min_numel
            self._compressed = [name for name, shape in shapes.items() if is_compressed(shape, least)]
            self._engine = Engine(
                self._compressor,
                self._transport,
                [Parameter(name, flat[name].size, np.asarray(gradients[name]).itemsize) for name in self._compressed],
                LABEL,
                len(flat),
                [name for name, shape in shapes.items() if len(shape) > 1 or name in self._compressed],
                {name: array.size for name, array in flat.items() if name not in self._compressed},
            )
        if shapes != self._shapes:
            odd = sorted(name for name, shape in {**shapes, **self._shapes}.items() if shapes.get(name) != shape)
            odd = odd or sorted(name for name in shapes if self._shapes.get(name) != shapes[name])
            raise ValueError(f"gradients differ from the first step's in name or shape: {', '.join(odd)}")
        self._flat = {name: flat[name] for name in self._shapes}  # in the first step's order

    def refusing(self, error: Exception) -> Iterator[Handle]:
        """Tell the others, who wait for what this worker is about to do, why it cannot begin with its gradients.
        Nothing is told once it has begun."""
        if self._engine is None:
            payload = proposal(self._compressor, [], 0, [], ([], 0, ""), str(error))
            yield from Agreements(LABEL).begin(self._transport, payload).receiving()

    def agreeing(self) -> Iterator[Handle]:
        """Do the first part of a step: check that the workers fit together; see ``Engine.agreeing``."""
        assert self._engine is not None
        yield from self._engine.agreeing()

    def stepping(self) -> Iterator[Handle]:
        """Do the rest of the step; yield every handle that must be done before the iteration goes on."""
        assert self._engine is not None
        index = 0
        for name, gradient in self._flat.items():
            if index < len(self._compressed) and name == self._compressed[index]:
                self._engine.add(index, gradient)
                index += 1
            else:
                self._engine.add_uncompressed(gradient.nbytes, bool(np.isfinite(gradient).all()))
                total = gradient.copy()
                self._plain[name] = (self._transport.start(AllReduce(total), f"{LABEL}.plain.{name}"), total)
        yield from self._engine.finishing()
        for handle, _ in self._plain.values():
            yield handle

    def means(self) -> dict[str, Float32]:
        """Return copies of the step's means, in the gradients' shapes."""
        assert self._engine is not None
        flat = {name: self._engine.means[index] for index, name in enumerate(self._compressed)}
        for name, (handle, _) in self._plain.items():
            mean = self._transport.result(handle) * np.float32(1 / self._transport.workers)
            flat[name] = self._engine.with_momentum(name, mean)
        self._plain.clear()
        return {name: np.array(flat[name]).reshape(shape) for name, shape in self._shapes.items()}

    def state_dict(self) -> dict[str, Any]:
        if self._engine is None:
            return {}
        return self._engine.state_dict()

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go back to what ``state_dict`` returned. All workers do, and then call ``enter_world``."""
        if self._engine is None:
            self._compressor.runtime.pending_state = state
        else:
            self._engine.restore(state)

    def compress(self, tensor: Any) -> tuple[Any, Any]:
        raise TypeError(f"this compressor is driven by {type(self._transport).__name__}, not by Horovod")

    def decompress(self, tensor: Any, ctx: Any) -> Any:
        raise TypeError(f"this compressor is driven by {type(self._transport).__name__}, not by Horovod")

    def bind(self, optimizer: Any) -> None:
        raise TypeError(f"this compressor is driven by {type(self._transport).__name__}, not by an optimizer")

    @staticmethod
    def _flatten(name: str, array: NDArray[Any]) -> Float32:
        array = np.asarray(array)
        if not np.issubdtype(array.dtype, np.floating):
            raise TypeError(f"gradient {name!r} has dtype {array.dtype}; only floating point can be compressed")
        with np.errstate(over="ignore"):
            flat: Float32 = np.ascontiguousarray(array, dtype=np.float32).reshape(-1)
        beyond = np.isinf(flat) if array.itemsize > flat.itemsize else np.zeros(0, bool)
        if beyond.any() and np.isfinite(array.reshape(-1)[beyond]).any():
            warn_of_range([name])
        return flat
