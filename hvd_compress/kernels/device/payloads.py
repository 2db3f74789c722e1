"""Payloads on the device: sparse ones are encoded on the host and decoded here; dense ones are both here."""

from __future__ import annotations

import numpy as np
import torch

from hvd_compress.kernels.device.checks import require_tensor
from hvd_compress.kernels.device.launch import Array, Launcher
from hvd_compress.kernels.device.programs import payloads as programs
from hvd_compress.kernels.protocol import (
    BLOCK,
    WIRES,
    CorruptPayload,
    Float32,
    Int64,
    Kernels,
    UInt8,
    UInt16,
    UInt32,
    widen,
)

KINDS = {"bfloat16": 2, "float16": 1}
"""The numbers that the programs know the 16-bit wires by (see ``parts.LAYOUTS``)."""
CHUNK = 1024
"""Entries of a block that an instance of a program works on at a time: at a ratio of 0.01 a block has 655."""


class PayloadDevice:
    """Pack and accumulate sparse payloads, narrow and accumulate dense ones."""

    _launcher: Launcher
    _tile: int
    _host: Kernels

    def pack(
        self,
        indices: UInt32,
        values: Float32,
        wire: int,
        counts: UInt16 | UInt32,
        positions: UInt16,
        words: Float32 | UInt16,
        memory: torch.Tensor | None,
    ) -> None:
        """See ``SparsificationKernels.pack``: done by the host's kernels, as all but ``memory`` is on the host. The
        host does not wait."""
        if memory is not None:
            require_tensor("memory", memory, torch.float32, self._launcher.device, None)
            if len(indices) and wire and int(indices[-1]) >= len(memory):
                raise ValueError(f"memory has {len(memory)} elements, and indices reach {indices[-1]}")
        self._host.pack(indices, values, wire, counts, positions, words, None)
        if memory is not None and wire:
            rest = values - widen(words[: len(indices)], wire)
            memory[self._launcher.upload(indices).long() & 0xFFFFFFFF] = self._launcher.upload(rest)

    def accumulate(
        self,
        payloads: UInt8,
        counts_at: int,
        positions_at: int,
        values_at: int,
        count_bytes: int,
        capacity: int,
        wire: int,
        entries: UInt32,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        """See ``SparsificationKernels.accumulate``: ``payloads`` and ``entries`` are on the host, ``out`` is a tensor.

        A block of the bucket is one instance's, which adds the payloads in order. The host waits once, for the check.
        """
        if not 0 <= wire < len(WIRES):
            raise ValueError(f"wire must be 0, 1 or 2 (see WIRES), not {wire}")
        require_tensor("out", out, torch.float32, self._launcher.device, None)
        d, blocks = len(out), -(-len(out) // BLOCK)
        sizes = {
            "counts": (counts_at, count_bytes * blocks),
            "positions": (positions_at, 2 * capacity),
            "values": (values_at, (2 if wire else 4) * capacity),
        }
        for name, (at, size) in sizes.items():
            if not 0 <= at <= payloads.shape[1] - size:
                raise ValueError(f"{name}_at = {at} and its {size} bytes exceed {payloads.shape[1]} bytes")
        if len(entries) != len(payloads):
            raise ValueError(f"entries has {len(entries)} elements for {len(payloads)} payloads")
        ends = self._launcher.upload(block_ends(payloads, counts_at, count_bytes, d, capacity, entries).reshape(-1))
        bytes_ = self._launcher.upload(payloads.reshape(-1))
        corrupt = self._launcher.full(1, len(payloads), torch.int32)
        place = bytes_, payloads.shape[1], len(payloads), positions_at, values_at, ends, blocks, d
        arguments = *place, float(np.float32(scale)), out.zero_(), corrupt
        self._launcher.launch(programs.accumulate, blocks, *arguments, WIRE=wire, TILE=CHUNK)
        (first,) = self._launcher.download(corrupt)
        if first[0] < len(payloads):
            raise CorruptPayload(f"payload {first[0]}: positions do not ascend or exceed it, or a value is not finite")

    def narrow(self, x: torch.Tensor, wire: int, out: torch.Tensor | UInt16) -> None:
        """See ``SparsificationKernels.narrow``; ``x`` is a tensor, ``out`` one of int16, or on the host, which then
        waits once."""
        _require_narrow(wire)
        require_tensor("x", x, torch.float32, self._launcher.device, None)
        if not isinstance(out, torch.Tensor):
            words = self._launcher.empty(len(x), torch.int16)
            self.narrow(x, wire, words)
            self._launcher.copy_to_host((words, out))
            return
        require_tensor("out", out, torch.int16, self._launcher.device, len(x))
        tiles = -(-len(x) // self._tile)
        self._launcher.launch(programs.narrow, tiles, x.view(torch.int32), out, len(x), WIRE=wire, TILE=self._tile)

    def accumulate_dense(self, payloads: torch.Tensor | UInt16, wire: int, scale: float, out: torch.Tensor) -> bool:
        """See ``SparsificationKernels.accumulate_dense``; ``payloads``, of shape ``(n, d)``, is a tensor of int16, or
        on the host. The host waits once, for whether the sums are finite."""
        _require_narrow(wire)
        require_tensor("out", out, torch.float32, self._launcher.device, None)
        if not isinstance(payloads, torch.Tensor):
            payloads = self._launcher.upload(payloads.reshape(-1)).reshape(payloads.shape)
        if payloads.dim() != 2 or payloads.shape[1] != len(out):
            raise ValueError(f"payloads has shape {tuple(payloads.shape)}, not (n, {len(out)})")
        rows, n, d = payloads.reshape(-1), len(payloads), len(out)
        require_tensor("payloads", rows, torch.int16, self._launcher.device, n * d)
        infinite = self._launcher.full(1, 0, torch.int32)
        self._launcher.launch(
            programs.accumulate_dense,
            -(-d // self._tile),
            rows,
            n,
            d,
            float(np.float32(scale)),
            out,
            infinite,
            KIND=KINDS[WIRES[wire]],
            TILE=self._tile,
        )
        (found,) = self._launcher.download(infinite)
        return not found[0]


def block_ends(payloads: UInt8, counts_at: int, count_bytes: int, d: int, capacity: int, entries: UInt32) -> Int64:
    """Return where each block's entries end in each payload: int64, a row for each; raise CorruptPayload unless the
    counts of the blocks are sound."""
    blocks = -(-d // BLOCK)
    counts: Array = np.ascontiguousarray(payloads[:, counts_at : counts_at + count_bytes * blocks])
    counts = counts.view(f"<u{count_bytes}").astype(np.int64).reshape(len(payloads), blocks)
    ends: Int64 = counts.cumsum(axis=1)
    totals = ends[:, -1] if blocks else np.zeros(len(payloads), np.int64)
    lengths = np.minimum(d - BLOCK * np.arange(blocks), BLOCK)
    bad = (entries > capacity) | (totals != entries) | (counts > lengths).any(axis=1)
    if bad.any():
        r = int(np.argmax(bad))
        raise CorruptPayload(f"payload {r}: {entries[r]} entries, capacity {capacity}, block counts {totals[r]}")
    return ends


def _require_narrow(wire: int) -> None:
    if not 1 <= wire < len(WIRES):
        raise ValueError(f"wire must be 1 or 2 (see WIRES), not {wire}")
