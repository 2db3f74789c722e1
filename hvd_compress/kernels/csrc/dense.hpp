// Dense 16-bit payloads.
#pragma once

void narrow(const float* x, int64_t n, int wire, uint16_t* out) {
    for_lines(
        0, n, [&](int64_t i) INLINE { narrow_words(out + i, load(x + i), wire); },
        [&](int64_t i, unsigned lanes) INLINE {
            uint16_t word[16];
            narrow_words(word, load(x + i, lanes), wire);
            memcpy(out + i, word, size_t(__builtin_popcount(lanes)) * 2);
        });
}

template <int WIRE, bool STREAM>
inline bool sum_rows(const uint16_t* rows, int64_t n, int64_t d, float factor, float* out) {
    const Line scale = all(factor);
    const auto term = [&](int64_t r, int64_t i) INLINE { return widen_half(rows + r * d + i, WIRE) * scale; };
    Line largest = zeros();
    const auto put = [&](int64_t i, Line sum) INLINE {
        STREAM ? stream(out + i, sum) : store(out + i, sum);
        largest = max_bits(largest, magnitude(sum));
    };
    int64_t i = 0;
    for (; i + GROUP <= d; i += GROUP) {
        Line a = zeros(), b = a, c = a, e = a;
        for (int64_t r = 0; r < n; r++) {
            a = a + term(r, i);
            b = b + term(r, i + 16);
            c = c + term(r, i + 32);
            e = e + term(r, i + 48);
        }
        put(i, a), put(i + 16, b), put(i + 32, c), put(i + 48, e);
    }
    for (; i < d; i += LANES) {
        const unsigned lanes_here = lanes_of(i, i, d);
        Line sum = zeros();
        for (int64_t r = 0; r < n; r++) {
            uint16_t word[16] = {};
            memcpy(word, rows + r * d + i, size_t(__builtin_popcount(lanes_here)) * 2);
            sum = sum + widen_half(word, WIRE) * scale;
        }
        store(out + i, sum, lanes_here);
        largest = max_bits(largest, magnitude(sum));
    }
    if (STREAM) fence();
    return largest_bits(largest) < 0x7f800000u;
}

// Whether all sums are finite.
bool accumulate_dense(const uint16_t* rows, int64_t n, int64_t d, int wire, float scale, float* out) {
    const auto sum = [&](auto stream_out) INLINE {
        constexpr bool STREAM = decltype(stream_out)::value;
        return wire == BFLOAT16 ? sum_rows<BFLOAT16, STREAM>(rows, n, d, scale, out)
                                : sum_rows<FLOAT16, STREAM>(rows, n, d, scale, out);
    };
    return streams(out, d * 4) ? sum(Yes()) : sum(No());
}
