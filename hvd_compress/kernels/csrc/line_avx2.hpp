// Sixteen float32 in two registers. Masks live in registers; compression permutes by a table.
#pragma once

struct Line {
    __m256 lo, hi;
};
struct Test {
    __m256i lo, hi;
};

inline __m256i bits(__m256 x) { return _mm256_castps_si256(x); }
inline __m256 floats(__m256i x) { return _mm256_castsi256_ps(x); }
inline Test lanes(unsigned mask) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), upper = _mm256_slli_epi32(bit, 8);
    const __m256i m = _mm256_set1_epi32(int(mask));
    return {_mm256_cmpeq_epi32(_mm256_and_si256(m, bit), bit), _mm256_cmpeq_epi32(_mm256_and_si256(m, upper), upper)};
}

inline Line zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Line all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Line load(const void* p) {
    const float* q = static_cast<const float*>(p);
    return {_mm256_loadu_ps(q), _mm256_loadu_ps(q + 8)};
}
inline Line load(const float* p, unsigned mask) {
    const Test t = lanes(mask);
    return {_mm256_maskload_ps(p, t.lo), _mm256_maskload_ps(p + 8, t.hi)};
}
inline void store(float* p, Line x) {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
}
inline void store(float* p, Line x, unsigned mask) {
    const Test t = lanes(mask);
    _mm256_maskstore_ps(p, t.lo, x.lo);
    _mm256_maskstore_ps(p + 8, t.hi, x.hi);
}
inline void stream(float* p, Line x) {
    _mm256_stream_ps(p, x.lo);
    _mm256_stream_ps(p + 8, x.hi);
}
inline void fence() { _mm_sfence(); }

inline Line operator+(Line a, Line b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Line operator-(Line a, Line b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Line operator*(Line a, Line b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Line magnitude(Line x) {
    const __m256 m = floats(_mm256_set1_epi32(int(MAGNITUDE)));
    return {_mm256_and_ps(x.lo, m), _mm256_and_ps(x.hi, m)};
}
inline Line max_bits(Line a, Line b) {
    return {floats(_mm256_max_epi32(bits(a.lo), bits(b.lo))), floats(_mm256_max_epi32(bits(a.hi), bits(b.hi)))};
}
inline Line min_bits(Line a, Line b) {
    return {floats(_mm256_min_epi32(bits(a.lo), bits(b.lo))), floats(_mm256_min_epi32(bits(a.hi), bits(b.hi)))};
}

inline Test above(Line magnitudes, uint32_t t) {
    const __m256i limit = _mm256_set1_epi32(int(t));
    return {_mm256_cmpgt_epi32(bits(magnitudes.lo), limit), _mm256_cmpgt_epi32(bits(magnitudes.hi), limit)};
}
inline Test above(Line x, Line t) {
    return {bits(_mm256_cmp_ps(x.lo, t.lo, _CMP_GT_OQ)), bits(_mm256_cmp_ps(x.hi, t.hi, _CMP_GT_OQ))};
}
inline Test both(Test a, Test b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
inline unsigned mask_of(Test t) {
    return unsigned(_mm256_movemask_ps(floats(t.lo))) | unsigned(_mm256_movemask_ps(floats(t.hi))) << 8;
}
inline bool any(Test a, Test b, Test c, Test d) {
    const __m256i lo = _mm256_or_si256(_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(c.lo, d.lo));
    const __m256i hi = _mm256_or_si256(_mm256_or_si256(a.hi, b.hi), _mm256_or_si256(c.hi, d.hi));
    const __m256i both = _mm256_or_si256(lo, hi);
    return !_mm256_testz_si256(both, both);
}
inline Line clear(Line x, Test t) { return {_mm256_andnot_ps(floats(t.lo), x.lo), _mm256_andnot_ps(floats(t.hi), x.hi)}; }
inline Line keep(Line x, Test t) { return {_mm256_and_ps(floats(t.lo), x.lo), _mm256_and_ps(floats(t.hi), x.hi)}; }

// PERMUTATION.lane[m]: the positions of the set bits of m, in order.
struct Permutation {
    alignas(8) uint8_t lane[256][8];
    constexpr Permutation() : lane() {
        for (int m = 0; m < 256; m++)
            for (int bit = 0, n = 0; bit < 8; bit++)
                if (m >> bit & 1) lane[m][n++] = uint8_t(bit);
    }
};
constexpr Permutation PERMUTATION;
inline __m256i permutation(unsigned mask) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(PERMUTATION.lane[mask])));
}

// Both write whole lines: 16 elements from `to` on may be overwritten.
inline void compress(float* to, Line x, unsigned mask) {
    const unsigned lo = mask & 0xff, hi = mask >> 8;
    _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(x.lo, permutation(lo)));
    _mm256_storeu_ps(to + __builtin_popcount(lo), _mm256_permutevar8x32_ps(x.hi, permutation(hi)));
}
inline void compress_index(uint32_t* to, uint32_t first, unsigned mask) {
    const unsigned lo = mask & 0xff, hi = mask >> 8;
    const __m256i a = _mm256_add_epi32(permutation(lo), _mm256_set1_epi32(int(first)));
    const __m256i b = _mm256_add_epi32(permutation(hi), _mm256_set1_epi32(int(first + 8)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + __builtin_popcount(lo)), b);
}

