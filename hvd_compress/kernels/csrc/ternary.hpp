// Ternary codes, four to a byte: 0 is zero, 1 plus the scale of the element's section, 2 minus it.
#pragma once

void section_moments(const float* x, const int64_t* ends, int64_t sections, float* largest, double* totals, double* squares) {
    for (int64_t s = 0, begin = 0; s < sections; begin = ends[s++]) {
        Line most = zeros();
        Doubles total = doubles(0.0), square = total;
        const auto add = [&](Line line) INLINE {
            const Doubles wide_line = widen(line);
            most = max_bits(most, magnitude(line));
            total = total + wide_line;
            square = square + wide_line * wide_line;
        };
        const float* section = x + begin;
        for_lines(
            0, ends[s] - begin, [&](int64_t i) INLINE { add(load(section + i)); },
            [&](int64_t i, unsigned lanes) INLINE { add(load(section + i, lanes)); });
        const uint32_t bits = largest_bits(most);
        memcpy(largest + s, &bits, 4);
        totals[s] = fold(total);
        squares[s] = fold(square);
    }
}

constexpr int64_t TERNARY_TILE = 4096;  // elements that are worked on while they are in the cache; a multiple of 4

void ternarize(const float* x, int64_t d, const int64_t* ends, const float* scales, uint64_t key, uint8_t* codes) {
    uint8_t code[TERNARY_TILE];
    int64_t section = 0;
    for (int64_t begin = 0; begin < d; begin += TERNARY_TILE) {
        const int64_t end = begin + TERNARY_TILE < d ? begin + TERNARY_TILE : d;
        for (int64_t i = begin; i < end;) {
            while (ends[section] <= i) section++;
            const int64_t stop = ends[section] < end ? ends[section] : end;
            const float scale = scales[section];
            for (; i < stop; i++) {
                const float magnitude = x[i] < 0 ? -x[i] : x[i];
                const float draw = float(int32_t(hash32(key, uint64_t(i)) >> 8)) * 0x1p-24f;
                code[i - begin] = uint8_t(magnitude / scale > draw ? (x[i] < 0 ? 2 : 1) : 0);
            }
        }
        for (int64_t i = end; i % 4; i++) code[i - begin] = 0;
        for (int64_t i = 0; i < end - begin; i += 4)
            codes[(begin + i) / 4] = uint8_t(code[i] | code[i + 1] << 2 | code[i + 2] << 4 | code[i + 3] << 6);
    }
}

inline float ternary_term(uint32_t code, float scale) { return float(int32_t(code & 1) - int32_t(code >> 1)) * scale; }

// Adds one row's elements of one section.
inline void add_ternary(const uint8_t* row, int64_t begin, int64_t end, float scale, float* out) {
    int64_t i = begin;
    for (; i < end && i % 16; i++) out[i] += ternary_term((uint32_t(row[i / 4]) >> (2 * (i % 4))) & 3, scale);
    for (; i + 16 <= end; i += 16) {
        uint32_t word;
        memcpy(&word, row + i / 4, 4);
        for (int j = 0; j < 16; j++) out[i + j] += ternary_term((word >> (2 * j)) & 3, scale);
    }
    for (; i < end; i++) out[i] += ternary_term((uint32_t(row[i / 4]) >> (2 * (i % 4))) & 3, scale);
}

// Rows of codes begin `stride` bytes apart; scales has a row of `sections` for each of them. Whether no code is 3.
bool accumulate_ternary(const uint8_t* rows, int64_t stride, int64_t n, const int64_t* ends, const float* scales,
                        int64_t sections, float* out, int64_t d) {
    uint8_t bad = 0;
    int64_t first = 0;
    for (int64_t begin = 0; begin < d; begin += TERNARY_TILE) {
        const int64_t end = begin + TERNARY_TILE < d ? begin + TERNARY_TILE : d;
        while (ends[first] <= begin) first++;
        for (int64_t i = begin; i < end; i++) out[i] = 0;
        for (int64_t r = 0; r < n; r++) {
            const uint8_t* row = rows + r * stride;
            for (int64_t at = begin / 4; at < (end + 3) / 4; at++) bad |= row[at] & (row[at] >> 1) & 0x55;
            int64_t from = begin;
            for (int64_t s = first; from < end; s++) {
                const int64_t to = ends[s] < end ? ends[s] : end;
                add_ternary(row, from, to, scales[r * sections + s], out);
                from = to;
            }
        }
    }
    return bad == 0;
}
