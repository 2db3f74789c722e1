// Sixteen float32 in an array, for any CPU: plain loops that a compiler may vectorize.
#pragma once

struct Line {
    alignas(64) float v[16];
};
using Test = unsigned;

inline uint32_t bits(float x) {
    uint32_t b;
    memcpy(&b, &x, 4);
    return b;
}
inline float from_bits(uint32_t b) {
    float x;
    memcpy(&x, &b, 4);
    return x;
}
template <class F>
inline Line each(F f) {
    Line y;
    for (int i = 0; i < 16; i++) y.v[i] = f(i);
    return y;
}

inline Line zeros() {
    return each([](int) { return 0.0f; });
}
inline Line all(float x) {
    return each([=](int) { return x; });
}
inline Line load(const void* p) {
    Line x;
    memcpy(x.v, p, sizeof x.v);
    return x;
}
inline Line load(const float* p, unsigned mask) {
    return each([=](int i) { return mask >> i & 1 ? p[i] : 0.0f; });
}
inline void store(float* p, Line x) { memcpy(p, x.v, sizeof x.v); }
inline void store(float* p, Line x, unsigned mask) {
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) p[i] = x.v[i];
}
inline void stream(float* p, Line x) { store(p, x); }
inline void fence() {}

inline Line operator+(Line a, Line b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline Line operator-(Line a, Line b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
}
inline Line operator*(Line a, Line b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline Line magnitude(Line x) {
    return each([&](int i) { return from_bits(bits(x.v[i]) & MAGNITUDE); });
}
inline Line max_bits(Line a, Line b) {
    return each([&](int i) { return bits(a.v[i]) > bits(b.v[i]) ? a.v[i] : b.v[i]; });
}
inline Line min_bits(Line a, Line b) {
    return each([&](int i) { return bits(a.v[i]) < bits(b.v[i]) ? a.v[i] : b.v[i]; });
}

inline Test above(Line magnitudes, uint32_t t) {
    Test mask = 0;
    for (int i = 0; i < 16; i++) mask |= Test(int32_t(bits(magnitudes.v[i])) > int32_t(t)) << i;
    return mask;
}
inline Test above(Line x, Line t) {
    Test mask = 0;
    for (int i = 0; i < 16; i++) mask |= Test(x.v[i] > t.v[i]) << i;
    return mask;
}
inline Test lanes(unsigned mask) { return mask; }
inline Test both(Test a, Test b) { return a & b; }
inline unsigned mask_of(Test t) { return t; }
inline bool any(Test a, Test b, Test c, Test d) { return (a | b | c | d) != 0; }
inline Line clear(Line x, Test t) {
    return each([&](int i) { return t >> i & 1 ? 0.0f : x.v[i]; });
}
inline Line keep(Line x, Test t) { return clear(x, ~t); }

inline void compress(float* to, Line x, unsigned mask) {
    for (; mask; mask &= mask - 1) *to++ = x.v[__builtin_ctz(mask)];
}
inline void compress_index(uint32_t* to, uint32_t first, unsigned mask) {
    for (; mask; mask &= mask - 1) *to++ = first + uint32_t(__builtin_ctz(mask));
}

// Sixteen float64: element i of a line is lane i.
struct Doubles {
    alignas(64) double v[16];
};
template <class F>
inline Doubles each_double(F f) {
    Doubles y;
    for (int i = 0; i < 16; i++) y.v[i] = f(i);
    return y;
}
inline Doubles widen(Line x) {
    return each_double([&](int i) { return double(x.v[i]); });
}
inline Doubles doubles(double x) {
    return each_double([&](int) { return x; });
}
inline Doubles operator+(Doubles a, Doubles b) {
    return each_double([&](int i) { return a.v[i] + b.v[i]; });
}
inline Doubles operator-(Doubles a, Doubles b) {
    return each_double([&](int i) { return a.v[i] - b.v[i]; });
}
inline Doubles operator*(Doubles a, Doubles b) {
    return each_double([&](int i) { return a.v[i] * b.v[i]; });
}
inline Doubles choose(Test t, Doubles x, Doubles otherwise) {
    return each_double([&](int i) { return t >> i & 1 ? x.v[i] : otherwise.v[i]; });
}
inline Doubles keep(Doubles x, Test t) { return choose(t, x, doubles(0.0)); }
inline void store(double* p, Doubles x) { memcpy(p, x.v, sizeof x.v); }

// Biased exponents of positive float64, summed.
using Exponents = int64_t;
inline uint64_t bits(double x) {
    uint64_t b;
    memcpy(&b, &x, 8);
    return b;
}
inline Exponents no_exponents() { return 0; }
inline void add_exponents(Exponents& e, Doubles x) {
    for (int i = 0; i < 16; i++) e += int64_t(bits(x.v[i]) >> 52);
}
inline int64_t total(Exponents e) { return e; }
inline Doubles significand(Doubles x) {
    return each_double([&](int i) {
        const uint64_t b = (bits(x.v[i]) & 0x000fffffffffffff) | 0x3ff0000000000000;
        double m;
        memcpy(&m, &b, 8);
        return m;
    });
}

inline float widen_float16(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 0x3ff;
    if (exponent == 31) return from_bits(sign | INFINITE | fraction << 13 | uint32_t(fraction != 0) << 22);
    if (exponent) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    const float denormal = float(fraction) * 0x1p-24f;
    return sign ? -denormal : denormal;
}
inline uint16_t narrow_float16(float x) {
    const uint32_t b = bits(x), m = b & MAGNITUDE, sign = b >> 16 & 0x8000;
    if (m > INFINITE) return uint16_t(sign | 0x7e00 | (m >> 13 & 0x3ff));
    if (m >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65520 and more
    if (m < 0x38800000) {                                  // below the smallest normal float16
        const float shifted = from_bits(m) + 0.5f;         // float32's own rounding, at the spacing 2**-24 of denormals
        return uint16_t(sign | (bits(shifted) - 0x3f000000));
    }
    return uint16_t(sign | (((m + 0xfff + (m >> 13 & 1)) >> 13) - 0x1c000));
}
inline Line widen_bfloat16(const void* p) {
    uint16_t words[16];
    memcpy(words, p, sizeof words);
    return each([&](int i) { return from_bits(uint32_t(words[i]) << 16); });
}
inline Line widen_float16(const void* p) {
    uint16_t words[16];
    memcpy(words, p, sizeof words);
    return each([&](int i) { return widen_float16(words[i]); });
}
inline void narrow_bfloat16(uint16_t* p, Line x) {
    for (int i = 0; i < 16; i++) {
        const uint32_t b = bits(x.v[i]), rounded = (b + 0x7fff + (b >> 16 & 1)) >> 16;
        p[i] = uint16_t((b & MAGNITUDE) > INFINITE ? (b >> 16 | 0x40) : rounded);
    }
}
inline void narrow_float16(uint16_t* p, Line x) {
    for (int i = 0; i < 16; i++) p[i] = narrow_float16(x.v[i]);
}

// Sixteen 32-bit integers.
struct Ints {
    alignas(64) uint32_t v[16];
};
template <class F>
inline Ints each_int(F f) {
    Ints y;
    for (int i = 0; i < 16; i++) y.v[i] = f(i);
    return y;
}
inline Ints ints(uint32_t x) {
    return each_int([=](int) { return x; });
}
inline Ints zero_to_fifteen() {
    return each_int([](int i) { return uint32_t(i); });
}
inline Ints load_ints(const void* p) {
    Ints x;
    memcpy(x.v, p, sizeof x.v);
    return x;
}
inline void store(void* p, Ints x) { memcpy(p, x.v, sizeof x.v); }
inline void stream(void* p, Ints x) { store(p, x); }
inline Ints operator+(Ints a, Ints b) {
    return each_int([&](int i) { return a.v[i] + b.v[i]; });
}
inline Ints operator-(Ints a, Ints b) {
    return each_int([&](int i) { return a.v[i] - b.v[i]; });
}
inline Ints operator*(Ints a, Ints b) {
    return each_int([&](int i) { return a.v[i] * b.v[i]; });
}
inline Ints operator^(Ints a, Ints b) {
    return each_int([&](int i) { return a.v[i] ^ b.v[i]; });
}
inline Ints operator&(Ints a, Ints b) {
    return each_int([&](int i) { return a.v[i] & b.v[i]; });
}
inline Ints operator|(Ints a, Ints b) {
    return each_int([&](int i) { return a.v[i] | b.v[i]; });
}
inline Ints operator<<(Ints x, int n) {  // 32 bits or more leave nothing
    return each_int([&](int i) { return n < 32 ? x.v[i] << n : 0u; });
}
inline Ints operator>>(Ints x, int n) {
    return each_int([&](int i) { return n < 32 ? x.v[i] >> n : 0u; });
}
inline Ints shift_signed(Ints x, int n) {
    return each_int([&](int i) { return uint32_t(int32_t(x.v[i]) >> n); });
}
inline Ints least(Ints a, Ints b) {  // unsigned
    return each_int([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Ints multiply_high(Ints a, Ints b) {  // the upper halves of the unsigned products
    return each_int([&](int i) { return uint32_t(uint64_t(a.v[i]) * b.v[i] >> 32); });
}
inline Ints set(Ints x, Ints bits, Test t) {  // where t
    return each_int([&](int i) { return t >> i & 1 ? x.v[i] | bits.v[i] : x.v[i]; });
}
inline Test none(Ints x, Ints of) {  // no bit of these
    Test mask = 0;
    for (int i = 0; i < 16; i++) mask |= Test((x.v[i] & of.v[i]) == 0) << i;
    return mask;
}

inline Line choose(Test t, Line x, Line otherwise) {
    return each([&](int i) { return t >> i & 1 ? x.v[i] : otherwise.v[i]; });
}
inline Line lesser(Line x, Line limit) {  // the limit for NaN
    return each([&](int i) { return x.v[i] < limit.v[i] ? x.v[i] : limit.v[i]; });
}
inline Line greater(Line x, Line limit) {
    return each([&](int i) { return x.v[i] > limit.v[i] ? x.v[i] : limit.v[i]; });
}
inline Ints nearest(Line x) {  // adding 1.5 * 2**52 rounds, and leaves the integer in the lower bits
    return each_int([&](int i) { return uint32_t(bits(double(x.v[i]) + 0x1.8p52)); });
}
inline Line floats(Ints x) {
    return each([&](int i) { return float(int32_t(x.v[i])); });
}

// Sixteen 64-bit integers, as their lower and their upper halves.
inline void split(const int64_t* p, uint64_t add, Ints& low, Ints& high) {
    for (int i = 0; i < 16; i++) {
        const uint64_t word = uint64_t(p[i]) + add;
        low.v[i] = uint32_t(word);
        high.v[i] = uint32_t(word >> 32);
    }
}
inline void join(Ints low, Ints high, uint64_t add, int64_t* p, bool) {
    for (int i = 0; i < 16; i++) p[i] = int64_t((uint64_t(high.v[i]) << 32 | low.v[i]) + add);
}

// Line i becomes the elements i of all sixteen.
inline void transpose(Line* x) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < i; j++) {
            const float f = x[i].v[j];
            x[i].v[j] = x[j].v[i];
            x[j].v[i] = f;
        }
}

// Sums of neighbours: elements 0 and 1 of a, 2 and 3, ..., then those of b.
inline Line add_pairs(Line a, Line b) {
    return each([&](int i) { return i < 8 ? a.v[2 * i] + a.v[2 * i + 1] : b.v[2 * i - 16] + b.v[2 * i - 15]; });
}
