"""Which collectives a graph is laid out for: those of every plan of a bucket's exchange, before the first step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hvd_compress.compressor import Collectives
from hvd_compress.exchange import AllGather, AllReduce, Bucket, Collective
from hvd_compress.runtime.core import StepCore
from hvd_compress.runtime.graph_transport import CollectiveSpec, name_of, try_out, variants


class GraphPlans:
    """Finds the collectives of buckets' exchanges. Those that are not declared to the dtype are found by a trial on a
    copy.

    A plan that is the only one has several variants where the integers that are all-reduced may be larger or smaller
    with another number of workers, if the graph is laid out for any number (``elastic``).
    """

    def __init__(self, core: StepCore, *, elastic: bool) -> None:
        self._core = core
        self._elastic = elastic

    def of(self, bucket: Bucket) -> dict[str, list[CollectiveSpec]]:
        """Return the collectives of every plan of a bucket's exchange, and of all variants."""
        plans = self._core.phases.plans(bucket)
        if not _is_tried(plans):
            return {plan: self._collectives(bucket, plan, kinds) for plan, kinds in plans.items()}
        ((only, kinds),) = plans.items()
        found = self._try_out(bucket, only, kinds)
        return {name_of(specs): specs for specs in variants(found)} if self._elastic else {only: found}

    def variant(self, bucket: Bucket) -> str | None:
        """Return which variant of the one plan that it has a bucket follows among as many workers as there are now;
        None if it has several plans, or one that only gathers."""
        plans = self._core.phases.plans(bucket)
        if not _is_tried(plans):
            return None
        ((only, kinds),) = plans.items()
        return name_of(self._try_out(bucket, only, kinds)) if self._elastic else only

    def _collectives(self, bucket: Bucket, plan: str, kinds: Collectives) -> list[CollectiveSpec]:
        """Return the collectives of one plan."""
        declared = self._core.phases.reduce_dtypes
        if kinds == (AllGather,) or plan in declared or (declared and AllReduce not in kinds):
            return [self._declared(plan, kind) for kind in kinds]
        return self._try_out(bucket, plan, kinds)

    def _try_out(self, bucket: Bucket, plan: str, kinds: Collectives) -> list[CollectiveSpec]:
        """Return the collectives of one plan, found by a trial."""
        trial = self._core.trial(bucket)
        trial.plan = plan
        return try_out(self._core.compressor, trial, kinds)

    def _declared(self, plan: str, kind: type[Collective]) -> CollectiveSpec:
        if kind is AllReduce:
            return CollectiveSpec(kind, np.dtype(self._core.phases.reduce_dtypes[plan]), "sum")
        return CollectiveSpec(kind, np.dtype(np.uint8), "")


def _is_tried(plans: Mapping[str, Collectives]) -> bool:
    """Whether the collectives of a bucket are found by a trial: it has one plan, which does more than to gather."""
    return len(plans) == 1 and (AllGather,) not in plans.values()
