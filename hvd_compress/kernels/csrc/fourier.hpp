// The real Fourier transform of sixteen blocks at a time, one in each lane. reference/radix4.py specifies it.
#pragma once

struct Complex {
    Line re, im;
};
inline Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
inline Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }

// Complex number i of a workspace: two lines.
inline Complex get(const float* ws, int64_t i) { return {load(ws + 32 * i), load(ws + 32 * i + 16)}; }
inline void put(float* ws, int64_t i, Complex z) {
    store(ws + 32 * i, z.re);
    store(ws + 32 * i + 16, z.im);
}

template <bool INVERSE>
inline Complex times(Complex a, const float* w) {
    const Line re = all(w[0]), im = all(INVERSE ? -w[1] : w[1]);
    return {a.re * re - a.im * im, a.im * re + a.re * im};
}

template <bool INVERSE, bool TWIDDLE>
INLINE inline void butterfly(float* ws, int64_t quarter, int64_t j, const float* roots, int64_t step) {
    Complex a = get(ws, j), b = get(ws, j + quarter), c = get(ws, j + 2 * quarter), d = get(ws, j + 3 * quarter);
    const float *w1 = roots + 2 * j * step, *w2 = roots + 4 * j * step, *w3 = roots + 6 * j * step;
    if (INVERSE && TWIDDLE) b = times<true>(b, w1), c = times<true>(c, w2), d = times<true>(d, w3);
    const Complex s = a + c, t = a - c, u = b + d, v = b - d;
    const Complex p{t.re + v.im, t.im - v.re}, q{t.re - v.im, t.im + v.re};
    a = s + u;
    c = s - u;
    b = INVERSE ? q : p;
    d = INVERSE ? p : q;
    if (!INVERSE && TWIDDLE) b = times<false>(b, w1), c = times<false>(c, w2), d = times<false>(d, w3);
    put(ws, j, a), put(ws, j + quarter, b), put(ws, j + 2 * quarter, c), put(ws, j + 3 * quarter, d);
}

// Depth first, so that all but the largest steps stay in the first-level cache.
template <bool INVERSE>
void complex_transform(float* ws, int64_t length, const float* roots, int64_t step) {
    if (length == 1) return;
    if (length == 2) {
        const Complex a = get(ws, 0), b = get(ws, 1);
        put(ws, 0, a + b);
        put(ws, 1, a - b);
        return;
    }
    const int64_t quarter = length / 4;
    const auto descend = [&] {
        if (quarter > 1)
            for (int64_t i = 0; i < 4; i++) complex_transform<INVERSE>(ws + 32 * quarter * i, quarter, roots, step * 4);
    };
    if (INVERSE) descend();
    butterfly<INVERSE, false>(ws, quarter, 0, roots, step);
    for (int64_t j = 1; j < quarter; j++) butterfly<INVERSE, true>(ws, quarter, j, roots, step);
    if (!INVERSE) descend();
}

// Where decimation in frequency leaves frequency k of n.
inline int64_t place(int64_t k, int64_t n) {
    int64_t at = 0;
    for (; n > 2; n /= 4, k /= 4) at += k % 4 * (n / 4);
    return at + k;
}

template <bool INVERSE>
inline void split(float* ws, int64_t n, const int32_t* places, const float* factors) {
    const Line half = all(0.70710678118654752f);
    for (int64_t k = 1; k <= n / 2; k++) {
        const Complex a = get(ws, places[k]), b = get(ws, places[n - k]);
        const Complex s{half * (a.re + b.re), half * (a.im - b.im)};
        const Complex p = times<INVERSE>({a.re - b.re, a.im + b.im}, factors + 2 * k);
        put(ws, places[n - k], {s.re - p.re, p.im - s.im});
        put(ws, places[k], s + p);
    }
    const Complex zero = get(ws, 0);
    put(ws, 0, {zero.re + zero.im, zero.re - zero.im});
}

struct Workspace {
    float* rows;
    int32_t* places;

    explicit Workspace(int64_t block) {
        rows = static_cast<float*>(scratch(TILE, size_t(block) * (LANES * 4 + 2)));
        places = reinterpret_cast<int32_t*>(rows + LANES * block);
        for (int64_t k = 0; k < block / 2; k++) places[k] = int32_t(place(k, block / 2));
    }
};

