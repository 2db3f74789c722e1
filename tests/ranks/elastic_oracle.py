"""What the means of an elastic job are compared with, step after step and whatever the framework: plain Horovod's mean
of the same gradients, over the workers that there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

import hvd_compress
from hvd_compress.codecs.lanes import levels_of
from hvd_compress.runtime.bucketing import is_compressed
from hvd_compress.state_format import MEAN_MOMENTUM
from tests.ranks.elastic_plan import Plan

Arrays = dict[str, np.ndarray]
"""Arrays of parameters, by the names that the compressor has for them."""


@dataclass
class Oracle:
    """The checks of one worker's steps. Every rank calls the same, for all of them take part.

    Args:
        plan: the job's.
        compression: whose means are checked.
        average: plain Horovod's mean over the ranks of a float32 vector.
        rounding: what the means may be wrong by because they were not seen themselves.
        left_alone: whether Horovod asks no compressor where there is one worker: the mean is the gradient then, without
            DGC's momentum, and memories stay as they are. So does TensorFlow's tape.
    """

    plan: Plan
    compression: hvd_compress.Compressor
    average: Callable[[np.ndarray], np.ndarray]
    rounding: float = 0.0
    left_alone: bool = False

    def before(self) -> None:
        """Take note, before a step, of what all ranks hold back, and of the momenta of means, which are the same on all
        ranks but for a new worker, which gets them in its first step."""
        self._held = self.plan.held(self.compression)
        memory = self.compression.state_dict()["memory"]
        mine = {n: np.array(arrays[MEAN_MOMENTUM]) for n, arrays in memory.items() if MEAN_MOMENTUM in arrays}
        self._momenta = max(self.plan.gather(mine), key=len)

    def check(self, own: Arrays, means: Arrays) -> None:
        """Raise unless ``means`` are right for the ranks' ``own`` gradients in the step that is over.

        What is not compressed, and all of ``Dense``, is Horovod's mean but for rounding. ``QSGDMaxNorm``, which has no
        memory, is off by less than a level. With error feedback, what came, from the gradients and the memories, is
        what went, to the means and the memories.
        """
        if self.left_alone and self.plan.hvd.size() == 1:
            for name, gradient in own.items():
                self._check_close(means[name], gradient.astype(np.float64))
            self.plan.check_held(self._held, self.compression)
            return
        exact = self._averages(own)
        unseen = self._decoded_means()
        after = self.plan.held(self.compression)
        levels = dict(self._levels(own, exact))
        checked = set()
        for name, expected in exact.items():
            mean = means[name].reshape(-1).astype(np.float64)
            if name in unseen:
                continue
            if not is_compressed(own[name].shape, self.compression.min_numel):
                beta = self.compression.momentum if isinstance(self.compression, hvd_compress.DGC) else 0.0
                self._check_close(mean, expected + beta * self._momenta.get(name, np.zeros(1)))
            elif isinstance(self.compression, hvd_compress.Dense):
                self._check_close(mean, expected)
            elif levels:
                assert np.abs(mean - expected).max() <= levels[name] + self.rounding, name
            else:
                size = self.plan.hvd.size()
                came = size * expected + self._to_be_sent(name)
                went = size * mean + sum(a for (n, key), a in after.items() if n == name and key != "momentum")
                tolerance = 1e-4 * np.abs(came).max() + size * self.rounding
                np.testing.assert_allclose(went, came, rtol=0, atol=tolerance, err_msg=name)
                checked.add(name)
        assert checked == {name for name, _ in after} - unseen, "memories of parameters that there are not"

    def _check_close(self, mean: np.ndarray, expected: np.ndarray) -> None:
        np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=1e-7 + self.rounding)

    def _averages(self, own: Arrays) -> Arrays:
        flat = self.average(np.concatenate([array.reshape(-1) for array in own.values()]))
        parts = np.split(flat.astype(np.float64), np.cumsum([array.size for array in own.values()])[:-1])
        return dict(zip(own, parts, strict=True))

    def _to_be_sent(self, name: str) -> np.ndarray:
        """Return what the memories of all ranks add to the sum of the gradients. DGC adds to its velocity its momentum,
        times the factor; both are linear, so that what holds for a worker does for the sum."""
        held = {key: array for (n, key), array in self._held.items() if n == name}
        if isinstance(self.compression, hvd_compress.DGC):
            return held.get("velocity", np.zeros(1)) + self.compression.momentum * held.get("momentum", np.zeros(1))
        return held.get("residual", np.zeros(1))

    def _levels(self, own: Arrays, exact: Arrays) -> Iterator[tuple[str, float]]:
        """Yield, for ``QSGDMaxNorm``, by how much each parameter's mean may be off: every worker's code by less than
        the distance of two levels of its bucket, and so the mean of them."""
        if not isinstance(self.compression, hvd_compress.QSGDMaxNorm):
            return
        ranks = self.plan.gather({name: float(np.abs(array).max()) for name, array in own.items()})
        for bucket in self.compression.state_dict()["layout"]:
            norm = max(norms[name] for norms in ranks for name in bucket)
            level = norm / levels_of(self.compression.bits) * (1 + 1e-5)
            largest = max(np.abs(exact[name]).max() for name in bucket)
            assert largest / 3 > 2 * level, "two thirds of the mean would pass"
            yield from ((name, level) for name in bucket)

    def _decoded_means(self) -> set[str]:
        """Return the parameters whose mean is no mean of what workers lose: LGC's decoder makes it of the mean of their
        codes, and is not linear."""
        if not isinstance(self.compression, hvd_compress.LGC):
            return set()
        learning = self.compression.learning
        return {learning.control} if self.compression.stats()["lgc"]["phase"] == "learned" else set()
