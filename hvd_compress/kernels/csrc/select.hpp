// Exact selection: the k-th largest by a radix search over bits, and the fused pass that keeps the largest elements.
#pragma once

inline Line magnitude_at(const float* x, int64_t i, int64_t n) {
    return magnitude(i + LANES <= n ? load(x + i) : load(x + i, lanes_of(i, i, n)));
}

struct Range {
    uint32_t low, high;
};

// Smallest and largest magnitude bits of n >= 1 elements.
inline Range range_of(const float* x, int64_t n) {
    uint32_t first;
    memcpy(&first, x, 4);
    float seed;
    first &= MAGNITUDE;
    memcpy(&seed, &first, 4);
    Line low = all(seed), high = low;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const Line m = magnitude(load(x + i));
        low = min_bits(low, m);
        high = max_bits(high, m);
    }
    float lane[16];
    store(lane, low);
    Range r{first, largest_bits(high)};
    for (float l : lane) {
        uint32_t b;
        memcpy(&b, &l, 4);
        if (b < r.low) r.low = b;
    }
    for (; i < n; i++) {
        uint32_t b;
        memcpy(&b, x + i, 4);
        b &= MAGNITUDE;
        if (b < r.low) r.low = b;
        if (b > r.high) r.high = b;
    }
    return r;
}

// Bits of the k-th largest magnitude of x, given the range of all of them. Every round cuts the range into up to 2048
// bins, finds the bin that holds the k-th, and goes on with that bin's elements only.
inline uint32_t kth_bits(const float* x, int64_t n, int64_t k, Range range) {
    float* to = nullptr;
    while (range.low < range.high) {
        const int wanted = n >= 1024 ? 11 : 7;
        int shift = 32 - __builtin_clz(range.high - range.low) - wanted;
        if (shift < 0) shift = 0;
        // Four histograms, so that equal neighbours do not wait for each other.
        uint32_t bins[4][2048];
        const int64_t used = int64_t((range.high - range.low) >> shift) + 1;
        for (auto& b : bins) memset(b, 0, size_t(used) * 4);
        const auto bin = [&](int64_t i) INLINE {
            uint32_t b;
            memcpy(&b, x + i, 4);
            return ((b & MAGNITUDE) - range.low) >> shift;
        };
        int64_t i = 0;
        for (; i + 4 <= n; i += 4) {
            bins[0][bin(i)]++;
            bins[1][bin(i + 1)]++;
            bins[2][bin(i + 2)]++;
            bins[3][bin(i + 3)]++;
        }
        for (; i < n; i++) bins[0][bin(i)]++;
        int64_t b = used, inside = 0;
        for (;;) {
            b--;
            inside = int64_t(bins[0][b]) + bins[1][b] + bins[2][b] + bins[3][b];
            if (inside >= k) break;
            k -= inside;
        }
        const uint32_t low = range.low + (uint32_t(b) << shift), width = (1u << shift) - 1;
        if (shift == 0) return low;
        range = {low, range.high - low < width ? range.high : low + width};
        if (inside == n) continue;
        // In place from the second round on: a line is written no further than it has been read.
        if (!to) to = static_cast<float*>(scratch(SORTING, size_t(n + LANES) * 4));
        int64_t kept = 0;
        for (i = 0; i < n; i += LANES) {
            const Line m = magnitude_at(x, i, n);
            unsigned mask = mask_of(above(m, range.low - 1)) & ~mask_of(above(m, range.high));
            mask &= lanes_of(i, i, n);
            if (!mask) continue;
            compress(to + kept, m, mask);
            kept += __builtin_popcount(mask);
        }
        x = to;
        n = kept;
    }
    return range.low;
}

