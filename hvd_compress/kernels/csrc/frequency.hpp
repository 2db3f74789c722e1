// What the bindings and the kernels of frequency-domain compression share; part of the Table.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hvd {

// A range-based float: codes 1 ... positives, then the negatives; `high` and `low` are magnitude bits.
struct RangeCode {
    int bits, shift;
    int32_t base, positives, negatives;
    uint32_t low, high;
};

struct FrequencyTable {
    void (*range_encode)(const float* x, int64_t n, const RangeCode&, bool stochastic, uint64_t key, uint8_t* out);
    bool (*range_codes_below)(const uint8_t* packed, int64_t n, int bits, uint32_t limit);
    void (*range_decode)(const uint8_t* packed, int64_t n, int bits, const float* table, float* out);
};

}  // namespace hvd
