// Pairs of a spectrum: select by energy, gather, mark, and decode payloads of them.
#pragma once

// The energies of sixteen pairs.
struct Energies {
    const float* pairs;
    Line scale, most;

    Line of(Line a, Line b) const {
        a = a * scale;
        b = b * scale;
        return min_bits(add_pairs(a * a, b * b), most);
    }
    Line at(int64_t i) const { return of(load(pairs + 2 * i), load(pairs + 2 * i + 16)); }
    Line at(int64_t i, unsigned lanes) const {  // the first ones
        const unsigned floats = 2 * unsigned(__builtin_popcount(lanes));
        const unsigned low = floats < 16 ? (1u << floats) - 1 : 0xffff, high = floats > 16 ? (1u << (floats - 16)) - 1 : 0;
        return of(load(pairs + 2 * i, low), load(pairs + 2 * i + 16, high));
    }
};

Selection select_pairs(const float* pairs, int64_t n, float scale, uint32_t threshold, int64_t capacity, uint32_t* indices,
                       float* energies, int64_t space) {
    float largest;
    const uint32_t bits_of_largest = LARGEST_FINITE;
    memcpy(&largest, &bits_of_largest, 4);
    if (threshold > LARGEST_FINITE) threshold = LARGEST_FINITE;
    const Candidates c{indices, energies, 0, space - SLACK, threshold, threshold, 0};
    const Energies source{pairs, all(scale), all(largest)};
    const auto walk = [&](auto body) INLINE { body(source, int64_t(0), n); };
    return select_from<NOTHING>(walk, nullptr, c, capacity);
}

void gather_pairs(const float* pairs, const uint32_t* indices, int64_t n, float* values, float* range) {
    float low = 0, high = 0;
    constexpr int64_t AHEAD = 32;
    for (int64_t i = 0; i < n; i++) {
        if (i + AHEAD < n) __builtin_prefetch(pairs + 2 * int64_t(indices[i + AHEAD]));
        const float re = pairs[2 * int64_t(indices[i])], im = pairs[2 * int64_t(indices[i]) + 1];
        values[2 * i] = re;
        values[2 * i + 1] = im;
        const float less = re < im ? re : im, more = re < im ? im : re;
        low = less < low ? less : low;
        high = more > high ? more : high;
    }
    range[0] = low;
    range[1] = high;
}

// False if an index is not below the number of bits, or they do not ascend.
bool mark(const uint32_t* indices, int64_t n, uint8_t* bitmap, int64_t bytes) {
    unsigned descents = 0;
    for (int64_t i = 1; i < n; i++) descents |= indices[i] <= indices[i - 1];
    if (descents || (n && int64_t(indices[n - 1]) >= 8 * bytes)) return false;
    memset(bitmap, 0, size_t(bytes));
    for (int64_t i = 0; i < n; i++) bitmap[indices[i] / 8] = uint8_t(bitmap[indices[i] / 8] | 1u << indices[i] % 8);
    return true;
}

inline uint64_t word_at(const uint8_t* bitmap, int64_t i) {
    uint64_t word;
    memcpy(&word, bitmap + i / 8, 8);
    return word;
}

// First corrupt payload, or -1.
int64_t check_pairs(const SpectrumPayloads& p, int64_t pairs) {
    for (int64_t r = 0; r < p.n; r++) {
        const uint8_t* row = p.data + r * p.stride;
        const int64_t entries = p.entries[r];
        if (p.count_bytes) {
            const Payloads places{p.data, p.n, p.stride, p.counts_at, p.places_at, 0, p.count_bytes, p.capacity, 0, p.entries};
            if (!is_sound(row, places, entries, pairs)) return r;
        } else {
            int64_t set = 0;
            for (int64_t i = 0; i < pairs; i += 64) set += __builtin_popcountll(word_at(row + p.places_at, i));
            const uint64_t beyond = pairs % 64 ? word_at(row + p.places_at, pairs / 64 * 64) >> pairs % 64 : 0;
            if (set != entries || beyond || entries > p.capacity) return r;
        }
        if (!range_codes_below(row + p.codes_at, 2 * entries, p.bits, p.lengths[r])) return r;
    }
    return -1;
}