// Few of many: a running threshold lets through ever fewer elements, and only those are searched.
inline uint32_t kth_of_many(const float* x, int64_t n, int64_t k) {
    const int64_t room = 2 * k + 4096;
    float* kept = static_cast<float*>(scratch(STREAMING, size_t(room + SLACK) * 4));
    int64_t filled = 0;
    uint32_t limit = ~0u;  // -1: everything passes
    for (int64_t i = 0; i < n; i += GROUP) {
        if (i + GROUP <= n) {
            const Line a = magnitude(load(x + i)), b = magnitude(load(x + i + 16));
            const Line c = magnitude(load(x + i + 32)), d = magnitude(load(x + i + 48));
            const Test ta = above(a, limit), tb = above(b, limit), tc = above(c, limit), td = above(d, limit);
            if (!any(ta, tb, tc, td)) continue;
            const auto emit = [&](Line line, Test test) INLINE {
                const unsigned mask = mask_of(test);
                compress(kept + filled, line, mask);
                filled += __builtin_popcount(mask);
            };
            emit(a, ta), emit(b, tb), emit(c, tc), emit(d, td);
        } else {
            for (int64_t j = i; j < n; j++) {
                uint32_t b;
                memcpy(&b, x + j, 4);
                b &= MAGNITUDE;
                if (int32_t(b) > int32_t(limit)) memcpy(kept + filled++, &b, 4);
            }
        }
        if (filled <= room) continue;
        limit = kth_bits(kept, filled, k, range_of(kept, filled));
        int64_t above_limit = 0;
        for (int64_t j = 0; j < filled; j++) {
            uint32_t b;
            memcpy(&b, kept + j, 4);
            kept[above_limit] = kept[j];
            above_limit += b > limit;
        }
        for (; above_limit < k; above_limit++) memcpy(kept + above_limit, &limit, 4);
        filled = k;
    }
    return kth_bits(kept, filled, k, range_of(kept, filled));
}

uint32_t kth_largest(const float* x, int64_t n, int64_t k) {
    if (n >= 16384 && n / 8 >= k) return kth_of_many(x, n, k);
    return kth_bits(x, n, k, range_of(x, n));
}

struct Candidates {
    uint32_t* indices;
    float* values;
    int64_t n, room;             // filled, and the fill at which to prune
    uint32_t threshold, limit;   // the caller's, and the one that rises as candidates are pruned
    int64_t found;               // counted separately once limit > threshold
};

inline void emit(Candidates& c, Line x, int64_t i, unsigned mask) {
    compress(c.values + c.n, x, mask);
    compress_index(c.indices + c.n, uint32_t(i), mask);
    c.n += __builtin_popcount(mask);
}

enum Output { NOTHING, STORE, STREAM };

// From i to end, or until the candidates fill up; returns where it stopped.
template <Output OUTPUT, bool COUNT, class A>
inline int64_t scan(A a, float* out, int64_t i, int64_t end, Candidates& candidates) {
    Candidates c = candidates;
    while (i < end && c.n <= c.room) {
        const int64_t line = i & ~(LANES - 1);
        if (line != i || end - i < GROUP) {
            const unsigned lanes_here = lanes_of(line, i, end);
            const Line x = a.at(line, lanes_here), m = magnitude(x);
            const Test test = above(m, c.limit);
            if (OUTPUT != NOTHING) store(out + line, clear(x, test), lanes_here);
            if (COUNT) c.found += __builtin_popcount(mask_of(above(m, c.threshold)));
            emit(c, x, line, mask_of(test));
            i = line + LANES < end ? line + LANES : end;
            continue;
        }
        const int64_t last = end - GROUP;
        for (; i <= last; i += GROUP) {
            const Line x0 = a.at(i), x1 = a.at(i + 16), x2 = a.at(i + 32), x3 = a.at(i + 48);
            const Line m0 = magnitude(x0), m1 = magnitude(x1), m2 = magnitude(x2), m3 = magnitude(x3);
            const Test t0 = above(m0, c.limit), t1 = above(m1, c.limit), t2 = above(m2, c.limit), t3 = above(m3, c.limit);
            const auto put = [&](int64_t at, Line x, Test test) INLINE {
                if (OUTPUT == STREAM) stream(out + at, clear(x, test));
                if (OUTPUT == STORE) store(out + at, clear(x, test));
            };
            // Before the branch: a misprediction must not hold up the stores.
            put(i, x0, t0), put(i + 16, x1, t1), put(i + 32, x2, t2), put(i + 48, x3, t3);
            if (COUNT) {
                const auto counted = [&](Line m) INLINE { return __builtin_popcount(mask_of(above(m, c.threshold))); };
                c.found += counted(m0) + counted(m1) + counted(m2) + counted(m3);
            }
            if (any(t0, t1, t2, t3)) {
                emit(c, x0, i, mask_of(t0));
                emit(c, x1, i + 16, mask_of(t1));
                emit(c, x2, i + 32, mask_of(t2));
                emit(c, x3, i + 48, mask_of(t3));
                if (c.n > c.room) {
                    i += GROUP;
                    break;
                }
            }
        }
    }
    candidates = c;
    return i;
}

