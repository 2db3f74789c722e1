"""A compressor as a third party would write it: one file, of public names alone."""

import numpy as np

from hvd_compress import HEADER_BYTES, AllGather, Bucket, Compressor, compressor_dataclass


@compressor_dataclass
class SignSGD(Compressor):
    """One bit an element and a scale, with error feedback (Karimireddy et al., ICML 2019)."""

    name = "sign-sgd"
    schedule = (AllGather,)
    error_feedback: bool = True  # type: ignore[misc]

    def exchange(self, bucket: Bucket):
        a = bucket.values
        scale = np.abs(a).mean(dtype=np.float64).astype(np.float32) if a.size else np.float32(0)
        payload = bucket.payload(HEADER_BYTES + 4 + (bucket.size + 7) // 8)
        body = payload[HEADER_BYTES:]  # the scale, then the signs
        body[:4] = np.frombuffer(scale.tobytes(), np.uint8)
        body[4:] = np.packbits(a > 0)
        a -= np.where(a > 0, scale, -scale)
        gathered = yield AllGather(payload)
        mean = bucket.decoded
        mean[:] = 0
        for row in gathered[:, HEADER_BYTES:]:
            signs = np.unpackbits(row[4:], count=bucket.size)
            mean += np.where(signs, 1, -1) * row[:4].copy().view(np.float32) / np.float32(bucket.workers)
        return mean
