"""LGC's exchanges of phase 3: codes of the values at common indices travel, and what a round trip loses is kept."""

from __future__ import annotations

import numpy as np

from hvd_compress.codecs import header
from hvd_compress.codecs.innovations import InnovationFormat
from hvd_compress.exchange import AllGather, AllReduce, Bucket, Exchange
from hvd_compress.lgc.common_values import (
    ENERGIES,
    Settings,
    read_energies,
    relative_error,
    require_finite,
    take_common_values,
)

CODE = "a code of the values at the common indices"


def mean_of_codes(bucket: Bucket, settings: Settings) -> Exchange:
    """Average the workers' codes, and decode the mean."""
    k, learning = settings.k, settings.learning
    common = yield from take_common_values(bucket, settings, bucket.step % bucket.workers)
    code = learning.encode(common.normalized(settings), bucket.workers)
    lost = common.values - common.restored(settings, learning.decode(code, k)[0])
    payload = bucket.payload(header.NBYTES + ENERGIES)
    payload[header.NBYTES :].view(np.float32)[:] = common.energies(lost)
    gathered = yield AllGather(payload)
    header.check(gathered, codec=header.CUSTOM, elements=bucket.size, capacity=0)
    error = relative_error(read_energies(gathered[:, header.NBYTES :]))
    learning.watch(bucket, error)
    # a flush sends everything after this, a step that is abandoned nothing; and error feedback needs a round trip
    # that loses less than all
    nothing = bool(header.flags(gathered)) or error >= 1
    if nothing:
        code[:] = 0
        lost = common.values
    if error >= 1:
        bucket.sent = 0
    if settings.error_feedback:
        bucket.kernels.restore(bucket.values, common.indices, lost)
    total = yield AllReduce(code[0])
    if nothing:
        return common.scattered(bucket, np.zeros(len(common.indices), np.float32))
    mean = require_finite(total, CODE).astype(np.float32) / np.float32(bucket.workers)
    return common.scattered(bucket, common.restored(settings, learning.decode(mean[None], k)[0]))


def one_code_and_innovations(bucket: Bucket, settings: Settings) -> Exchange:
    """Let one worker's code stand for all, and add every worker's largest values."""
    k, workers, learning = settings.k, bucket.workers, settings.learning
    common = yield from take_common_values(bucket, settings, bucket.key(1) % workers, with_code=True)
    code = require_finite(common.rest.view(np.float16), CODE).reshape(1, -1)
    layout = InnovationFormat(k, learning.architecture.innovations(k))
    vector = common.normalized(settings)[0]
    chosen = np.sort(np.argpartition(-np.abs(vector), layout.count - 1)[: layout.count])
    begin = header.NBYTES + ENERGIES
    payload = bucket.payload(begin + layout.nbytes)
    layout.encode(chosen, vector[chosen], payload[begin:])
    mine = layout.decode(payload[None, begin:])
    lost = common.values - common.restored(settings, learning.decode(code, k, mine)[0])
    energies = common.energies(lost)
    if energies[0] >= energies[1]:  # then the innovation is all that is taken from this worker
        lost = common.values - common.restored(settings, mine[0])
        bucket.sent = layout.count
    payload[header.NBYTES : begin].view(np.float32)[:] = energies
    if settings.error_feedback:
        bucket.kernels.restore(bucket.values, common.indices, lost)
    gathered = yield AllGather(payload)
    header.check(gathered, codec=header.CUSTOM, elements=bucket.size, capacity=0)
    told = read_energies(gathered[:, header.NBYTES : begin])
    learning.watch(bucket, relative_error(told))
    useless = np.greater_equal(*told.T)
    innovations = layout.decode(gathered[:, begin:])
    vectors = learning.decode(np.repeat(code, workers, 0), k, innovations)
    mean = np.zeros(len(common.indices), np.float32)
    for vector, innovation, alone in zip(vectors, innovations, useless, strict=True):
        mean += common.restored(settings, innovation if alone else vector) * np.float32(1 / workers)
    return common.scattered(bucket, mean)
