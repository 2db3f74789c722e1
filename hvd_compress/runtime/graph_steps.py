"""The steps of a graph: where one begins, and what becomes of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from hvd_compress.codecs import header
from hvd_compress.runtime.core import StepCore
from hvd_compress.runtime.graph_step import GraphStep, TracedBucket, TracedCall

_log = logging.getLogger(__name__)


class GraphSteps:
    """Begins the steps of traced calls, and settles each when the next begins or the state is asked for."""

    def __init__(self, core: StepCore) -> None:
        self.staged: dict[str, GraphStep] = {}
        """By parameter, the last step in which its mean got a momentum."""
        self._core = core
        self._begun = 0  # the step that was begun last

    def begin(self, call: TracedCall, abandoned: Callable[[], bool]) -> None:
        """Let a step of ``call`` begin: what its buckets, and the call itself, did before is over. ``abandoned`` as in
        ``GraphStep``."""
        self.settle_all(call.buckets)
        if call.step is not None and not call.step.settled:
            self.settle(call.step)
        call.abandoned = abandoned

    def join(self, call: TracedCall, number: int) -> GraphStep:
        """Return the step of ``call`` that is under way, or a new one, of this number."""
        if call.step is None or call.step.settled:
            call.step = GraphStep(call.buckets, call.means, call.abandoned)
            self.done_before(number)
            total = self._core.total
            total.steps += 1
            total.sent_bytes += call.uncompressed
            total.dense_bytes += call.uncompressed
        return call.step

    def done_before(self, step: int) -> None:
        """Let the compressor know that all steps before this one are over."""
        if step > self._begun:
            self._core.phases.step_done(step - 1, step - self._begun)
            self._begun = step

    def go_on_from(self, step: int) -> None:
        """Begin anew with this step: it is not known how the steps before it have come about."""
        self._begun = step

    def settle_over(self, traced_buckets: Iterable[TracedBucket]) -> None:
        """Settle the steps that are over, of these buckets and of those with momenta."""
        for step in {traced.step for traced in traced_buckets} | set(self.staged.values()):
            if step is not None and not step.settled and step.over:
                self.settle(step)

    def forget(self, traced_buckets: Iterable[TracedBucket]) -> None:
        """Settle nothing of what these buckets have done: the state is going to be another one."""
        for traced in traced_buckets:
            if traced.step is not None:
                traced.step.settled, traced.step = True, None
        for step in self.staged.values():
            step.settled = True
        self.staged.clear()

    def settle_staged(self) -> None:
        """Settle the steps of which momenta are known, those that have no bucket yet too."""
        for step in set(self.staged.values()):
            if not step.settled:
                self.settle(step)
        self.staged.clear()

    def settle_all(self, traced_buckets: Iterable[TracedBucket]) -> None:
        """Settle the steps that these buckets are in."""
        for traced in traced_buckets:
            if traced.step is not None:
                self.settle(traced.step)

    def settle(self, step: GraphStep) -> None:
        """Decide what becomes of a step. One that did not come to its end, since something else in the graph ended it
        with an error, leaves no trace, and is counted by all its buckets, as one that was not finite is: those that had
        not begun, too, for plans and schedules are by step, and random choices alike on all ranks."""
        flags, complete = step.flags, step.complete
        if not complete:
            _log.warning("a step ended before it had got back all gradients; it leaves no trace")
            flags |= header.NONFINITE
            self._core.total.skipped_steps += 1
        ran = [traced.parameters for traced in step.traced_buckets if traced.parameters.run is not None]
        flushed = [traced.parameters for traced in step.traced_buckets if traced.flushed]
        applied = []
        spares = complete and self._core.compressor.nonfinite == "zero"
        if spares:
            # only the means of buckets that are not finite are zeros; the others' are not NaN, and so are used
            applied = [bucket for bucket in ran if bucket.run is not None and not bucket.run.flags & header.NONFINITE]
        rest = [bucket for bucket in ran if bucket not in applied]
        requested = self._core.compressor.runtime.flush_requested
        if applied:
            self._core.settle(applied, flags & ~header.NONFINITE, flushed)
        if rest:
            self._core.compressor.runtime.flush_requested = requested
            self._core.settle(rest, flags, flushed)
        if self._core.momentum is not None and not flags & header.DISCARD and (spares or not flags & header.NONFINITE):
            self._core.momentum.keep(step.momenta)
        for traced in step.buckets:
            traced.parameters.step += traced not in step.traced_buckets
        for traced in step.traced_buckets:
            traced.step = None
        step.settled = True
