// Sixteen float32 in one register. Masks live in mask registers.
#pragma once

struct Line {
    __m512 v;
};
using Test = __mmask16;

inline __m512i bits(Line x) { return _mm512_castps_si512(x.v); }
inline Line from_bits(__m512i x) { return {_mm512_castsi512_ps(x)}; }

inline Line zeros() { return {_mm512_setzero_ps()}; }
inline Line all(float x) { return {_mm512_set1_ps(x)}; }
inline Line load(const void* p) { return {_mm512_loadu_ps(p)}; }
inline Line load(const float* p, unsigned lanes) { return {_mm512_maskz_loadu_ps(__mmask16(lanes), p)}; }
inline void store(float* p, Line x) { _mm512_storeu_ps(p, x.v); }
inline void store(float* p, Line x, unsigned lanes) { _mm512_mask_storeu_ps(p, __mmask16(lanes), x.v); }
inline void stream(float* p, Line x) { _mm512_stream_ps(p, x.v); }
inline void fence() { _mm_sfence(); }

inline Line operator+(Line a, Line b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Line operator-(Line a, Line b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Line operator*(Line a, Line b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Line magnitude(Line x) { return from_bits(_mm512_and_si512(bits(x), _mm512_set1_epi32(int(MAGNITUDE)))); }
inline Line max_bits(Line a, Line b) { return from_bits(_mm512_max_epi32(bits(a), bits(b))); }
inline Line min_bits(Line a, Line b) { return from_bits(_mm512_min_epi32(bits(a), bits(b))); }

inline Test above(Line magnitudes, uint32_t t) { return _mm512_cmpgt_epi32_mask(bits(magnitudes), _mm512_set1_epi32(int(t))); }
inline Test above(Line x, Line t) { return _mm512_cmp_ps_mask(x.v, t.v, _CMP_GT_OQ); }
inline Test lanes(unsigned mask) { return Test(mask); }
inline Test both(Test a, Test b) { return Test(a & b); }
inline unsigned mask_of(Test t) { return t; }
inline bool any(Test a, Test b, Test c, Test d) { return ((a | b) | (c | d)) != 0; }
inline Line clear(Line x, Test t) { return {_mm512_maskz_mov_ps(_knot_mask16(t), x.v)}; }
inline Line keep(Line x, Test t) { return {_mm512_maskz_mov_ps(t, x.v)}; }

// Both write whole lines: 16 elements from `to` on are overwritten.
inline void compress(float* to, Line x, unsigned mask) {
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(__mmask16(mask), x.v));
}
inline void compress_index(uint32_t* to, uint32_t first, unsigned mask) {
    const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i index = _mm512_add_epi32(iota, _mm512_set1_epi32(int(first)));
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(__mmask16(mask), index));
}

// Sixteen float64: element i of a line is lane i.
struct Doubles {
    __m512d lo, hi;
};
inline Doubles widen(Line x) {
    return {_mm512_cvtps_pd(_mm512_castps512_ps256(x.v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(x.v, 1))};
}
inline Doubles doubles(double x) { return {_mm512_set1_pd(x), _mm512_set1_pd(x)}; }
inline Doubles operator+(Doubles a, Doubles b) { return {_mm512_add_pd(a.lo, b.lo), _mm512_add_pd(a.hi, b.hi)}; }
inline Doubles operator-(Doubles a, Doubles b) { return {_mm512_sub_pd(a.lo, b.lo), _mm512_sub_pd(a.hi, b.hi)}; }
inline Doubles operator*(Doubles a, Doubles b) { return {_mm512_mul_pd(a.lo, b.lo), _mm512_mul_pd(a.hi, b.hi)}; }
inline Doubles keep(Doubles x, Test t) {
    return {_mm512_maskz_mov_pd(__mmask8(t), x.lo), _mm512_maskz_mov_pd(__mmask8(t >> 8), x.hi)};
}
inline Doubles choose(Test t, Doubles x, Doubles otherwise) {
    return {_mm512_mask_mov_pd(otherwise.lo, __mmask8(t), x.lo), _mm512_mask_mov_pd(otherwise.hi, __mmask8(t >> 8), x.hi)};
}
inline void store(double* p, Doubles x) {
    _mm512_storeu_pd(p, x.lo);
    _mm512_storeu_pd(p + 8, x.hi);
}

// Biased exponents of positive float64, summed per lane.
struct Exponents {
    __m512i lo, hi;
};
inline Exponents no_exponents() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
inline void add_exponents(Exponents& e, Doubles x) {
    e.lo = _mm512_add_epi64(e.lo, _mm512_srli_epi64(_mm512_castpd_si512(x.lo), 52));
    e.hi = _mm512_add_epi64(e.hi, _mm512_srli_epi64(_mm512_castpd_si512(x.hi), 52));
}
inline int64_t total(Exponents e) { return _mm512_reduce_add_epi64(_mm512_add_epi64(e.lo, e.hi)); }
inline __m512d significand(__m512d x) {
    const __m512i fraction = _mm512_and_si512(_mm512_castpd_si512(x), _mm512_set1_epi64(0x000fffffffffffff));
    return _mm512_castsi512_pd(_mm512_or_si512(fraction, _mm512_set1_epi64(0x3ff0000000000000)));
}
inline Doubles significand(Doubles x) { return {significand(x.lo), significand(x.hi)}; }

inline Line widen_bfloat16(const void* p) {
    const __m256i words = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    return from_bits(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}
inline Line widen_float16(const void* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))}; }
inline void narrow_bfloat16(uint16_t* p, Line x) {  // not vcvtneps2bf16, which flushes denormals
    const __m512i upper = _mm512_srli_epi32(bits(x), 16);
    const __m512i half = _mm512_add_epi32(_mm512_and_si512(upper, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits(x), half), 16);
    const __m512i words = _mm512_mask_or_epi32(rounded, above(magnitude(x), INFINITE), upper, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(words));
}
inline void narrow_float16(uint16_t* p, Line x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Sixteen 32-bit integers.
struct Ints {
    __m512i v;
};
inline Ints ints(uint32_t x) { return {_mm512_set1_epi32(int(x))}; }
inline Ints zero_to_fifteen() { return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }
inline Ints load_ints(const void* p) { return {_mm512_loadu_si512(p)}; }
inline void store(void* p, Ints x) { _mm512_storeu_si512(p, x.v); }
inline void stream(void* p, Ints x) { _mm512_stream_si512(static_cast<__m512i*>(p), x.v); }
inline Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Ints operator-(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline Ints operator*(Ints a, Ints b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline Ints operator^(Ints a, Ints b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline Ints operator&(Ints a, Ints b) { return {_mm512_and_si512(a.v, b.v)}; }
inline Ints operator|(Ints a, Ints b) { return {_mm512_or_si512(a.v, b.v)}; }
inline Ints operator<<(Ints x, int n) { return {_mm512_sll_epi32(x.v, _mm_cvtsi32_si128(n))}; }
inline Ints operator>>(Ints x, int n) { return {_mm512_srl_epi32(x.v, _mm_cvtsi32_si128(n))}; }
inline Ints shift_signed(Ints x, int n) { return {_mm512_sra_epi32(x.v, _mm_cvtsi32_si128(n))}; }
inline Ints least(Ints a, Ints b) { return {_mm512_min_epu32(a.v, b.v)}; }  // unsigned
inline Ints multiply_high(Ints a, Ints b) {  // the upper halves of the unsigned products
    const __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(a.v, b.v), 32);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), _mm512_srli_epi64(b.v, 32));
    return {_mm512_mask_mov_epi32(even, 0xaaaa, odd)};
}
inline Ints set(Ints x, Ints bits, Test t) { return {_mm512_mask_or_epi32(x.v, t, x.v, bits.v)}; }  // where t
inline Test none(Ints x, Ints of) { return _mm512_testn_epi32_mask(x.v, of.v); }  // no bit of these

inline Line choose(Test t, Line x, Line otherwise) { return {_mm512_mask_mov_ps(otherwise.v, t, x.v)}; }
inline Line lesser(Line x, Line limit) { return {_mm512_min_ps(x.v, limit.v)}; }  // the limit for NaN
inline Line greater(Line x, Line limit) { return {_mm512_max_ps(x.v, limit.v)}; }
inline Ints nearest(Line x) { return {_mm512_cvtps_epi32(x.v)}; }
inline Line floats(Ints x) { return {_mm512_cvtepi32_ps(x.v)}; }

// Sixteen 64-bit integers, as their lower and their upper halves.
inline void split(const int64_t* p, uint64_t add, Ints& low, Ints& high) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1)), addend = _mm512_set1_epi64(int64_t(add));
    const __m512i a = _mm512_add_epi64(_mm512_loadu_si512(p), addend), b = _mm512_add_epi64(_mm512_loadu_si512(p + 8), addend);
    low.v = _mm512_permutex2var_epi32(a, even, b);
    high.v = _mm512_permutex2var_epi32(a, odd, b);
}
inline void join(Ints low, Ints high, uint64_t add, int64_t* p, bool streaming) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8)), addend = _mm512_set1_epi64(int64_t(add));
    const Ints a{_mm512_add_epi64(_mm512_permutex2var_epi32(low.v, first, high.v), addend)};
    const Ints b{_mm512_add_epi64(_mm512_permutex2var_epi32(low.v, second, high.v), addend)};
    streaming ? stream(p, a) : store(p, a);
    streaming ? stream(p + 8, b) : store(p + 8, b);
}