// The rows of the next group are fetched while this one is written: the streams are too many for the processor's own
// prefetching.
inline void fetch(const float* next, int64_t blocks, int64_t block, int64_t i) {
    for (int64_t b = 0; b < blocks; b++) __builtin_prefetch(next + b * block + i, 0, 2);
}

inline int64_t group(int64_t blocks, int64_t first) {
    const int64_t left = blocks - first;
    return left < 0 ? 0 : left < LANES ? left : LANES;
}

void forward(const float* x, int64_t blocks, const Transform& t, float* out) {
    const int64_t block = t.block;
    const Workspace ws(block);
    const bool stream_out = streams(out, blocks * block * 4);
    const Line scale = all(1.0f / float(block));
    for (int64_t first = 0; first < blocks; first += LANES) {
        const int64_t count = group(blocks, first), next = group(blocks, first + LANES);
        const float* from = x + first * block;
        for (int64_t i = 0; i < block; i += LANES) {
            Line rows[16];
            for (int64_t b = 0; b < LANES; b++) rows[b] = b < count ? load(from + b * block + i) * scale : zeros();
            transpose(rows);
            for (int64_t j = 0; j < LANES; j++) store(ws.rows + 16 * (i + j), rows[j]);
        }
        complex_transform<false>(ws.rows, block / 2, t.roots, 1);
        split<false>(ws.rows, block / 2, ws.places, t.factors);
        float* to = out + first * block;
        for (int64_t i = 0; i < block; i += LANES) {
            fetch(from + LANES * block, next, block, i);
            Line rows[16];
            for (int64_t j = 0; j < LANES; j += 2) {
                const Complex z = get(ws.rows, ws.places[(i + j) / 2]);
                rows[j] = z.re;
                rows[j + 1] = z.im;
            }
            transpose(rows);
            for (int64_t b = 0; b < count; b++) {
                if (stream_out) stream(to + b * block + i, rows[b]);
                else store(to + b * block + i, rows[b]);
            }
        }
    }
    if (stream_out) fence();
}

// `spectrum(first, count)` gives the spectra of a group of blocks.
template <class Spectrum>
inline void inverse_groups(Spectrum spectrum, int64_t blocks, const Transform& t, float factor, const float* minuend, float* out) {
    const int64_t block = t.block;
    const Workspace ws(block);
    const bool stream_out = !minuend && streams(out, blocks * block * 4);
    const Line scale = all(factor);
    for (int64_t first = 0; first < blocks; first += LANES) {
        const int64_t count = group(blocks, first);
        const float* from = spectrum(first, count);
        for (int64_t i = 0; i < block; i += LANES) {
            if (minuend) fetch(minuend + first * block, count, block, i);
            Line rows[16];
            for (int64_t b = 0; b < LANES; b++) rows[b] = b < count ? load(from + b * block + i) : zeros();
            transpose(rows);
            for (int64_t j = 0; j < LANES; j += 2) put(ws.rows, ws.places[(i + j) / 2], {rows[j], rows[j + 1]});
        }
        split<true>(ws.rows, block / 2, ws.places, t.factors);
        complex_transform<true>(ws.rows, block / 2, t.roots, 1);
        for (int64_t i = 0; i < block; i += LANES) {
            Line rows[16];
            for (int64_t j = 0; j < LANES; j++) rows[j] = load(ws.rows + 16 * (i + j));
            transpose(rows);
            for (int64_t b = 0; b < count; b++) {
                const int64_t at = (first + b) * block + i;
                const Line y = rows[b] * scale;
                if (stream_out) stream(out + at, y);
                else store(out + at, minuend ? without_denormals(load(minuend + at) - y) : y);
            }
        }
    }
    if (stream_out) fence();
}

void inverse(const float* spectrum, int64_t blocks, const Transform& t, float factor, const float* minuend, float* out) {
    const auto at = [&](int64_t first, int64_t) { return spectrum + first * t.block; };
    inverse_groups(at, blocks, t, factor, minuend, out);
}