// Sixteen float64: element i of a line is lane i.
struct Doubles {
    __m256d v[4];
};
template <class F>
inline Doubles each(F f) {
    return {{f(0), f(1), f(2), f(3)}};
}
inline Doubles widen(Line x) {
    return {{_mm256_cvtps_pd(_mm256_castps256_ps128(x.lo)), _mm256_cvtps_pd(_mm256_extractf128_ps(x.lo, 1)),
             _mm256_cvtps_pd(_mm256_castps256_ps128(x.hi)), _mm256_cvtps_pd(_mm256_extractf128_ps(x.hi, 1))}};
}
inline Doubles doubles(double x) {
    return each([&](int) { return _mm256_set1_pd(x); });
}
inline Doubles operator+(Doubles a, Doubles b) {
    return each([&](int i) { return _mm256_add_pd(a.v[i], b.v[i]); });
}
inline Doubles operator-(Doubles a, Doubles b) {
    return each([&](int i) { return _mm256_sub_pd(a.v[i], b.v[i]); });
}
inline Doubles operator*(Doubles a, Doubles b) {
    return each([&](int i) { return _mm256_mul_pd(a.v[i], b.v[i]); });
}
inline Doubles wide(Test t) {
    return each([&](int i) {
        const __m256i half = i < 2 ? t.lo : t.hi;
        const __m128i quarter = i & 1 ? _mm256_extracti128_si256(half, 1) : _mm256_castsi256_si128(half);
        return _mm256_castsi256_pd(_mm256_cvtepi32_epi64(quarter));
    });
}
inline Doubles keep(Doubles x, Test t) {
    const Doubles m = wide(t);
    return each([&](int i) { return _mm256_and_pd(x.v[i], m.v[i]); });
}
inline Doubles choose(Test t, Doubles x, Doubles otherwise) {
    const Doubles m = wide(t);
    return each([&](int i) { return _mm256_blendv_pd(otherwise.v[i], x.v[i], m.v[i]); });
}
inline void store(double* p, Doubles x) {
    for (int i = 0; i < 4; i++) _mm256_storeu_pd(p + 4 * i, x.v[i]);
}

// Biased exponents of positive float64, summed.
struct Exponents {
    __m256i v;
};
inline Exponents no_exponents() { return {_mm256_setzero_si256()}; }
inline void add_exponents(Exponents& e, Doubles x) {
    for (int i = 0; i < 4; i++) e.v = _mm256_add_epi64(e.v, _mm256_srli_epi64(_mm256_castpd_si256(x.v[i]), 52));
}
inline int64_t total(Exponents e) {
    int64_t lane[4];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lane), e.v);
    return lane[0] + lane[1] + lane[2] + lane[3];
}
inline Doubles significand(Doubles x) {
    const __m256d fraction = _mm256_castsi256_pd(_mm256_set1_epi64x(0x000fffffffffffff));
    return each([&](int i) { return _mm256_or_pd(_mm256_and_pd(x.v[i], fraction), _mm256_set1_pd(1.0)); });
}