// Line i becomes the elements i of all sixteen.
inline void transpose(Line* x) {
    __m512 t[16], u[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(x[i].v, x[i + 1].v);
        t[i + 1] = _mm512_unpackhi_ps(x[i].v, x[i + 1].v);
    }
    const auto pair = [](__m512 a, __m512 b, bool upper) {
        const __m512d p = _mm512_castps_pd(a), q = _mm512_castps_pd(b);
        return _mm512_castpd_ps(upper ? _mm512_unpackhi_pd(p, q) : _mm512_unpacklo_pd(p, q));
    };
    for (int i = 0; i < 16; i += 4) {  // u[i + c]: elements c, c + 4, c + 8, c + 12 of lines i to i + 3
        u[i] = pair(t[i], t[i + 2], false);
        u[i + 1] = pair(t[i], t[i + 2], true);
        u[i + 2] = pair(t[i + 1], t[i + 3], false);
        u[i + 3] = pair(t[i + 1], t[i + 3], true);
    }
    for (int c = 0; c < 4; c++) {
        const __m512 a = _mm512_shuffle_f32x4(u[c], u[c + 4], 0x44), b = _mm512_shuffle_f32x4(u[c + 8], u[c + 12], 0x44);
        const __m512 d = _mm512_shuffle_f32x4(u[c], u[c + 4], 0xee), e = _mm512_shuffle_f32x4(u[c + 8], u[c + 12], 0xee);
        x[c].v = _mm512_shuffle_f32x4(a, b, 0x88);
        x[c + 4].v = _mm512_shuffle_f32x4(a, b, 0xdd);
        x[c + 8].v = _mm512_shuffle_f32x4(d, e, 0x88);
        x[c + 12].v = _mm512_shuffle_f32x4(d, e, 0xdd);
    }
}

// Sums of neighbours: elements 0 and 1 of a, 2 and 3, ..., then those of b.
inline Line add_pairs(Line a, Line b) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return {_mm512_add_ps(_mm512_permutex2var_ps(a.v, even, b.v), _mm512_permutex2var_ps(a.v, odd, b.v))};
}
