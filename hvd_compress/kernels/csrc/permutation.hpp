// A random permutation of [0, size), an element at a time: see Kernels.permutation.
#pragma once

constexpr int ROUNDS = 8;

void permutation(uint64_t key, int64_t start, int64_t size, uint32_t* out, int64_t n) {
    uint64_t a = uint64_t(__builtin_sqrt(double(size)));
    while (int64_t(a * a) < size) a++;
    const uint64_t b = (uint64_t(size) + a - 1) / a;
    uint64_t keys[ROUNDS];
    for (int j = 0; j < ROUNDS; j++) keys[j] = hash64(key, uint64_t(j));

    // The first of these is P for all, and the next for those whose images are not below size: few.
    const auto shuffle = [&](uint32_t* l, uint32_t* r) INLINE {
        for (int j = 0; j < ROUNDS; j++) {
            uint32_t *changed = j % 2 ? r : l, *other = j % 2 ? l : r;
            const uint32_t modulus = uint32_t(j % 2 ? b : a);
            uint32_t hashed[16];
            const Ints spread = load_ints(other) * ints(SPREAD) + ints(uint32_t(keys[j]));
            store(hashed, mix(spread, uint32_t(keys[j] >> 32)) * ints(LAST));
            for (int i = 0; i < 16; i++) {
                const uint32_t sum = changed[i] + uint32_t(uint64_t(hashed[i]) * modulus >> 32);
                changed[i] = sum < modulus ? sum : sum - modulus;
            }
        }
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
            while (x >= uint64_t(size)) {
                uint32_t again_l[16] = {uint32_t(x / b)}, again_r[16] = {uint32_t(x % b)};
                shuffle(again_l, again_r);
                x = again_l[0] * b + again_r[0];
            }
            out[i + e] = uint32_t(x);
        }
    }
}
