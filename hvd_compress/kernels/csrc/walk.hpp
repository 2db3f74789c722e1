// Walking over a = memory + gradient, piece by piece, a cache line of the bucket at a time.
#pragma once

// Sums must stay in registers: what is inlined only late keeps its captured variables in memory.
#ifndef INLINE
#define INLINE __attribute__((always_inline))
#endif

struct Yes {
    static constexpr bool value = true;
};
struct No {
    static constexpr bool value = false;
};

// What is below the smallest normal number counts as zero: a memory that kept it would make every operation on it slow.
INLINE inline Line without_denormals(Line x) { return keep(x, above(magnitude(x), LARGEST_DENORMAL)); }

// One stretch of a bucket in which the gradient is contiguous; both pointers are indexed by the bucket's elements.
template <bool MEMORY, bool GRADIENT>
struct Source {
    const float *memory, *gradient;

    Line at(int64_t i) const {
        if constexpr (MEMORY && GRADIENT) return without_denormals(load(memory + i)) + load(gradient + i);
        if constexpr (MEMORY && !GRADIENT) return load(memory + i);
        if constexpr (!MEMORY && GRADIENT) return load(gradient + i);
        return zeros();
    }
    Line at(int64_t i, unsigned lanes) const {  // other lanes are zero, and not read
        if constexpr (MEMORY && GRADIENT) return without_denormals(load(memory + i, lanes)) + load(gradient + i, lanes);
        if constexpr (MEMORY && !GRADIENT) return load(memory + i, lanes);
        if constexpr (!MEMORY && GRADIENT) return load(gradient + i, lanes);
        return zeros();
    }
};

// body(source, begin, end) for every piece that is not empty, in order.
template <class Body>
INLINE inline void for_pieces(const Input& in, Body body) {
    if (in.count == 0) {
        if (in.d == 0) return;
        if (in.memory) body(Source<true, false>{in.memory, nullptr}, int64_t(0), in.d);
        else body(Source<false, false>{nullptr, nullptr}, int64_t(0), in.d);
        return;
    }
    int64_t begin = 0;
    for (int64_t j = 0; j < in.count; j++) {
        const int64_t end = in.ends[j];
        if (end == begin) continue;
        const float* gradient = in.pieces[j] - begin;
        if (in.memory) body(Source<true, true>{in.memory, gradient}, begin, end);
        else body(Source<false, true>{nullptr, gradient}, begin, end);
        begin = end;
    }
}

// The lanes of the line at i (a multiple of 16) that lie in [begin, end).
inline unsigned lanes_of(int64_t i, int64_t begin, int64_t end) {
    unsigned mask = 0xffff;
    if (begin > i) mask &= 0xffffu << (begin - i);
    if (end < i + LANES) mask &= (1u << (end - i)) - 1;
    return mask & 0xffff;
}

// full(i) for whole lines of [begin, end), part(i, lanes) for a first and a last one that are not.
template <class Full, class Part>
INLINE inline void for_lines(int64_t begin, int64_t end, Full full, Part part) {
    int64_t i = begin & ~(LANES - 1);
    if (i != begin) {
        part(i, lanes_of(i, begin, end));
        i += LANES;
    }
    for (; i + LANES <= end; i += LANES) full(i);
    if (i < end) part(i, lanes_of(i, i, end));
}

// Non-temporal stores skip reading the line that they overwrite, and pay where `bytes` outgrow the caches.
constexpr int64_t STREAM_BYTES = 6 << 20;
inline bool streams(const void* p, int64_t bytes) { return bytes >= STREAM_BYTES && reinterpret_cast<uintptr_t>(p) % 64 == 0; }