inline Line widen_bfloat16(const void* p) {
    const __m128i* q = static_cast<const __m128i*>(p);
    const __m256i lo = _mm256_cvtepu16_epi32(_mm_loadu_si128(q)), hi = _mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1));
    return {floats(_mm256_slli_epi32(lo, 16)), floats(_mm256_slli_epi32(hi, 16))};
}
inline Line widen_float16(const void* p) {
    const __m128i* q = static_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
inline __m256i rounded_bfloat16(__m256i x) {
    const __m256i upper = _mm256_srli_epi32(x, 16);
    const __m256i half = _mm256_add_epi32(_mm256_and_si256(upper, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(x, half), 16);
    const __m256i magnitudes = _mm256_and_si256(x, _mm256_set1_epi32(int(MAGNITUDE)));
    const __m256i nan = _mm256_cmpgt_epi32(magnitudes, _mm256_set1_epi32(int(INFINITE)));
    return _mm256_blendv_epi8(rounded, _mm256_or_si256(upper, _mm256_set1_epi32(0x40)), nan);
}
inline void narrow_bfloat16(uint16_t* p, Line x) {
    const __m256i words = _mm256_packus_epi32(rounded_bfloat16(bits(x.lo)), rounded_bfloat16(bits(x.hi)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(words, 0xd8));
}
inline void narrow_float16(uint16_t* p, Line x) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.lo, nearest));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p) + 1, _mm256_cvtps_ph(x.hi, nearest));
}

// Sixteen 32-bit integers.
struct Ints {
    __m256i lo, hi;
};
inline Ints ints(uint32_t x) { return {_mm256_set1_epi32(int(x)), _mm256_set1_epi32(int(x))}; }
inline Ints zero_to_fifteen() {
    return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}
