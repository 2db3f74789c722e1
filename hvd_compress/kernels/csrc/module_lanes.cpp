// The lane kernels' part of the Python module.
#include <cmath>

#include "call.hpp"

using namespace hvd;
using nb::handle;

static int64_t words_of(int64_t d, int lanes) {
    const int64_t lines = (d + LANES - 1) / LANES;
    return LANES * ((lines + lanes - 1) / lanes);
}

static Lanes check_lanes(int64_t workers, int64_t levels, int width, int bits) {
    if (levels < 1 || levels > MAX_LEVELS) bad_value("levels must be in [1, 32767], not " + number(levels));
    if (workers < 1) bad_value("workers must be >= 1, not " + number(workers));
    if (width < 2 || width > 32) bad_value("width must be in [2, 32], not " + number(width));
    if (workers > ((int64_t(1) << width) - 1) / (2 * levels))
        bad_value("width is " + number(width) + ", too narrow for the sum of " + number(workers) + " codes of up to " +
                  number(levels) + " in magnitude");
    return {levels, workers, width, bits};
}

// int32 or int64.
class Words {
   public:
    Words(handle object, bool writable) {
        const View view(object, "words", writable, 1);
        if (view.is(4, Dtype<int32_t>::codes)) narrow = Array<int32_t>(object, "words", writable);
        else if (view.is(8, Dtype<int64_t>::codes)) wide = Array<int64_t>(object, "words", writable);
        else bad_type("words must be int32 or int64");
        bits = view.buffer.itemsize == 4 ? 32 : 64;
    }
    void* data() const { return bits == 32 ? static_cast<void*>(narrow.data) : wide.data; }
    int64_t length() const { return bits == 32 ? narrow.length : wide.length; }
    int64_t bytes() const { return length() * bits / 8; }

    int bits;

   private:
    Array<int32_t> narrow;
    Array<int64_t> wide;
};

// The scales, and the votes on them.
class Choice {
   public:
    Choice(handle scales_, handle planes_, int64_t workers, int64_t d) : scale(scales_, "scales") {
        if (scale.length < 1 || scale.length > MAX_SCALES)
            bad_value("scales must have 1 to " + number(MAX_SCALES) + " elements, not " + number(scale.length));
        if (planes_.is_none() != (scale.length == 1)) bad_value("planes must be None if and only if there is one scale");
        int width = 0;
        for (int64_t n = workers; n; n >>= 1) width++;
        const int64_t words = words_of(d, 63 / width);
        if (!planes_.is_none()) {
            planes = Array<int64_t>(planes_, "planes");
            check_length("planes", planes.length, (scale.length - 1) * words);
        }
        scales = {scale.data, int(scale.length), planes.data, words, width};
    }

    Array<float> scale;
    Array<int64_t> planes;
    Scales scales;
};

