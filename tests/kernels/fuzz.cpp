// Built with AddressSanitizer and UBSan by test_decoder.py, for one instruction set (ISA, SOURCE): corrupt payloads
// against a decoder written anew, and random buckets through the other kernels. Every array is a block of its own, of
// exactly the size that the contract promises, so that a step beyond it is seen.
#include SOURCE

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

using namespace hvd;

void* hvd::scratch(Slot slot, size_t bytes) {
    static std::unique_ptr<char[]> buffers[SLOTS];
    static void* aligned[SLOTS];
    void* p = nullptr;
    if (posix_memalign(&p, 64, bytes ? bytes : 1)) abort();
    free(aligned[slot]);
    return aligned[slot] = p;
}

static std::mt19937_64 rng(1);
static int64_t below(int64_t n) { return n > 0 ? int64_t(rng() % uint64_t(n)) : 0; }
#define CHECK(condition) \
    if (!(condition)) { printf("line %d: %s\n", __LINE__, #condition); exit(1); }

static const Table& kernels = *ISA();

template <class T>
using Exact = std::unique_ptr<T[]>;
template <class T>
static Exact<T> exact(int64_t n) {
    return Exact<T>(new T[size_t(n)]());
}

struct Shape {
    int64_t d, blocks, capacity;
    int wire, count_bytes;
    int64_t counts_at = 0, positions_at, values_at, bytes;
};

static Shape make_shape() {
    const int64_t lengths[] = {0, 5, 40, 1000};
    const int64_t long_lengths[] = {65536, 65566, 131572};
    Shape s;
    s.d = below(20) ? lengths[below(4)] : long_lengths[below(3)];
    s.blocks = (s.d + BLOCK - 1) / BLOCK;
    s.capacity = 1 + below(70);
    s.wire = int(below(3));
    s.count_bytes = below(2) ? 2 : 4;
    s.positions_at = s.blocks * s.count_bytes + below(2);  // sections need not be aligned
    s.values_at = s.positions_at + 2 * s.capacity;
    s.bytes = s.values_at + s.capacity * (s.wire ? 2 : 4);
    return s;
}

static int64_t read(const uint8_t* p, int bytes) {
    int64_t n = 0;
    for (int i = 0; i < bytes; i++) n |= int64_t(p[i]) << 8 * i;
    return n;
}

static float decode(const uint8_t* p, int wire) {
    const uint32_t word = uint32_t(read(p, wire ? 2 : 4));
    if (wire == FLOAT16) {
        const int exponent = word >> 10 & 31, fraction = word & 1023;
        const double m = exponent == 31 ? (fraction ? NAN : INFINITY) : exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
        return float(word >> 15 ? -m : m);
    }
    const uint32_t b = wire ? word << 16 : word;
    float x;
    memcpy(&x, &b, 4);
    return x;
}

// What the format says, entry by entry. False: corrupt.
static bool expected(const Shape& s, const std::vector<Exact<uint8_t>>& rows, const uint32_t* entries, std::vector<float>& out) {
    for (size_t r = 0; r < rows.size(); r++) {
        const uint8_t* row = rows[r].get();
        int64_t e = 0;
        if (entries[r] > s.capacity) return false;
        for (int64_t b = 0; b < s.blocks; b++) {
            const int64_t n = read(row + s.counts_at + b * s.count_bytes, s.count_bytes);
            int64_t last = -1;
            for (int64_t i = 0; i < n; i++, e++) {
                if (e >= entries[r]) return false;
                const int64_t p = read(row + s.positions_at + 2 * e, 2);
                if (p <= last || b * BLOCK + p >= s.d) return false;
                last = p;
                const float x = decode(row + s.values_at + e * (s.wire ? 2 : 4), s.wire);
                if (x - x != 0) return false;  // infinite, or none
                out[size_t(b * BLOCK + p)] += x * 0.5f;
            }
        }
        if (e != entries[r]) return false;
    }
    return true;
}

static bool fuzz_decoder() {
    const Shape s = make_shape();
    const int64_t n = 1 + below(3);
    std::vector<Exact<uint8_t>> rows;
    auto payloads = exact<uint8_t>(n * s.bytes);
    auto entries = exact<uint32_t>(n);
    for (int64_t r = 0; r < n; r++) {
        const int64_t k = below(std::min(s.capacity, s.d) + 1);
        auto indices = exact<uint32_t>(k);
        auto values = exact<float>(k);
        int64_t index = 0, kept = 0;
        for (; kept < k; kept++) {
            index += 1 + below(s.d / (k + 1));
            if (index > s.d) break;
            indices[kept] = uint32_t(index - 1);
            values[kept] = float(below(2000) - 1000) / 64;
        }
        entries[r] = uint32_t(kept);
        auto counts16 = exact<uint16_t>(s.blocks);
        auto counts32 = exact<uint32_t>(s.blocks);
        auto positions = exact<uint16_t>(s.capacity);
        auto words = exact<uint8_t>(s.capacity * (s.wire ? 2 : 4));
        auto memory = exact<float>(s.d);
        void* counts = s.count_bytes == 2 ? static_cast<void*>(counts16.get()) : counts32.get();
        const Packed packed{counts, s.count_bytes, s.blocks, positions.get(), words.get(), s.capacity, s.wire};
        CHECK(kernels.pack(indices.get(), values.get(), kept, packed, s.wire ? memory.get() : nullptr) == Bad::nothing);
        rows.push_back(exact<uint8_t>(s.bytes));
        memcpy(rows[size_t(r)].get() + s.counts_at, counts, size_t(s.blocks * s.count_bytes));
        memcpy(rows[size_t(r)].get() + s.positions_at, positions.get(), size_t(2 * s.capacity));
        memcpy(rows[size_t(r)].get() + s.values_at, words.get(), size_t(s.capacity * (s.wire ? 2 : 4)));
    }
    const int64_t victim = below(n);
    uint8_t* row = rows[size_t(victim)].get();
    switch (below(5)) {
        case 0:
            for (int64_t i = below(8); i >= 0; i--) row[below(s.bytes)] ^= uint8_t(1 << below(8));
            break;
        case 1: entries[victim] = uint32_t(below(4) ? entries[victim] + below(3) - 1 : rng()); break;
        case 2: if (s.blocks) row[below(s.blocks * s.count_bytes)] = uint8_t(rng()); break;
        case 3: row[s.positions_at + below(2 * s.capacity)] = uint8_t(rng()); break;
        case 4: {
            const int64_t from = below(s.bytes);
            memset(row + from, below(2) ? 0xff : 0, size_t(s.bytes - from));
        }
    }
    for (int64_t r = 0; r < n; r++) memcpy(payloads.get() + r * s.bytes, rows[size_t(r)].get(), size_t(s.bytes));

    std::vector<float> wanted(size_t(s.d), 0.0f);
    const bool sound = expected(s, rows, entries.get(), wanted);
    const Payloads p{payloads.get(), n, s.bytes, s.counts_at, s.positions_at, s.values_at, s.count_bytes, s.capacity, s.wire, entries.get()};
    auto out = exact<float>(s.d);
    CHECK((kernels.accumulate(p, 0.5f, out.get(), s.d) < 0) == sound);
    if (!sound) return false;
    for (int64_t i = 0; i < s.d; i++) {
        const float x = out[i], y = wanted[size_t(i)];
        CHECK(x == y || (x != x && y != y));
    }
    return true;
}

static float draw(int kind) {
    switch (kind) {
        case 0: return float(below(1 << 24) - (1 << 23)) / (1 << 20);
        case 1: return float(below(5) - 2);
        case 2: return below(50) ? 0.0f : float(below(100));
        default: {
            const uint32_t b = uint32_t(rng());
            float x;
            memcpy(&x, &b, 4);
            return x;  // infinities and NaNs too
        }
    }
}

static int64_t words_of(int64_t d, int lanes) { return LANES * ((d + LANES * lanes - 1) / (LANES * lanes)); }

static int64_t lane(int64_t word, int bits, int width, int j, int64_t bias) {
    uint64_t biased = uint64_t(word);
    for (int i = 0; i < bits / width; i++) biased += uint64_t(bias) << width * i;
    return int64_t(biased >> width * j & ((uint64_t(1) << width) - 1)) - bias;
}

// Votes, codes, and their sums, in words of random widths.
static void fuzz_lanes(const Input& gradient) {
    const int64_t d = gradient.d;
    const int64_t workers = 1 + below(below(2) ? 9 : 5000), levels = 1 + below(below(2) ? 8 : MAX_LEVELS);
    int width = 2, vote_width = 1;
    while (2 * levels * workers >= int64_t(1) << width) width++;
    while (workers >= int64_t(1) << vote_width) vote_width++;
    if (width < 32) width += int(below(33 - width));
    const Lanes lanes{levels, workers, width, below(2) ? 64 : 32};
    const int count = 1 + int(below(4));
    const int64_t plane = words_of(d, 63 / vote_width), n = words_of(d, lanes.count());
    auto limits = exact<float>(count - 1), scale = exact<float>(count);
    for (int p = 0; p < count; p++) {
        if (p) limits[p - 1] = 2.0f / float(p);
        scale[p] = std::ldexp(1.0f, int(below(40)));
    }
    auto planes = exact<int64_t>((count - 1) * plane);
    kernels.mask(gradient, limits.get(), count - 1, vote_width, planes.get(), plane);
    const Scales scales{scale.get(), count, planes.get(), plane, vote_width};
    auto narrow = exact<int32_t>(n);
    auto wide = exact<int64_t>(n);
    void* words = lanes.bits == 32 ? static_cast<void*>(narrow.get()) : wide.get();
    kernels.quantize(gradient, scales, lanes, rng(), words);
    auto out = exact<float>(d);
    for (int p = 0; p < count; p++) scale[p] = 1;
    kernels.dequantize(words, scales, lanes, out.get(), d);
    for (int64_t i = 0; i < d; i++) {
        const int64_t line = i / LANES, at = line / lanes.count() * LANES + i % LANES;
        const int64_t word = lanes.bits == 32 ? int64_t(uint32_t(narrow[at])) : wide[at];
        const int64_t code = lane(word, lanes.bits, width, int(line % lanes.count()), levels * workers);
        CHECK(std::abs(code) <= levels && float(code) == out[i]);
    }

    const int64_t size = 1 + below(below(2) ? 100 : 0xffffffff), start = below(size), m = std::min(size - start, below(100));
    auto permuted = exact<uint32_t>(m);
    kernels.permutation(rng(), start, size, permuted.get(), m);
    for (int64_t i = 0; i < m; i++) CHECK(permuted[i] < size);
}

static void fuzz_bucket() {
    const int64_t d = below(8) ? below(300) : below(30000);
    const int kind = int(below(4));
    auto memory = exact<float>(d), a = exact<float>(d), out = exact<float>(d);
    std::vector<Exact<float>> pieces;
    std::vector<const float*> pointers;
    std::vector<int64_t> ends;
    bool finite = true;
    for (int64_t begin = 0; begin < d || pieces.empty();) {
        const int64_t n = below(3) ? std::min(d - begin, below(d + 1)) : d - begin;
        pieces.push_back(exact<float>(n));
        for (int64_t i = 0; i < n; i++) {
            pieces.back()[i] = draw(kind);
            memory[begin + i] = draw(kind);
            a[begin + i] = memory[begin + i] + pieces.back()[i];
            finite &= bool(std::isfinite(a[begin + i]));
        }
        pointers.push_back(pieces.back().get());
        ends.push_back(begin += n);
    }
    const Input in{memory.get(), pointers.data(), ends.data(), int64_t(pieces.size()), d};

    const Moments m = kernels.add(in, out.get());
    CHECK(m.count == d && std::isfinite(m.largest) == finite);
    const int64_t lines = below(d / 8 + 2);
    const int64_t sampled = lines >= d / LANES ? d : lines * LANES;
    auto sample = exact<float>(sampled), above = exact<float>(sampled);
    CHECK(kernels.sample(in, rng(), lines, sample.get()).count == sampled);
    kernels.exceedances(sample.get(), sampled, 0.5f, above.get());
    if (sampled && finite) CHECK(kernels.kth_largest(sample.get(), sampled, 1 + below(sampled)) < INFINITE);
    kernels.exceedances(sample.get(), sampled, 0.5f, sample.get());
    auto products = exact<double>((sampled + LOG_ROWS * LANES - 1) / (LOG_ROWS * LANES) * LANES);
    int64_t exponents;
    kernels.log_sum(above.get(), sampled, &exponents, products.get());
    auto u = exact<float>(d), v = exact<float>(d);
    const Input gradient{nullptr, pointers.data(), ends.data(), int64_t(pieces.size()), d};
    CHECK(std::isfinite(kernels.norm(gradient, below(2))) || kind == 3);
    fuzz_lanes(gradient);
    kernels.add_momentum(gradient, memory.get(), a.get(), 0.9f, below(2), u.get(), v.get());
    for (int wire = 1; wire < 3; wire++) {
        auto words = exact<uint16_t>(2 * d);
        kernels.narrow(a.get(), d, wire, words.get());
        memcpy(words.get() + d, words.get(), size_t(d) * 2);
        kernels.accumulate_dense(words.get(), 2, d, wire, 0.5f, u.get());
    }

    const int64_t capacity = below(4) ? below(d + 2) : below(30);
    const int64_t space = 2 * capacity + 4096;
    auto indices = exact<uint32_t>(space);
    auto values = exact<float>(space);
    const uint32_t thresholds[] = {0, 1, 0x3f000000, 0x40000000, LARGEST_FINITE, INFINITE};
    const Selection s = kernels.select(in, out.get(), thresholds[below(6)], capacity, indices.get(), values.get(), space);
    CHECK(s.finite == finite);
    if (!finite) return;
    CHECK(s.kept <= s.found && s.kept <= capacity);
    for (int64_t i = 0; i < s.kept; i++) {
        CHECK(out[indices[i]] == 0);
        out[indices[i]] = values[i];
    }
    for (int64_t i = 0; i < d; i++) CHECK(out[i] == a[i]);
}

int main(int, char** arguments) {
    const int cases = atoi(arguments[1]);
    int refused = 0;
    for (int i = 0; i < cases; i++) refused += !fuzz_decoder();
    for (int i = 0; i < cases / 10; i++) fuzz_bucket();
    printf("%d payloads, %d refused\n", cases, refused);
}
