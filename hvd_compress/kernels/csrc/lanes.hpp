// Codes of an unbiased quantizer, several to a word, and votes on their scale. See protocol/quantization.py.
#pragma once

// body(x, blocks) for the next blocks of `size` elements that lie at x; a block that spans pieces, or the end, is put
// together first, with zeros beyond the end.
template <class Body>
INLINE inline void for_blocks(const Input& in, int64_t size, Body body) {
    alignas(64) float joined[63 * LANES];  // a mask of counts up to 1
    Cursor cursor{in};
    for (int64_t i = 0; i < in.d;) {
        const float* x = cursor.at(i);
        int64_t blocks = (in.ends[cursor.piece] - i) / size;
        if (blocks == 0) {
            memset(joined, 0, size_t(size) * 4);
            for (int64_t filled = 0; filled < size && i + filled < in.d;) {
                const float* from = cursor.at(i + filled);
                const int64_t left = size - filled, here = in.ends[cursor.piece] - (i + filled), n = here < left ? here : left;
                memcpy(joined + filled, from, size_t(n) * 4);
                filled += n;
            }
            x = joined;
            blocks = 1;
        }
        body(x, blocks);
        i += blocks * size;
    }
}

// x in each of the lanes from `first` to `last` - 1, of a 64-bit word.
inline uint64_t repeated(uint64_t x, int width, int first, int last) {
    uint64_t word = 0;
    for (int j = first; j < last; j++) word |= x << width * j;
    return word;
}

// body(j, x) for the lanes of sixteen words; above its `width` bits x has others' bits.
template <class Body>
INLINE inline void for_lanes(Ints low, Ints high, int width, int count, Body body) {
    int j = 0, at = 0;
    for (; j < count && at + width <= 32; j++, at += width) {
        body(j, low);
        low = low >> width;
    }
    if (j == count) return;
    if (at < 32) {
        body(j++, low | (high << (32 - at)));
        high = high >> (at + width - 32);
    }
    for (; j < count; j++) {
        body(j, high);
        high = high >> width;
    }
}

// The scales of the elements of one line after the other; PLANES says whether there is a choice.
template <bool PLANES>
class Chooser {
   public:
    explicit Chooser(const Scales& s) : scales(s), first(all(s.scale[0])), words(s.planes), end(s.planes + s.words) {
        if constexpr (PLANES) {
            const uint64_t field = (uint64_t(1) << s.width) - 1;
            count = 63 / s.width;
            whole = count < 32 / s.width ? count : 32 / s.width;
            after = count < (31 + s.width) / s.width ? count : (31 + s.width) / s.width;
            for (int j = 0; j < count; j++) fields[j] = uint32_t(field << s.width * j >> (j < after ? 0 : 32));
            fields[count] = uint32_t(field << s.width * whole >> 32);
            for (auto& line : chosen) store(line, first);
        }
    }

    // The next `lines` lines become this->scale(0), this->scale(1), ...
    INLINE void next(int lines) {
        if constexpr (PLANES) {
            line = next_line;
            next_line += lines;
            while (known < next_line) read();
        }
    }
    INLINE Line scale(int j) const {
        if constexpr (PLANES) return load(chosen[(line + j) % RING]);
        else return first;
    }

   private:
    static constexpr unsigned RING = 128;  // lines: more than there are in a word (32) and in a word of votes (63)

    void read() {
        const unsigned from = known;
        known += unsigned(count);
        if (words == end) return;
        for (int p = scales.count - 2; p >= 0; p--) {
            const Line refused = all(scales.scale[p]), finest = all(scales.scale[p + 1]);
            Ints low, high;
            split(words + p * scales.words, 0, low, high);
            const auto pass = [&](auto scale_above) INLINE {
                const auto put = [&](int j, Test agreed) INLINE {
                    float* to = chosen[(from + unsigned(j)) % RING];
                    store(to, choose(agreed, scale_above(to), refused));
                };
                int j = 0;
                for (; j < whole; j++) put(j, none(low, ints(fields[j])));
                if (j < after) put(j, both(none(low, ints(fields[j])), none(high, ints(fields[count])))), j++;
                for (; j < count; j++) put(j, none(high, ints(fields[j])));
            };
            if (p == scales.count - 2) pass([&](const float*) INLINE { return finest; });
            else pass([&](const float* to) INLINE { return load(to); });
        }
        words += LANES;
    }

