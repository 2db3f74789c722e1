// Range-based floats: encode and pack, check, unpack and decode. Plain loops over sixteen elements, without branches:
// compilers make vectors of them.
#pragma once

inline float magnitude_of(uint32_t b) {
    float x;
    memcpy(&x, &b, 4);
    return x;
}

template <bool STOCHASTIC>
inline void range_codes(const uint32_t* x, const RangeCode& code, const float* draws, int32_t* codes) {
    for (int i = 0; i < 16; i++) {
        const int32_t negative = -int32_t(x[i] >> 31), b = int32_t(x[i] & MAGNITUDE);
        const int32_t last = (negative ? code.negatives : code.positives) - 1;
        const int32_t end = int32_t(negative ? code.low : code.high);
        int32_t cell = (b >> code.shift) - code.base + 1;
        cell = cell < 0 ? 0 : cell;
        cell = cell > last ? last : cell;
        const int32_t lower = cell <= 0 ? 0 : int32_t(uint32_t(code.base + cell - 1) << code.shift);
        const int32_t upper = cell == last ? end : int32_t(uint32_t(code.base + cell) << code.shift);
        const float value = magnitude_of(uint32_t(b)), lo = magnitude_of(uint32_t(lower)), hi = magnitude_of(uint32_t(upper));
        const bool up = STOCHASTIC ? (value - lo) / (hi - lo) > draws[i] : value - lo >= hi - value;
        const int32_t c = cell + int32_t(up | (b >= end));
        codes[i] = c + (c > 0 ? negative & code.positives : 0);
    }
}

// A stream of bits, the least significant first.
struct BitWriter {
    uint8_t* to;
    uint64_t pending = 0;
    int filled = 0;

    void put(uint32_t code, int bits) {
        pending |= uint64_t(code) << filled;
        filled += bits;
        if (filled >= 32) {
            const uint32_t word = uint32_t(pending);
            memcpy(to, &word, 4);
            to += 4;
            pending >>= 32;
            filled -= 32;
        }
    }
    void finish() {
        for (; filled > 0; filled -= 8, pending >>= 8) *to++ = uint8_t(pending);
    }
};

// Code i of a stream of n, never reading beyond its last byte.
inline uint32_t code_at(const uint8_t* packed, int64_t i, int bits, int64_t bytes) {
    if (bits == 8) return packed[i];
    const int64_t at = i * bits;
    uint32_t word = 0;
    if (at / 8 + 4 <= bytes) memcpy(&word, packed + at / 8, 4);
    else memcpy(&word, packed + at / 8, size_t(bytes - at / 8));
    return word >> (at % 8) & ((1u << bits) - 1);
}

template <bool STOCHASTIC>
inline void encode_all(const float* x, int64_t n, const RangeCode& code, uint64_t key, uint8_t* out) {
    BitWriter writer{out};
    for (int64_t i = 0; i < n; i += LANES) {
        const int64_t count = n - i < LANES ? n - i : LANES;
        uint32_t element[16] = {};
        int32_t codes[16];
        float draws[16] = {};
        memcpy(element, x + i, size_t(count) * 4);
        if (STOCHASTIC)
            for (int j = 0; j < 16; j++) draws[j] = float(int32_t(hash32(key, uint64_t(i + j)) >> 8)) * 0x1p-24f;
        range_codes<STOCHASTIC>(element, code, draws, codes);
        if (code.bits == 8) {
            uint8_t bytes[16];
            for (int j = 0; j < 16; j++) bytes[j] = uint8_t(codes[j]);
            memcpy(out + i, bytes, size_t(count));
        } else {
            for (int64_t j = 0; j < count; j++) writer.put(uint32_t(codes[j]), code.bits);
        }
    }
    writer.finish();
}

void range_encode(const float* x, int64_t n, const RangeCode& code, bool stochastic, uint64_t key, uint8_t* out) {
    stochastic ? encode_all<true>(x, n, code, key, out) : encode_all<false>(x, n, code, key, out);
}

bool range_codes_below(const uint8_t* packed, int64_t n, int bits, uint32_t limit) {
    const int64_t bytes = (n * bits + 7) / 8;
    uint32_t largest = 0;
    if (bits == 8) {
        uint8_t most = 0;
        for (int64_t i = 0; i < n; i++) most = packed[i] > most ? packed[i] : most;
        largest = most;
    } else {
        for (int64_t i = 0; i < n; i++) {
            const uint32_t c = code_at(packed, i, bits, bytes);
            largest = c > largest ? c : largest;
        }
    }
    return n == 0 || largest < limit;
}

void range_decode(const uint8_t* packed, int64_t n, int bits, const float* table, float* out) {
    const int64_t bytes = (n * bits + 7) / 8;
    for (int64_t i = 0; i < n; i++) out[i] = table[code_at(packed, i, bits, bytes)];
}
