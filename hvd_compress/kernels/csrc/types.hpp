// What the bindings and the kernels share. One Table of functions per instruction set; all give identical bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "frequency.hpp"

namespace hvd {

constexpr int64_t LANES = 16;       // float32 per cache line, and lanes of every sum
constexpr int64_t BLOCK = 65536;    // elements per block of a sparse payload
constexpr int64_t LOG_ROWS = 512;   // rows of significands multiplied before a logarithm is taken
constexpr int64_t GROUP = 64;       // elements tested per branch
constexpr int64_t SLACK = 80;       // room that a group's emission needs: it writes whole lines
constexpr int64_t MAX_LEVELS = 32767;
constexpr int MAX_SCALES = 15;
constexpr uint32_t MAGNITUDE = 0x7fffffff, LARGEST_FINITE = 0x7f7fffff, INFINITE = 0x7f800000, LARGEST_DENORMAL = 0x007fffff;
constexpr float SAFE_VELOCITY = 1.5f * 1.7014118346046923e38f;  // 1.5 * 2**127; see protocol/sparsification.py
constexpr int FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2;  // wires

// a = memory + gradient. Piece j holds the gradient's elements [ends[j-1], ends[j]). A null memory, or no pieces,
// leaves that term out.
struct Input {
    const float* memory;
    const float* const* pieces;
    const int64_t* ends;
    int64_t count;
    int64_t d;
};

struct Moments {
    int64_t count;
    double total, squares;
    float largest;
};

struct Selection {
    int64_t found, kept;
    bool finite;
};

struct Payloads {
    const uint8_t* data;
    int64_t n, stride, counts_at, positions_at, values_at;
    int count_bytes;
    int64_t capacity;
    int wire;
    const uint32_t* entries;
};

struct Packed {
    void* counts;
    int count_bytes;
    int64_t blocks;
    uint16_t* positions;
    void* words;
    int64_t capacity;
    int wire;
};

// Codes of -levels to levels whose sum over workers fits `width` bits, in words of `bits` (32 or 64).
struct Lanes {
    int64_t levels, workers;
    int width, bits;
    int count() const { return bits / width; }
};

// Scales and what the workers voted: count - 1 planes of `words` words, counts of `width` bits. See protocol/quantization.py.
struct Scales {
    const float* scale;
    int count;
    const int64_t* planes;
    int64_t words;
    int width;
};

enum class Bad { nothing, ascent, counts };  // what is wrong with the indices given to pack

struct Table {
    const char* name;
    Moments (*add)(const Input&, float* out);
    bool (*add_momentum)(
        const Input& gradient, const float* u, const float* v, float beta, bool nesterov, float* u_out, float* v_out);
    Moments (*sample)(const Input&, uint64_t key, int64_t lines, float* out);
    Moments (*exceedances)(const float* x, int64_t n, float threshold, float* out);
    int64_t (*log_sum)(const float* x, int64_t n, int64_t* exponents, double* products);
    uint32_t (*kth_largest)(const float* x, int64_t n, int64_t k);
    Selection (*select)(const Input&, float* out, uint32_t threshold, int64_t capacity, uint32_t* indices,
                        float* values, int64_t space);
    Bad (*pack)(const uint32_t* indices, const float* values, int64_t n, const Packed&, float* memory);
    int64_t (*accumulate)(const Payloads&, float scale, float* out, int64_t d);  // a corrupt payload, or -1
    void (*narrow)(const float* x, int64_t n, int wire, uint16_t* out);
    bool (*accumulate_dense)(const uint16_t* rows, int64_t n, int64_t d, int wire, float scale, float* out);
    double (*norm)(const Input& gradient, bool euclidean);  // largest magnitude, or sum of squares
    void (*quantize)(const Input& gradient, const Scales&, const Lanes&, uint64_t key, void* words);
    void (*dequantize)(const void* words, const Scales&, const Lanes&, float* out, int64_t d);
    void (*mask)(const Input& gradient, const float* limits, int count, int width, int64_t* planes, int64_t words);
    void (*permutation)(uint64_t key, int64_t start, int64_t size, uint32_t* out, int64_t n);
    void (*section_moments)(
        const float* x, const int64_t* ends, int64_t sections, float* largest, double* totals, double* squares);
    void (*ternarize)(const float* x, int64_t d, const int64_t* ends, const float* scales, uint64_t key, uint8_t* codes);
    bool (*accumulate_ternary)(const uint8_t* rows, int64_t stride, int64_t n, const int64_t* ends, const float* scales,
                               int64_t sections, float* out, int64_t d);
    FrequencyTable frequency;
};

const Table* table_avx512();  // null where not compiled in
const Table* table_avx2();
const Table* table_portable();

// A thread's own buffer, 64-byte aligned, which grows and is kept: no allocation in steady state.
enum Slot { SORTING, STREAMING, TILE, SLOTS };
void* scratch(Slot slot, size_t bytes);

}  // namespace hvd
