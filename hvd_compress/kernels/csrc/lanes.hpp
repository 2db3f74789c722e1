// Codes of an unbiased quantizer, several to a word, and votes on their scale. See lanes.py for the layout.
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

// The scales of line after line: PLANES says whether there is a choice.
template <bool PLANES>
class Chooser {
   public:
    explicit Chooser(const Scales& s) : scales(s), words(s.planes), only(all(s.scale[0])), lanes_of_word(PLANES ? 63 / s.width : 0) {
        lane = lanes_of_word;
    }

    INLINE Line next() {
        if constexpr (!PLANES) return only;
        if (lane == lanes_of_word) refill();
        const uint64_t field = ((uint64_t(1) << scales.width) - 1) << scales.width * lane++;
        const Ints in_low = ints(uint32_t(field)), in_high = ints(uint32_t(field >> 32));
        Line scale = only;
        Test agreed = lanes(0xffff);
        for (int p = 0; p < scales.count - 1; p++) {
            agreed = both(agreed, none((load_ints(low[p]) & in_low) | (load_ints(high[p]) & in_high)));
            scale = choose(agreed, all(scales.scale[p + 1]), scale);
        }
        return scale;
    }

   private:
    void refill() {
        for (int p = 0; p < scales.count - 1; p++) {
            Ints l, h;
            split(words + p * scales.words, 0, l, h);
            store(low[p], l);
            store(high[p], h);
        }
        words += LANES;
        lane = 0;
    }

    const Scales& scales;
    const int64_t* words;
    const Line only;
    const int lanes_of_word;
    int lane;
    alignas(64) uint32_t low[MAX_SCALES - 1][16], high[MAX_SCALES - 1][16];
};

inline Ints mix32(Ints counter, uint64_t key) {
    Ints x = counter ^ ints(uint32_t(key));
    x = (x ^ (x >> 16)) * ints(0x7feb352d);
    x = (x ^ (x >> 15)) + ints(uint32_t(key >> 32));
    x = x * ints(0x846ca68b);
    return x ^ (x >> 16);
}

// One number for each element of line after line; two lines share a hash.
struct Random {
    uint64_t key;
    Ints counter = zero_to_fifteen(), hash = counter;
    bool odd = false;

    INLINE Ints next() {
        if (odd) {
            hash = swap_halves(hash);
        } else {
            hash = mix32(counter, key);
            counter = counter + ints(LANES);
        }
        odd = !odd;
        return hash;
    }
};

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
    Random random{key};
    Chooser<PLANES> chooser(scales);
    for_blocks(in, count * LANES, [&](const float* x, int64_t blocks) INLINE {
        Random r = random;
        for (; blocks > 0; blocks--, to += line_bytes) {
            Ints low = ints(0), high = ints(0);
            for (int j = 0, at = 0; j < count; j++, at += width, x += LANES) {
                const Line y = greater(lesser(load(x) * chooser.next(), limit), lowest);
                const Ints code = shift_signed(nearest(y) + (r.next() >> (32 - bits)), bits);
                if (!WIDE || at + width <= 32) {
                    low = low + (code << at);
                } else if (at >= 32) {
                    high = high + (code << (at - 32));
                } else {
                    low = low + ((code + levels) << at);
                    high = high + ((code + levels) >> (32 - at));
                }
            }
            if constexpr (WIDE) {
                join(low + low_offset, high + high_offset, 0 - offset, reinterpret_cast<int64_t*>(to), streaming);
            } else {
                streaming ? stream(to, low) : store(to, low);
            }
        }
        random = r;
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

template <bool WIDE, bool PLANES>
inline void dequantize_from(const void* words, const Scales& scales, const Lanes& l, float* out, int64_t d) {
    const int width = l.width, count = l.count();
    const uint64_t offset = repeated(uint64_t(l.levels * l.workers), width, 0, count);
    const Ints field = ints(uint32_t((uint64_t(1) << width) - 1)), middle = ints(uint32_t(l.levels * l.workers));
    const char* from = static_cast<const char*>(words);
    const int64_t line_bytes = WIDE ? 128 : 64;
    const bool streaming = streams(out, d * 4);
    Chooser<PLANES> chooser(scales);

    const auto block = [&](int lines, auto put) INLINE {
        Ints low, high;
        if constexpr (WIDE) split(reinterpret_cast<const int64_t*>(from), offset, low, high);
        else low = load_ints(from) + ints(uint32_t(offset));
        for (int j = 0, at = 0; j < lines; j++, at += width) {
            Ints lane;
            if (!WIDE || at + width <= 32) lane = low >> at;
            else if (at >= 32) lane = high >> (at - 32);
            else lane = (low >> at) | (high << (32 - at));
            put(floats((lane & field) - middle) * chooser.next());
        }
        from += line_bytes;
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
        l.bits == 64 ? dequantize_from<true, PLANES>(words, scales, l, out, d) : dequantize_from<false, PLANES>(words, scales, l, out, d);
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
                Ints low = ints(0), high = ints(0);
                for (int j = 0, at = 0; j < lanes; j++, at += width) {
                    const Test against = above(magnitude(load(x + j * LANES)), limit & MAGNITUDE);
                    if (at < 32) low = low | keep(ints(1u << at), against);
                    else high = high | keep(ints(1u << (at - 32)), against);
                }
                join(low, high, 0, planes + p * words, streaming);
            }
    });
    if (streaming) fence();
}
