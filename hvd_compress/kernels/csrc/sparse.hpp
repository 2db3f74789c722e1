// Sparse payloads: per-block counts, 16-bit positions, values. The decoder trusts nothing that it reads.
#pragma once



Bad pack(const uint32_t* indices, const float* values, int64_t n, const Packed& to, float* memory) {
    unsigned descents = 0;
    for (int64_t i = 1; i < n; i++) descents |= indices[i] <= indices[i - 1];
    if (descents || (n && indices[n - 1] >= uint64_t(to.blocks) * BLOCK)) return Bad::ascent;

    int64_t from = 0;
    for (int64_t b = 0; b < to.blocks; b++) {
        int64_t low = from, high = n;  // first index beyond the block
        for (int64_t reach = 64; low + reach < n; reach *= 2) {
            if (indices[low + reach] >> 16 > uint64_t(b)) {
                high = low + reach;
                break;
            }
            low += reach;
        }
        while (low < high) {
            const int64_t middle = low + (high - low) / 2;
            if (indices[middle] >> 16 > uint64_t(b)) high = middle;
            else low = middle + 1;
        }
        const int64_t count = low - from;
        if (to.count_bytes == 2 && count > 0xffff) return Bad::counts;
        if (to.count_bytes == 2) static_cast<uint16_t*>(to.counts)[b] = uint16_t(count);
        else static_cast<uint32_t*>(to.counts)[b] = uint32_t(count);
        from = low;
    }

    for (int64_t i = 0; i < n; i++) to.positions[i] = uint16_t(indices[i]);
    memset(to.positions + n, 0, size_t(to.capacity - n) * 2);
    const int64_t size = to.wire == FLOAT32 ? 4 : 2;
    memset(static_cast<char*>(to.words) + n * size, 0, size_t((to.capacity - n) * size));
    if (to.wire == FLOAT32) {
        memcpy(to.words, values, size_t(n) * 4);
        return Bad::nothing;
    }

    uint16_t* words = static_cast<uint16_t*>(to.words);
    constexpr int64_t AHEAD = 48;
    for (int64_t i = 0; i < n; i += LANES) {
        const unsigned lanes_here = lanes_of(i, i, n);
        const int64_t count = __builtin_popcount(lanes_here);
        const Line x = load(values + i, lanes_here);
        uint16_t word[16];
        narrow_finite(word, x, to.wire);
        memcpy(words + i, word, size_t(count) * 2);
        if (!memory) continue;
        float lost[16];
        store(lost, x - widen_half(word, to.wire));
        for (int64_t j = i + AHEAD; j < i + AHEAD + LANES && j < n; j++) __builtin_prefetch(memory + indices[j], 1);
        for (int64_t j = 0; j < count; j++) memory[indices[i + j]] = lost[j];
    }
    return Bad::nothing;
}

inline int64_t block_count(const uint8_t* counts, int count_bytes, int64_t block) {
    if (count_bytes == 2) {
        uint16_t n;
        memcpy(&n, counts + 2 * block, 2);
        return n;
    }
    uint32_t n;
    memcpy(&n, counts + 4 * block, 4);
    return n;
}

inline uint16_t position(const uint8_t* positions, int64_t i) {
    uint16_t p;
    memcpy(&p, positions + 2 * i, 2);
    return p;
}

// Whether the positions [from, to) ascend strictly, from `first` on, and end before `last`.
inline bool ascend(const uint8_t* positions, int64_t from, int64_t to, int64_t first, int64_t last) {
    if (from == to) return true;
    unsigned descents = 0;
    for (int64_t i = from + 1; i < to; i++) descents |= position(positions, i) <= position(positions, i - 1);
    return !descents && position(positions, from) >= first && position(positions, to - 1) < last;
}

inline bool is_sound(const uint8_t* row, const Payloads& p, int64_t entries, int64_t d) {
    if (entries > p.capacity) return false;
    int64_t from = 0;
    for (int64_t begin = 0, b = 0; begin < d; begin += BLOCK, b++) {
        const int64_t n = block_count(row + p.counts_at, p.count_bytes, b);
        if (n > entries - from) return false;
        if (!ascend(row + p.positions_at, from, from + n, 0, d - begin < BLOCK ? d - begin : BLOCK)) return false;
        from += n;
    }
    return from == entries;
}

inline bool are_finite(const uint8_t* words, int64_t n, int wire) {
    const int64_t size = wire == FLOAT32 ? 4 : 2;
    Line largest = zeros();
    for (; n >= LANES; n -= LANES, words += size * LANES) largest = max_bits(largest, magnitude(widen_words(words, wire)));
    uint8_t tail[64] = {};
    memcpy(tail, words, size_t(n * size));
    return largest_bits(max_bits(largest, magnitude(widen_words(tail, wire)))) < INFINITE;
}

