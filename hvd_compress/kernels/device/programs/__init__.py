"""The Triton programs, and nothing else: every line here runs on the device.

The interpreter (``TRITON_INTERPRET=1``, set before this is imported) runs them on tensors of the CPU. Elements are
counted in int64, so that buckets may have up to 2**32 of them.
"""