namespace python {

static double norm(handle pieces, bool euclidean) {
    const Gradient g(nb::none(), pieces, -1);
    const double result = run([&](const Table& t) { return t.norm(g.input, euclidean); });
    return euclidean ? std::sqrt(result) : result;
}

static void quantize(handle pieces, handle scales, handle planes, int64_t workers, int64_t levels, int width, uint64_t key,
                     handle words_) {
    const Words words(words_, true);
    const Gradient g(nb::none(), pieces, -1);
    const Lanes lanes = check_lanes(workers, levels, width, words.bits);
    check_length("words", words.length(), words_of(g.input.d, lanes.count()));
    const Choice choice(scales, planes, workers, g.input.d);
    for (int64_t c = 0; c < choice.scale.length; c++)
        if (!(choice.scale.data[c] >= 0 && std::isfinite(choice.scale.data[c])))
            bad_value("scales must be finite and >= 0, not " + std::to_string(choice.scale.data[c]));
    g.check_apart(words.data(), words.bytes(), "words");
    if (overlap(words.data(), words.bytes(), choice.planes.data, choice.planes.bytes())) bad_value("words overlaps planes");
    run([&](const Table& t) { t.quantize(g.input, choice.scales, lanes, key, words.data()); });
}

static void dequantize(handle words_, handle planes, int64_t workers, int64_t levels, int width, handle scales, handle out_) {
    const auto out = writable<float>(out_, "out");
    const Words words(words_, false);
    const Lanes lanes = check_lanes(workers, levels, width, words.bits);
    check_length("words", words.length(), words_of(out.length, lanes.count()));
    const Choice choice(scales, planes, workers, out.length);
    if (overlap(out.data, out.bytes(), words.data(), words.bytes())) bad_value("out overlaps words");
    if (overlap(out.data, out.bytes(), choice.planes.data, choice.planes.bytes())) bad_value("out overlaps planes");
    run([&](const Table& t) { t.dequantize(words.data(), choice.scales, lanes, out.data, out.length); });
}

static void mask(handle pieces, handle limits_, int width, handle planes_) {
    const auto planes = writable<int64_t>(planes_, "planes");
    const Array<float> limits(limits_, "limits");
    const Gradient g(nb::none(), pieces, -1);
    if (width < 1 || width > 32) bad_value("width must be in [1, 32], not " + number(width));
    bool sound = limits.length < MAX_SCALES;
    for (int64_t p = 0; sound && p < limits.length; p++)
        sound = limits.data[p] >= 0 && (p == 0 || limits.data[p] <= limits.data[p - 1]);
    if (!sound) bad_value("limits must be up to " + number(MAX_SCALES - 1) + " numbers >= 0 that do not ascend");
    const int64_t words = words_of(g.input.d, 63 / width);
    check_length("planes", planes.length, limits.length * words);
    g.check_apart(planes.data, planes.bytes(), "planes");
    run([&](const Table& t) { t.mask(g.input, limits.data, int(limits.length), width, planes.data, words); });
}

static void permutation(uint64_t key, int64_t start, int64_t size, handle out_) {
    const auto out = writable<uint32_t>(out_, "out");
    if (size < 1 || size > int64_t(0xffffffff)) bad_value("size must be in [1, 2**32), not " + number(size));
    if (start < 0 || start > size - out.length)
        bad_value("start = " + number(start) + " and the length of out, " + number(out.length) + ", exceed the size " + number(size));
    run([&](const Table& t) { t.permutation(key, start, size, out.data, out.length); });
}

// Where the sections of d elements end.
static Array<int64_t> check_sections(handle ends_, int64_t d) {
    Array<int64_t> ends(ends_, "ends");
    int64_t before = 0;
    for (int64_t s = 0; s < ends.length; s++) {
        if (ends.data[s] <= before) bad_value("ends must ascend from above 0");
        before = ends.data[s];
    }
    if (before != d) bad_value("the last of ends must be the number of elements, " + number(d) + ", not " + number(before));
    return ends;
}

static void section_moments(handle x_, handle ends_, handle largest_, handle totals_, handle squares_) {
    const auto largest = writable<float>(largest_, "largest");
    const auto totals = writable<double>(totals_, "totals"), squares = writable<double>(squares_, "squares");
    const Array<float> x(x_, "x");
    const Array<int64_t> ends = check_sections(ends_, x.length);
    check_length("largest", largest.length, ends.length);
    check_length("totals", totals.length, ends.length);
    check_length("squares", squares.length, ends.length);
    run([&](const Table& t) { t.section_moments(x.data, ends.data, ends.length, largest.data, totals.data, squares.data); });
}

static void ternarize(handle x_, handle ends_, handle scales_, uint64_t key, handle codes_) {
    const auto codes = writable<uint8_t>(codes_, "codes");
    const Array<float> x(x_, "x"), scales(scales_, "scales");
    const Array<int64_t> ends = check_sections(ends_, x.length);
    check_length("scales", scales.length, ends.length);
    check_length("codes", codes.length, (x.length + 3) / 4);
    if (overlap(codes.data, codes.bytes(), x.data, x.bytes())) bad_value("codes overlaps x");
    if (overlap(codes.data, codes.bytes(), scales.data, scales.bytes())) bad_value("codes overlaps scales");
    run([&](const Table& t) { t.ternarize(x.data, x.length, ends.data, scales.data, key, codes.data); });
}

static bool accumulate_ternary(handle payloads_, int64_t codes_at, handle ends_, handle scales_, handle out_) {
    const auto out = writable<float>(out_, "out");
    const Array<uint8_t> payloads(payloads_, "payloads", false, 2);
    const Array<float> scales(scales_, "scales", false, 2);
    const Array<int64_t> ends = check_sections(ends_, out.length);
    check_length("scales", scales.length, payloads.length);
    if (scales.columns != ends.length)
        bad_value("scales has " + number(scales.columns) + " columns for " + number(ends.length) + " sections");
    if (codes_at < 0 || codes_at > payloads.columns - (out.length + 3) / 4)
        bad_value("codes_at = " + number(codes_at) + " and the codes exceed payloads of " + number(payloads.columns) + " bytes");
    if (overlap(out.data, out.bytes(), payloads.data, payloads.bytes())) bad_value("out overlaps payloads");
    if (overlap(out.data, out.bytes(), scales.data, scales.bytes())) bad_value("out overlaps scales");
    return run([&](const Table& t) {
        return t.accumulate_ternary(payloads.data + codes_at, payloads.columns, payloads.length, ends.data, scales.data,
                                    ends.length, out.data, out.length);
    });
}

}  // namespace python

void hvd::bind_lanes(nb::module_& m) {
    using namespace nb::literals;
    m.def("norm", &python::norm, "pieces"_a, "euclidean"_a);
    m.def("quantize", &python::quantize, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg());
    m.def("dequantize", &python::dequantize, "words"_a, "planes"_a.none(), "workers"_a, "levels"_a, "width"_a, "scales"_a, "out"_a);
    m.def("mask", &python::mask, "pieces"_a, "limits"_a, "width"_a, "planes"_a);
    m.def("permutation", &python::permutation);
    m.def("section_moments", &python::section_moments);
    m.def("ternarize", &python::ternarize, "x"_a, "ends"_a, "scales"_a, "key"_a, "codes"_a);
    m.def("accumulate_ternary", &python::accumulate_ternary);
}