// Adds entry after entry of one payload to a tile of pairs.
struct PairReader {
    const uint8_t* codes;
    const float* table;
    int bits;
    int64_t bytes;

    void add(int64_t entry, float* pair) const {
        if (bits == 8) {
            pair[0] += table[codes[2 * entry]];
            pair[1] += table[codes[2 * entry + 1]];
        } else {
            pair[0] += table[code_at(codes, 2 * entry, bits, bytes)];
            pair[1] += table[code_at(codes, 2 * entry + 1, bits, bytes)];
        }
    }
};

// Adds all payloads, in order, to stretch after stretch of the spectrum.
class Adder {
   public:
    explicit Adder(const SpectrumPayloads& payloads) : p(payloads) {
        at = static_cast<int64_t*>(scratch(STREAMING, size_t(p.n) * 24 + 24));
        block = at + p.n;
        block_end = block + p.n;
        for (int64_t r = 0; r < p.n; r++) at[r] = 0, block[r] = -1;
    }

    // The pairs [begin, end) to `out`; stretches must follow each other.
    void add(int64_t begin, int64_t end, float* out) {
        memset(out, 0, size_t(end - begin) * 8);
        for (int64_t r = 0; r < p.n; r++) p.count_bytes ? add_positions(r, begin, end, out) : add_bitmap(r, begin, end, out);
    }

   private:
    PairReader reader(int64_t r) const {
        const uint8_t* codes = p.data + r * p.stride + p.codes_at;
        return {codes, p.tables[r], p.bits, (2 * int64_t(p.entries[r]) * p.bits + 7) / 8};
    }
    void add_bitmap(int64_t r, int64_t begin, int64_t end, float* out) {
        const uint8_t* bitmap = p.data + r * p.stride + p.places_at;
        const PairReader from = reader(r);
        int64_t entry = at[r];
        for (int64_t i = begin & ~int64_t(63); i < end; i += 64) {
            uint64_t word = word_at(bitmap, i);
            if (i < begin) word &= ~uint64_t(0) << (begin - i);
            if (end - i < 64) word &= (uint64_t(1) << (end - i)) - 1;
            for (; word; word &= word - 1) from.add(entry++, out + 2 * (i - begin + __builtin_ctzll(word)));
        }
        at[r] = entry;
    }
    void add_positions(int64_t r, int64_t begin, int64_t end, float* out) {
        const uint8_t *row = p.data + r * p.stride, *positions = row + p.places_at;
        const PairReader from = reader(r);
        int64_t entry = at[r];
        while (begin < end) {
            const int64_t b = begin / BLOCK, next = end < (b + 1) * BLOCK ? end : (b + 1) * BLOCK;
            if (block[r] != b) {
                block[r] = b;
                block_end[r] = entry + block_count(row + p.counts_at, p.count_bytes, b);
            }
            for (; entry < block_end[r]; entry++) {
                const int64_t i = b * BLOCK + position(positions, entry);
                if (i >= next) break;
                from.add(entry, out + 2 * (i - begin));
            }
            out += 2 * (next - begin);
            begin = next;
        }
        at[r] = entry;
    }

    const SpectrumPayloads& p;
    int64_t *at, *block, *block_end;  // per payload: the next entry, the block it is in, and that block's last
};

// Only after check_pairs. A group's spectra never leave the cache.
void synthesize(const SpectrumPayloads& p, int64_t blocks, const Transform& t, float factor, const float* minuend, float* out,
                float* rest, int64_t rest_pairs) {
    Adder sum(p);
    const int64_t half = t.block / 2;
    if (blocks) {
        float* spectra = static_cast<float*>(scratch(SORTING, size_t(t.block * LANES) * 4));
        const auto at = [&](int64_t first, int64_t count) {
            sum.add(first * half, (first + count) * half, spectra);
            return spectra;
        };
        inverse_groups(at, blocks, t, factor, minuend, out);
    }
    constexpr int64_t STRETCH = 32768;
    const int64_t begin = blocks * half;
    for (int64_t i = 0; i < rest_pairs; i += STRETCH) {
        const int64_t length = rest_pairs - i < STRETCH ? rest_pairs - i : STRETCH;
        sum.add(begin + i, begin + i + length, rest + 2 * i);
    }
}