// Keep the `capacity` largest candidates (of equal ones the first), and put the others back. False if one is not finite.
inline bool prune(Candidates& c, int64_t capacity, float* out) {
    if (c.n == 0) return true;
    const Range range = range_of(c.values, c.n);
    if (range.high > LARGEST_FINITE) return false;
    if (c.n <= capacity) return true;
    c.limit = kth_bits(c.values, c.n, capacity, range);
    int64_t greater = 0;
    for (int64_t i = 0; i < c.n; i += LANES) {
        const unsigned mask = mask_of(above(magnitude_at(c.values, i, c.n), c.limit));
        greater += __builtin_popcount(mask & lanes_of(i, i, c.n));
    }
    int64_t ties = capacity - greater, kept = 0;
    constexpr int64_t AHEAD = 48;
    for (int64_t i = 0; i < c.n; i += LANES) {
        const unsigned here = lanes_of(i, i, c.n);
        const Line x = here == 0xffff ? load(c.values + i) : load(c.values + i, here);
        const Line m = magnitude(x);
        unsigned keep_mask = mask_of(above(m, c.limit)) & here;
        unsigned equal = mask_of(above(m, c.limit - 1)) & here & ~keep_mask;
        for (; equal && ties > 0; equal &= equal - 1, ties--) keep_mask |= equal & (0u - equal);
        for (unsigned dropped = out ? here & ~keep_mask : 0; dropped; dropped &= dropped - 1) {
            const int64_t j = i + __builtin_ctz(dropped);
            out[c.indices[j]] = c.values[j];
        }
        if (out && i + AHEAD < c.n) {  // what will be dropped, ties aside
            const unsigned there = lanes_of(i + AHEAD, i + AHEAD, c.n);
            unsigned next = ~mask_of(above(magnitude_at(c.values, i + AHEAD, c.n), c.limit)) & there;
            for (; next; next &= next - 1) __builtin_prefetch(out + c.indices[i + AHEAD + __builtin_ctz(next)], 1);
        }
        const Line indices = load(c.indices + i);  // the workspace is longer than its last line
        compress(c.values + kept, x, keep_mask);
        compress(reinterpret_cast<float*>(c.indices + kept), indices, keep_mask);
        kept += __builtin_popcount(keep_mask);
    }
    c.n = kept;
    return true;
}

// `walk` calls what it is given with (a, begin, end) for every stretch of the elements.
template <Output OUTPUT, class Walk>
inline Selection select_from(Walk walk, float* out, Candidates c, int64_t capacity) {
    bool counting = false, finite = true;
    if (capacity == 0) {
        counting = true;
        c.limit = LARGEST_FINITE;
    }
    walk([&](auto a, int64_t i, int64_t end) INLINE {
        while (i < end && finite) {
            i = counting ? scan<OUTPUT, true>(a, out, i, end, c) : scan<OUTPUT, false>(a, out, i, end, c);
            if (c.n <= c.room) continue;
            if (!counting) c.found = c.n;
            counting = true;
            finite = prune(c, capacity, out);
        }
    });
    if (OUTPUT == STREAM) fence();
    if (!counting) c.found = c.n;
    if (!finite || !prune(c, capacity, out)) return {0, 0, false};
    return {c.found, c.n, true};
}

Selection select(const Input& in, float* out, uint32_t threshold, int64_t capacity, uint32_t* indices, float* values,
                 int64_t space) {
    // What is not finite exceeds every limit, and so is found among the candidates; also with an infinite threshold.
    if (threshold > LARGEST_FINITE) threshold = LARGEST_FINITE;
    const Candidates c{indices, values, 0, space - SLACK, threshold, threshold, 0};
    const bool apart = out != in.memory;
    const auto walk = [&](auto body) INLINE { for_pieces(in, body); };
    return apart && streams(out, in.d * 4) ? select_from<STREAM>(walk, out, c, capacity) : select_from<STORE>(walk, out, c, capacity);
}
