// Values as they travel: float32, bfloat16 or float16.
#pragma once

inline Line widen_half(const void* words, int wire) { return wire == BFLOAT16 ? widen_bfloat16(words) : widen_float16(words); }
inline Line widen_words(const void* words, int wire) { return wire == FLOAT32 ? load(words) : widen_half(words, wire); }

inline void narrow_words(uint16_t* words, Line x, int wire) {
    wire == BFLOAT16 ? narrow_bfloat16(words, x) : narrow_float16(words, x);
}

// What would round to infinity becomes the largest finite value.
inline void narrow_finite(uint16_t* words, Line x, int wire) {
    const unsigned infinity = wire == BFLOAT16 ? 0x7f80 : 0x7c00;
    narrow_words(words, x, wire);
    for (int i = 0; i < 16; i++) words[i] = uint16_t(words[i] - ((words[i] & 0x7fffu) == infinity));
}
