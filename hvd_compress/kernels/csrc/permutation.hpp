// A random permutation of [0, size), sixteen elements at a time: see Kernels.permutation.
#pragma once

constexpr int FEISTEL_ROUNDS = 8;

void permutation(uint64_t key, int64_t start, int64_t size, uint32_t* out, int64_t n) {
    uint64_t a = uint64_t(__builtin_sqrt(double(size)));
    while (int64_t(a * a) < size) a++;
    const uint64_t b = (uint64_t(size) + a - 1) / a;
    const Ints moduli[2] = {ints(uint32_t(a)), ints(uint32_t(b))};
    Ints low[FEISTEL_ROUNDS], high[FEISTEL_ROUNDS];  // of each round's key
    for (int j = 0; j < FEISTEL_ROUNDS; j++) {
        const uint64_t k = hash64(key, uint64_t(j));
        low[j] = ints(uint32_t(k));
        high[j] = ints(uint32_t(k >> 32));
    }

    const auto shuffle = [&](uint32_t* l, uint32_t* r) INLINE {
        Ints halves[2] = {load_ints(l), load_ints(r)};
        for (int j = 0; j < FEISTEL_ROUNDS; j++) {
            Ints& changed = halves[j % 2];
            const Ints spread = halves[1 - j % 2] * ints(SPREAD) + low[j], modulus = moduli[j % 2];
            const Ints sum = changed + multiply_high(mix(spread, high[j]) * ints(LAST), modulus);
            changed = least(sum, sum - modulus);  // a difference below zero is large
        }
        store(l, halves[0]);
        store(r, halves[1]);
    };
    uint64_t left = uint64_t(start) / b, right = uint64_t(start) % b;
    for (int64_t i = 0; i < n; i += LANES) {
        uint32_t l[16], r[16];
        for (int e = 0; e < 16; e++) {
            l[e] = uint32_t(left);
            r[e] = uint32_t(right);
            if (++right == b) {
                right = 0;
                left++;
            }
        }
        shuffle(l, r);
        for (int e = 0; e < 16 && i + e < n; e++) {
            uint64_t x = l[e] * b + r[e];
            while (x >= uint64_t(size)) {  // of few
                uint32_t again_l[16] = {uint32_t(x / b)}, again_r[16] = {uint32_t(x % b)};
                shuffle(again_l, again_r);
                x = again_l[0] * b + again_r[0];
            }
            out[i + e] = uint32_t(x);
        }
    }
}