inline Ints load_ints(const void* p) {
    const __m256i* q = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline void store(void* p, Ints x) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), x.lo);
    _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, x.hi);
}
inline void stream(void* p, Ints x) {
    _mm256_stream_si256(static_cast<__m256i*>(p), x.lo);
    _mm256_stream_si256(static_cast<__m256i*>(p) + 1, x.hi);
}
inline Ints operator+(Ints a, Ints b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline Ints operator-(Ints a, Ints b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
inline Ints operator*(Ints a, Ints b) { return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)}; }
inline Ints operator^(Ints a, Ints b) { return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
inline Ints operator&(Ints a, Ints b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
inline Ints operator|(Ints a, Ints b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
inline Ints operator<<(Ints x, int n) {
    const __m128i count = _mm_cvtsi32_si128(n);
    return {_mm256_sll_epi32(x.lo, count), _mm256_sll_epi32(x.hi, count)};
}
inline Ints operator>>(Ints x, int n) {
    const __m128i count = _mm_cvtsi32_si128(n);
    return {_mm256_srl_epi32(x.lo, count), _mm256_srl_epi32(x.hi, count)};
}
inline Ints shift_signed(Ints x, int n) {
    const __m128i count = _mm_cvtsi32_si128(n);
    return {_mm256_sra_epi32(x.lo, count), _mm256_sra_epi32(x.hi, count)};
}
inline Ints least(Ints a, Ints b) { return {_mm256_min_epu32(a.lo, b.lo), _mm256_min_epu32(a.hi, b.hi)}; }  // unsigned
inline __m256i multiply_high(__m256i a, __m256i b) {
    const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(a, b), 32);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
    return _mm256_blend_epi32(even, odd, 0xaa);
}
inline Ints multiply_high(Ints a, Ints b) {  // the upper halves of the unsigned products
    return {multiply_high(a.lo, b.lo), multiply_high(a.hi, b.hi)};
}
inline Ints set(Ints x, Ints bits, Test t) { return x | (bits & Ints{t.lo, t.hi}); }  // where t
inline Test none(Ints x, Ints of) {  // no bit of these
    const __m256i zero = _mm256_setzero_si256();
    const Ints y = x & of;
    return {_mm256_cmpeq_epi32(y.lo, zero), _mm256_cmpeq_epi32(y.hi, zero)};
}

inline Line choose(Test t, Line x, Line otherwise) {
    return {_mm256_blendv_ps(otherwise.lo, x.lo, floats(t.lo)), _mm256_blendv_ps(otherwise.hi, x.hi, floats(t.hi))};
}
inline Line lesser(Line x, Line limit) { return {_mm256_min_ps(x.lo, limit.lo), _mm256_min_ps(x.hi, limit.hi)}; }  // the limit for NaN
inline Line greater(Line x, Line limit) { return {_mm256_max_ps(x.lo, limit.lo), _mm256_max_ps(x.hi, limit.hi)}; }
inline Ints nearest(Line x) { return {_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi)}; }
inline Line floats(Ints x) { return {_mm256_cvtepi32_ps(x.lo), _mm256_cvtepi32_ps(x.hi)}; }

// Sixteen 64-bit integers, as their lower and their upper halves.
inline void split(const int64_t* p, uint64_t add, Ints& low, Ints& high) {
    const __m256i addend = _mm256_set1_epi64x(int64_t(add));
    const auto half = [&](const int64_t* q, __m256i& l, __m256i& h) {
        const __m256i* r = reinterpret_cast<const __m256i*>(q);
        const __m256 a = floats(_mm256_add_epi64(_mm256_loadu_si256(r), addend));
        const __m256 b = floats(_mm256_add_epi64(_mm256_loadu_si256(r + 1), addend));
        l = _mm256_permute4x64_epi64(bits(_mm256_shuffle_ps(a, b, 0x88)), 0xd8);
        h = _mm256_permute4x64_epi64(bits(_mm256_shuffle_ps(a, b, 0xdd)), 0xd8);
    };
    half(p, low.lo, high.lo);
    half(p + 8, low.hi, high.hi);
}
inline void join(Ints low, Ints high, uint64_t add, int64_t* p, bool streaming) {
    const __m256i addend = _mm256_set1_epi64x(int64_t(add));
    const auto half = [&](__m256i l, __m256i h, int64_t* q) {
        l = _mm256_permute4x64_epi64(l, 0xd8);
        h = _mm256_permute4x64_epi64(h, 0xd8);
        const __m256i a = _mm256_add_epi64(_mm256_unpacklo_epi32(l, h), addend);
        const __m256i b = _mm256_add_epi64(_mm256_unpackhi_epi32(l, h), addend);
        streaming ? stream(q, Ints{a, b}) : store(q, Ints{a, b});
    };
    half(low.lo, high.lo, p);
    half(low.hi, high.hi, p + 8);
}

inline void transpose_quarter(__m256* x) {
    __m256 t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {  // u[i + c]: elements c and c + 4 of lines i to i + 3
        u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int c = 0; c < 4; c++) {
        x[c] = _mm256_permute2f128_ps(u[c], u[c + 4], 0x20);
        x[c + 4] = _mm256_permute2f128_ps(u[c], u[c + 4], 0x31);
    }
}
// Line i becomes the elements i of all sixteen.
inline void transpose(Line* x) {
    __m256 part[4][8];  // upper left, upper right, lower left, lower right
    for (int i = 0; i < 8; i++) {
        part[0][i] = x[i].lo;
        part[1][i] = x[i].hi;
        part[2][i] = x[i + 8].lo;
        part[3][i] = x[i + 8].hi;
    }
    for (auto& p : part) transpose_quarter(p);
    for (int i = 0; i < 8; i++) {
        x[i] = {part[0][i], part[2][i]};
        x[i + 8] = {part[1][i], part[3][i]};
    }
}

// Sums of neighbours: elements 0 and 1 of a, 2 and 3, ..., then those of b.
inline __m256 add_pairs(__m256 a, __m256 b) {
    const __m256d sums = _mm256_castps_pd(_mm256_hadd_ps(a, b));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(sums, 0xd8));
}
inline Line add_pairs(Line a, Line b) { return {add_pairs(a.lo, a.hi), add_pairs(b.lo, b.hi)}; }
