// Sums over magnitudes: add, sample, exceedances, log_sum; and momentum correction.
#pragma once

inline double fold(Doubles x) {
    double s[16];
    store(s, x);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) s[i] += s[i + half];
    return s[0];
}

inline uint32_t largest_bits(Line x) {
    float lane[16];
    store(lane, x);
    uint32_t largest = 0;
    for (int i = 0; i < 16; i++) {
        uint32_t b;
        memcpy(&b, lane + i, 4);
        if (b > largest) largest = b;
    }
    return largest;
}

struct Sums {
    Doubles total = doubles(0.0), squares = doubles(0.0);
    Line largest = zeros();

    INLINE void add(Line magnitudes) {
        const Doubles x = widen(magnitudes);
        total = total + x;
        squares = squares + x * x;
        largest = max_bits(largest, magnitudes);
    }
    Moments result(int64_t count) const {
        const uint32_t b = largest_bits(largest);
        Moments m{count, fold(total), fold(squares), 0.0f};
        memcpy(&m.largest, &b, 4);
        return m;
    }
};

template <bool STREAM>
inline Moments add_to(const Input& in, float* out) {
    Sums sums;
    for_pieces(in, [&](auto a, int64_t begin, int64_t end) INLINE {
        Sums s = sums;
        for_lines(
            begin, end,
            [&](int64_t i) INLINE {
                const Line x = a.at(i);
                STREAM ? stream(out + i, x) : store(out + i, x);
                s.add(magnitude(x));
            },
            [&](int64_t i, unsigned lanes) INLINE {
                const Line x = a.at(i, lanes);
                store(out + i, x, lanes);
                s.add(magnitude(x));
            });
        sums = s;
    });
    if (STREAM) fence();
    return sums.result(in.d);
}

Moments add(const Input& in, float* out) {
    const bool apart = out != in.memory;
    return apart && streams(out, in.d * 4) ? add_to<true>(in, out) : add_to<false>(in, out);
}

// The largest magnitude, or the sum of the squares.
double norm(const Input& gradient, bool euclidean) {
    Line largest = zeros();
    Doubles squares = doubles(0.0);
    const auto pass = [&](auto sum) INLINE {
        for_pieces(gradient, [&](auto g, int64_t begin, int64_t end) INLINE {
            for_lines(
                begin, end, [&](int64_t i) INLINE { sum(g.at(i)); },
                [&](int64_t i, unsigned lanes) INLINE { sum(g.at(i, lanes)); });
        });
    };
    if (!euclidean) {
        pass([&](Line x) INLINE { largest = max_bits(largest, magnitude(x)); });
        const uint32_t b = largest_bits(largest);
        float result;
        memcpy(&result, &b, 4);
        return double(result);
    }
    pass([&](Line x) INLINE {
        const Doubles wide_line = widen(x);
        squares = squares + wide_line * wide_line;
    });
    return fold(squares);
}

bool add_momentum(
    const Input& gradient, const float* u, const float* v, float beta, bool nesterov, float* u_out, float* v_out) {
    Line largest_u = zeros(), largest_v = zeros();
    const Line factor = all(beta);
    for_pieces(gradient, [&](auto g, int64_t begin, int64_t end) INLINE {
        const auto step = [&](Line momentum, Line velocity, Line x, Line& v_new) INLINE {
            momentum = without_denormals(momentum);
            velocity = without_denormals(velocity);
            Line u_new = momentum * factor;
            if (gradient.count) u_new = u_new + x;
            Line applied = u_new;
            if (nesterov) applied = gradient.count ? u_new * factor + x : u_new * factor;
            v_new = velocity + applied;
            largest_u = max_bits(largest_u, magnitude(u_new));
            largest_v = max_bits(largest_v, magnitude(v_new));
            return u_new;
        };
        for_lines(
            begin, end,
            [&](int64_t i) INLINE {
                Line v_new;
                store(u_out + i, step(load(u + i), load(v + i), g.at(i), v_new));
                store(v_out + i, v_new);
            },
            [&](int64_t i, unsigned lanes) INLINE {
                Line v_new;
                store(u_out + i, step(load(u + i, lanes), load(v + i, lanes), g.at(i, lanes), v_new), lanes);
                store(v_out + i, v_new, lanes);
            });
    });
    float u_bound, v_bound;
    const uint32_t u_bits = largest_bits(largest_u), v_bits = largest_bits(largest_v);
    memcpy(&u_bound, &u_bits, 4);
    memcpy(&v_bound, &v_bits, 4);
    const float coming = beta / (1 - beta);
    return v_bound + u_bound * (nesterov ? coming * beta : coming) < SAFE_VELOCITY;
}