    const Scales& scales;
    const Line first;
    const int64_t *words, *const end;
    unsigned line = 0, next_line = 0, known = 0;
    // Lanes of a word of votes: how many; how many begin and end in its lower half; and how many begin there. Where each
    // is in the half that it begins in, and what the upper half has of one that is in both.
    int count = 0, whole = 0, after = 0;
    uint32_t fields[64];
    alignas(64) float chosen[PLANES ? RING : 1][LANES];
};

// mix32 of counters, but for its last product: they come as SPREAD * counter + the lower half of the key.
constexpr uint32_t SPREAD = 0x9e3779b9, LAST = 0x846ca68b, ODD = LAST * 0x915f77f5;
inline Ints mix(Ints spread, Ints high) {
    const Ints x = (spread ^ (spread >> 16)) * ints(0x7feb352d);
    return (x ^ (x >> 15)) + high;
}

template <bool WIDE, bool PLANES>
inline void quantize_to(const Input& in, const Scales& scales, const Lanes& l, uint64_t key, void* words) {
    const int width = l.width, count = l.count();
    int bits = 30;
    for (int64_t levels = l.levels; levels; levels >>= 1) bits--;
    const Line limit = all(float(l.levels << bits)), lowest = all(-float(l.levels << bits));
    const Ints levels = ints(uint32_t(l.levels));
    // Signed sums within either half of a wide word borrow from nothing once this is added; it comes off the whole.
    const int whole = 32 / width, after = (32 + width - 1) / width;
    const uint64_t offset = WIDE ? repeated(uint64_t(l.levels), width, 0, count) : 0;
    const Ints low_offset = ints(WIDE ? uint32_t(repeated(uint64_t(l.levels), width, 0, whole)) : 0);
    const Ints high_offset = ints(WIDE ? uint32_t(repeated(uint64_t(l.levels), width, after, count) >> 32) : 0);

    char* to = static_cast<char*>(words);
    const int64_t line_bytes = WIDE ? 128 : 64;
    const bool streaming = streams(words, (in.d + count - 1) / count * (WIDE ? 8 : 4));
    Chooser<PLANES> chooser(scales);
    const uint64_t mixed_key = hash64(key, 0);
    const uint32_t high_key = uint32_t(mixed_key >> 32);
    Ints all_counters = zero_to_fifteen() * ints(SPREAD) + ints(uint32_t(mixed_key)), last_hash = all_counters;
    bool odd = false;  // the next line is the second one to use a hash
    for_blocks(in, count * LANES, [&](const float* x, int64_t blocks) INLINE {
        Ints counter = all_counters, hash = last_hash;
        const auto next_hash = [&]() INLINE {
            hash = mix(counter, ints(high_key));
            counter = counter + ints(uint32_t(LANES) * SPREAD);
        };
        for (; blocks > 0; blocks--, to += line_bytes, x += count * LANES) {
            chooser.next(count);
            Ints low = ints(0), high = ints(0);
            int j = 0, at = 0;
            const auto line = [&](Ints random) INLINE {
                const Line y = greater(lesser(load(x + j * LANES) * chooser.scale(j), limit), lowest);
                const Ints code = shift_signed(nearest(y) + (random >> (32 - bits)), bits);
                if (!WIDE || at + width <= 32) {
                    low = low + (code << at);
                } else if (at >= 32) {
                    high = high + (code << (at - 32));
                } else {
                    low = low + ((code + levels) << at);
                    high = high + ((code + levels) >> (32 - at));
                }
                j++;
                at += width;
            };
            if (odd) line(hash * ints(ODD));
            while (j + 1 < count) {
                next_hash();
                line(hash * ints(LAST));
                line(hash * ints(ODD));
            }
            odd = j < count;
            if (odd) {
                next_hash();
                line(hash * ints(LAST));
            }
            if constexpr (WIDE) {
                join(low + low_offset, high + high_offset, 0 - offset, reinterpret_cast<int64_t*>(to), streaming);
            } else {
                streaming ? stream(to, low) : store(to, low);
            }
        }
        all_counters = counter;
        last_hash = hash;
    });
    if (streaming) fence();
}