// tile[position - first] += value * scale, for the entries [from, to).
inline void scatter(const uint8_t* row, const Payloads& p, int64_t from, int64_t to, Line scale, float* tile, int64_t first) {
    const uint8_t* positions = row + p.positions_at + 2 * from;
    const int64_t size = p.wire == FLOAT32 ? 4 : 2;
    const uint8_t* words = row + p.values_at + size * from;
    tile -= first;
    int64_t left = to - from;
    for (; left >= LANES; left -= LANES, positions += 2 * LANES, words += size * LANES) {
        float x[16];
        store(x, widen_words(words, p.wire) * scale);
        for (int64_t i = 0; i < LANES; i++) tile[position(positions, i)] += x[i];
    }
    if (left) {
        uint8_t tail[64] = {};
        memcpy(tail, words, size_t(left * size));
        float x[16];
        store(x, widen_words(tail, p.wire) * scale);
        for (int64_t i = 0; i < left; i++) tile[position(positions, i)] += x[i];
    }
}

// Ask for entries that are soon to be read. Rows are far apart and short: the processor does not guess by itself.
inline void prefetch(const uint8_t* row, const Payloads& p, int64_t from, int64_t count) {
    const int64_t size = p.wire == FLOAT32 ? 4 : 2;
    const uint8_t *positions = row + p.positions_at + 2 * from, *words = row + p.values_at + size * from;
    for (int64_t i = 0; i < 2 * count; i += 64) __builtin_prefetch(positions + i);
    for (int64_t i = 0; i < size * count; i += 64) __builtin_prefetch(words + i);
}

// Decode into a tile that stays in the cache. A large `out` is then written once, around the cache; a small one is
// its own tile. A tile's entries are checked when they are about to be added: so the payloads, which fit no cache when
// there are many, are read once. Return the row of a corrupt payload, and -1 if there is none.
constexpr int64_t TILE_SIZE = 32768;
constexpr int64_t TILES = BLOCK / TILE_SIZE;

int64_t accumulate(const Payloads& p, float factor, float* out, int64_t d) {
    const bool stream_out = streams(out, d * 4);
    // Per payload: where the block's entries begin, where the tile's begin, and where the block's end.
    int64_t* at = static_cast<int64_t*>(scratch(STREAMING, size_t(p.n) * 16 + 16));
    int64_t* block_end = at + p.n;
    float* buffer = stream_out ? static_cast<float*>(scratch(TILE, size_t(TILE_SIZE) * 4)) : nullptr;
    if (buffer) memset(buffer, 0, size_t(TILE_SIZE) * 4);
    for (int64_t r = 0; r < p.n; r++) {
        at[r] = block_end[r] = 0;
        if (p.entries[r] > p.capacity) return r;
    }
    const Line scale = all(factor);
    const int64_t size = p.wire == FLOAT32 ? 4 : 2;

    for (int64_t begin = 0; begin < d; begin += TILE_SIZE) {
        const int64_t length = d - begin < TILE_SIZE ? d - begin : TILE_SIZE;
        const int64_t block = begin / BLOCK, first = begin % BLOCK;
        float* tile = buffer ? buffer : out + begin;
        if (!buffer) memset(tile, 0, size_t(length) * 4);
        for (int64_t r = 0; r < p.n; r++) {
            const uint8_t* row = p.data + r * p.stride;
            const uint8_t* positions = row + p.positions_at;
            if (first == 0) {
                block_end[r] = at[r] + block_count(row + p.counts_at, p.count_bytes, block);
                if (block_end[r] > p.entries[r]) return r;
            }
            int64_t to = block_end[r];
            if (first + TILE_SIZE < BLOCK) {  // positions ascend: find the first beyond this tile
                int64_t low = at[r];
                while (low < to) {
                    const int64_t middle = low + (to - low) / 2;
                    if (position(positions, middle) >= first + TILE_SIZE) to = middle;
                    else low = middle + 1;
                }
            }
            // The row after the next has about as many here, and its entries begin where it was left in the last tile.
            if (r + 2 < p.n) prefetch(row + 2 * p.stride, p, at[r + 2], to - at[r]);
            const uint8_t* words = row + p.values_at + size * at[r];
            if (!ascend(positions, at[r], to, first, first + length) || !are_finite(words, to - at[r], p.wire)) return r;
            scatter(row, p, at[r], to, scale, tile, first);
            at[r] = to;
        }
        if (!buffer) continue;
        for_lines(
            0, length,
            [&](int64_t i) INLINE {
                stream(out + begin + i, load(tile + i));
                store(tile + i, zeros());
            },
            [&](int64_t i, unsigned lanes) INLINE { store(out + begin + i, load(tile + i, lanes), lanes); });
    }
    if (stream_out) fence();
    for (int64_t r = 0; r < p.n; r++)
        if (at[r] != p.entries[r] || at[r] != block_end[r]) return r;
    return -1;
}