inline uint64_t hash64(uint64_t key, uint64_t counter) {
    uint64_t z = key + (counter + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
inline uint64_t hash32(uint64_t key, uint64_t counter) { return hash64(key, counter) >> 32; }

// The piece that holds an element; elements are asked for in ascending order.
struct Cursor {
    const Input& in;
    int64_t piece = 0, begin = 0;

    void seek(int64_t i) {
        while (in.ends[piece] <= i) begin = in.ends[piece++];
    }
    const float* at(int64_t i) {
        seek(i);
        return in.pieces[piece] + (i - begin);
    }
    Line line(int64_t i) {
        const float* p = at(i);
        if (i + LANES <= in.ends[piece]) return load(p);
        float lane[16];
        for (int64_t n = 0; n < LANES; n++) lane[n] = *at(i + n);
        return load(lane);
    }
};

Moments sample(const Input& in, uint64_t key, int64_t lines, float* out) {
    const int64_t whole = in.d / LANES;
    Sums sums;
    if (lines >= whole) {
        for_pieces(in, [&](auto a, int64_t begin, int64_t end) INLINE {
            for_lines(
                begin, end,
                [&](int64_t i) INLINE {
                    const Line x = magnitude(a.at(i));
                    store(out + i, x);
                    sums.add(x);
                },
                [&](int64_t i, unsigned lanes) INLINE {
                    const Line x = magnitude(a.at(i, lanes));
                    store(out + i, x, lanes);
                    sums.add(x);
                });
        });
        return sums.result(in.d);
    }
    if (lines == 0) return sums.result(0);

    // A miss takes far longer than the work on a line: choose and prefetch AHEAD lines before they are read.
    constexpr int64_t AHEAD = 32;
    int64_t chosen[AHEAD];
    Cursor fetched{in}, read{in};
    const int64_t quotient = whole / lines, remainder = whole % lines;
    int64_t low = 0, fraction = 0;  // the stratum begins at low + fraction / lines
    const auto choose = [&](int64_t i) INLINE {
        const int64_t from = low;
        low += quotient;
        fraction += remainder;
        if (fraction >= lines) {
            fraction -= lines;
            low++;
        }
        const int64_t at = LANES * (from + int64_t(hash32(key, uint64_t(i)) * uint64_t(low - from) >> 32));
        if (in.memory) __builtin_prefetch(in.memory + at);
        if (in.count) {
            const float* p = fetched.at(at);
            __builtin_prefetch(p);
            __builtin_prefetch(p + LANES - 1);
        }
        chosen[i % AHEAD] = at;
    };
    for (int64_t i = 0; i < AHEAD && i < lines; i++) choose(i);
    for (int64_t i = 0; i < lines; i++) {
        const int64_t at = chosen[i % AHEAD];
        if (i + AHEAD < lines) choose(i + AHEAD);
        Line x = in.memory ? load(in.memory + at) : zeros();
        if (in.count) x = in.memory ? without_denormals(x) + read.line(at) : read.line(at);
        x = magnitude(x);
        store(out + i * LANES, x);
        sums.add(x);
    }
    return sums.result(lines * LANES);
}

Moments exceedances(const float* x, int64_t n, float threshold, float* out) {
    const Line limit = all(threshold);
    const Doubles subtrahend = doubles(double(threshold));
    Doubles total = doubles(0.0), squares = total;
    Line largest = zeros();
    int64_t count = 0, summed = 0;
    const auto sum = [&](Line line, Test test) INLINE {
        const Doubles excess = keep(widen(line) - subtrahend, test);
        total = total + excess;
        squares = squares + excess * excess;
        largest = max_bits(largest, line);
    };
    // Compact a chunk, then sum what it left while that is in the cache: there is less of it. In place too, lines are
    // written no further than they have been read.
    constexpr int64_t CHUNK = 4096;
    int64_t i = 0;
    while (i + LANES <= n) {
        const int64_t left = (n - i) & ~(LANES - 1), end = i + (left < CHUNK ? left : CHUNK);
        const auto take = [&](Line line, Test test) INLINE {
            const unsigned mask = mask_of(test);
            compress(out + count, line, mask);
            count += __builtin_popcount(mask);
        };
        for (; i + GROUP <= end; i += GROUP) {
            const Line a = load(x + i), b = load(x + i + 16), c = load(x + i + 32), d = load(x + i + 48);
            const Test ta = above(a, limit), tb = above(b, limit), tc = above(c, limit), td = above(d, limit);
            if (any(ta, tb, tc, td)) take(a, ta), take(b, tb), take(c, tc), take(d, td);
        }
        for (; i < end; i += LANES) take(load(x + i), above(load(x + i), limit));
        for (; summed + LANES <= count; summed += LANES) sum(load(out + summed), lanes(0xffff));
    }
    for (; i < n; i++)
        if (x[i] > threshold) out[count++] = x[i];
    for (; summed < count; summed += LANES) {
        const unsigned here = lanes_of(summed, summed, count);
        sum(load(out + summed, here), lanes(here));
    }
    const uint32_t b = largest_bits(largest);
    float most;
    memcpy(&most, &b, 4);
    return {count, fold(total), fold(squares), count ? float(double(most) - double(threshold)) : 0.0f};
}

// products: 16 for each chunk of LOG_ROWS lines. Returns the count of the positive elements.
int64_t log_sum(const float* x, int64_t n, int64_t* exponents, double* products) {
    int64_t count = 0, filled = 0;
    Exponents sum = no_exponents();
    const Doubles one = doubles(1.0);
    const auto step = [&](Line line, Doubles& product) INLINE {
        const Test positive = above(line, zeros());
        const Doubles wide_line = choose(positive, widen(line), one);
        count += __builtin_popcount(mask_of(positive));
        filled += LANES;
        add_exponents(sum, wide_line);
        product = product * significand(wide_line);
    };
    for (int64_t chunk = 0; chunk < n; chunk += LOG_ROWS * LANES, products += LANES) {
        const int64_t left = n - chunk, end = chunk + (left < LOG_ROWS * LANES ? left : LOG_ROWS * LANES);
        Doubles product = one;
        for_lines(
            chunk, end, [&](int64_t i) INLINE { step(load(x + i), product); },
            [&](int64_t i, unsigned lanes) INLINE { step(load(x + i, lanes), product); });
        store(products, product);
    }
    *exponents = total(sum) - 1023 * filled;
    return count;
}