void quantize(const Input& in, const Scales& scales, const Lanes& l, uint64_t key, void* words) {
    const auto go = [&](auto planes) INLINE {
        constexpr bool PLANES = decltype(planes)::value;
        l.bits == 64 ? quantize_to<true, PLANES>(in, scales, l, key, words) : quantize_to<false, PLANES>(in, scales, l, key, words);
    };
    scales.count > 1 ? go(Yes()) : go(No());
}

template <bool PLANES, class Word>
inline void dequantize_from(const Word* from, const Scales& scales, const Lanes& l, float* out, int64_t d) {
    const int width = l.width, count = l.count();
    const uint64_t offset = repeated(uint64_t(l.levels * l.workers), width, 0, count);
    const Ints field = ints(uint32_t((uint64_t(1) << width) - 1)), middle = ints(uint32_t(l.levels * l.workers));
    const bool streaming = streams(out, d * 4);
    Chooser<PLANES> chooser(scales);

    const auto block = [&](int lines, auto put) INLINE {
        chooser.next(lines);
        Ints low, high;
        if constexpr (sizeof(Word) == 8) split(from, offset, low, high);
        else low = high = load_ints(from) + ints(uint32_t(offset));
        for_lanes(low, high, width, lines, [&](int j, Ints sum) INLINE {
            put(floats((sum & field) - middle) * chooser.scale(j));
        });
        from += LANES;
    };
    float* const end = out + d;
    while (end - out >= count * LANES)
        block(count, [&](Line x) INLINE {
            streaming ? stream(out, x) : store(out, x);
            out += LANES;
        });
    if (out != end)
        block(int((end - out + LANES - 1) / LANES), [&](Line x) INLINE {
            store(out, x, lanes_of(0, 0, end - out));
            out += LANES;
        });
    if (streaming) fence();
}

void dequantize(const void* words, const Scales& scales, const Lanes& l, float* out, int64_t d) {
    const auto go = [&](auto planes) INLINE {
        constexpr bool PLANES = decltype(planes)::value;
        if (l.bits == 64) dequantize_from<PLANES>(static_cast<const int64_t*>(words), scales, l, out, d);
        else dequantize_from<PLANES>(static_cast<const int32_t*>(words), scales, l, out, d);
    };
    scales.count > 1 ? go(Yes()) : go(No());
}

void mask(const Input& in, const float* limits, int count, int width, int64_t* planes, int64_t words) {
    const int lanes = 63 / width;
    const bool streaming = streams(planes, words * 8);
    for_blocks(in, lanes * LANES, [&](const float* x, int64_t blocks) INLINE {
        for (; blocks > 0; blocks--, x += lanes * LANES, planes += LANES)
            for (int p = 0; p < count; p++) {
                uint32_t limit;
                memcpy(&limit, limits + p, 4);
                Ints halves[2] = {ints(0), ints(0)};
                for (int j = 0, at = 0, half = 0; half < 2; half++, at -= 32) {
                    Ints half_word = ints(0), bit = ints(j < lanes ? 1u << at : 0);
                    for (; at < 32 && j < lanes; j++, at += width, bit = bit << width)
                        half_word = set(half_word, bit, above(magnitude(load(x + j * LANES)), limit & MAGNITUDE));
                    halves[half] = half_word;
                }
                join(halves[0], halves[1], 0, planes + p * words, streaming);
            }
    });
    if (streaming) fence();
}
