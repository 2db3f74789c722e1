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

// Payloads of pairs of a spectrum. Where they belong: in-block positions, or (count_bytes 0) a bitmap at `places_at`,
// of whole 64-bit words. `tables` has the values of row r's codes, `lengths` their numbers.
struct SpectrumPayloads {
    const uint8_t* data;
    int64_t n, stride, counts_at, places_at, codes_at;
    int count_bytes;
    int64_t capacity;
    int bits;
    const uint32_t* entries;
    const float* const* tables;
    const uint32_t* lengths;
};

// Blocks, and the constants of their transform: kernels/fourier.py makes them.
struct Transform {
    int64_t block;
    const float *roots, *factors;
};

struct Selection;

struct FrequencyTable {
    void (*range_encode)(const float* x, int64_t n, const RangeCode&, bool stochastic, uint64_t key, uint8_t* out);
    bool (*range_codes_below)(const uint8_t* packed, int64_t n, int bits, uint32_t limit);
    void (*range_decode)(const uint8_t* packed, int64_t n, int bits, const float* table, float* out);
    void (*forward)(const float* x, int64_t blocks, const Transform&, float* out);
    void (*inverse)(const float* spectrum, int64_t blocks, const Transform&, float scale, const float* minuend, float* out);
    Selection (*select_pairs)(const float* pairs, int64_t n, float scale, uint32_t threshold, int64_t capacity,
                              uint32_t* indices, float* energies, int64_t space);
    void (*gather_pairs)(const float* pairs, const uint32_t* indices, int64_t n, float* values, float* range);
    bool (*mark)(const uint32_t* indices, int64_t n, uint8_t* bitmap, int64_t bytes);
    int64_t (*check_pairs)(const SpectrumPayloads&, int64_t pairs);  // first corrupt payload, or -1
    void (*synthesize)(const SpectrumPayloads&, int64_t blocks, const Transform&, float scale, const float* minuend,
                       float* out, float* rest, int64_t rest_pairs);  // only after check_pairs
};

}  // namespace hvd
