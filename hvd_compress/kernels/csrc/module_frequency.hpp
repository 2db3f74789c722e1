// The bindings of frequency-domain compression; included by module.cpp, whose `run` and checks they use.
#pragma once

namespace python {

struct CodeArguments {
    int bits, mantissa;
    int64_t base, positives, negatives;
    double low, high;
};

static RangeCode checked_code(const CodeArguments& c) {
    if (c.bits < 4 || c.bits > 16 || c.mantissa < 0 || c.mantissa > 16 || c.base < 1 || c.base > int64_t(1) << (c.mantissa + 8))
        bad_value("code is not a range-based float");
    if (c.positives < 0 || c.negatives < 0 || c.positives + c.negatives >= int64_t(1) << c.bits)
        bad_value("code has too many values");
    if (!(c.low <= 0 && c.high >= 0 && std::isfinite(float(c.low)) && std::isfinite(float(c.high))))
        bad_value("code has no range around zero");
    const float low = float(-c.low), high = float(c.high);
    RangeCode code{c.bits, 23 - c.mantissa, int32_t(c.base), int32_t(c.positives), int32_t(c.negatives), 0, 0};
    memcpy(&code.low, &low, 4);
    memcpy(&code.high, &high, 4);
    code.low &= MAGNITUDE;
    code.high &= MAGNITUDE;
    return code;
}

static void range_encode(handle x_, const std::tuple<int, int, int64_t, int64_t, int64_t, double, double>& code_,
                         bool stochastic, uint64_t key, handle out_) {
    const auto out = writable<uint8_t>(out_, "out");
    const Array<float> x(x_, "x");
    const auto& [bits, mantissa, base, positives, negatives, low, high] = code_;
    const RangeCode code = checked_code({bits, mantissa, base, positives, negatives, low, high});
    check_length("out", out.length, (x.length * code.bits + 7) / 8);
    if (overlap(out.data, out.bytes(), x.data, x.bytes())) bad_value("out overlaps x");
    run([&](const Table& t) { t.frequency.range_encode(x.data, x.length, code, stochastic, key, out.data); });
}

// False, with nothing written, if a code has no value in the table.
static bool range_decode(handle packed_, int bits, handle table_, handle out_) {
    const auto out = writable<float>(out_, "out");
    const Array<uint8_t> packed(packed_, "packed");
    const Array<float> values(table_, "table");
    if (bits < 4 || bits > 16) bad_value("bits must be from 4 to 16, not " + number(bits));
    check_length("packed", packed.length, (out.length * bits + 7) / 8);
    if (overlap(out.data, out.bytes(), packed.data, packed.bytes())) bad_value("out overlaps packed");
    if (overlap(out.data, out.bytes(), values.data, values.bytes())) bad_value("out overlaps table");
    return run([&](const Table& t) {
        if (!t.frequency.range_codes_below(packed.data, out.length, bits, uint32_t(values.length))) return false;
        t.frequency.range_decode(packed.data, out.length, bits, values.data, out.data);
        return true;
    });
}

struct Plan {
    Plan(handle roots_, handle factors_, int64_t block, int64_t length)
        : roots(roots_, "roots"), factors(factors_, "factors"), blocks(length / block) {
        if (block < 16 || block > 65536 || block & (block - 1)) bad_value("block must be a power of two from 16 to 65536, not " + number(block));
        if (length % block) bad_value("out has " + number(length) + " elements, not blocks of " + number(block));
        check_length("roots", roots.length, block);
        check_length("factors", factors.length, block / 2 + 2);
        transform = {block, roots.data, factors.data};
    }
    Array<float> roots, factors;
    int64_t blocks;
    Transform transform;
};

// None, or an array that may be `out` itself.
struct Minuend : Array<float> {
    Minuend(handle object, const Array<float>& out) : Array<float>(object.is_none() ? Array<float>() : Array<float>(object, "minuend")) {
        if (object.is_none()) return;
        check_length("minuend", length, out.length);
        if (data != out.data && overlap(out.data, out.bytes(), data, bytes())) bad_value("out overlaps minuend");
    }
};

static void forward(handle x_, int64_t block, handle roots, handle factors, handle out_) {
    const auto out = writable<float>(out_, "out");
    const Array<float> x(x_, "x");
    const Plan plan(roots, factors, block, out.length);
    check_length("x", x.length, out.length);
    if (overlap(out.data, out.bytes(), x.data, x.bytes())) bad_value("out overlaps x");
    run([&](const Table& t) { t.frequency.forward(x.data, plan.blocks, plan.transform, out.data); });
}

static void inverse(handle spectrum_, int64_t block, handle roots, handle factors, double scale, handle minuend_, handle out_) {
    const auto out = writable<float>(out_, "out");
    const Array<float> spectrum(spectrum_, "spectrum");
    const Plan plan(roots, factors, block, out.length);
    check_length("spectrum", spectrum.length, out.length);
    if (overlap(out.data, out.bytes(), spectrum.data, spectrum.bytes())) bad_value("out overlaps spectrum");
    const Minuend minuend(minuend_, out);
    run([&](const Table& t) {
        t.frequency.inverse(spectrum.data, plan.blocks, plan.transform, float(scale), minuend.data, out.data);
    });
}

static nb::tuple select_pairs(handle pairs_, double scale, double threshold_, int64_t capacity, handle indices_, handle energies_) {
    const Array<float> pairs(pairs_, "pairs");
    const auto indices = writable<uint32_t>(indices_, "indices");
    const auto energies = writable<float>(energies_, "energies");
    const float threshold = checked_threshold(threshold_);
    if (pairs.length % 2 || pairs.length / 2 > int64_t(0xffffffff)) bad_value("pairs has " + number(pairs.length) + " elements");
    if (capacity < 0 || capacity > int64_t(0xffffffff)) bad_value("capacity must be >= 0, not " + number(capacity));
    const int64_t space = 2 * capacity + 4096;
    if (indices.length != energies.length || indices.length < space)
        bad_value("indices and energies need " + number(space) + " elements each (see workspace)");
    uint32_t bits;
    memcpy(&bits, &threshold, 4);
    const Selection s = run([&](const Table& t) {
        return t.frequency.select_pairs(pairs.data, pairs.length / 2, float(scale), bits & MAGNITUDE, capacity, indices.data,
                                        energies.data, indices.length);
    });
    return nb::make_tuple(s.found, s.kept, s.finite);
}

static nb::tuple gather_pairs(handle pairs_, handle indices_, handle values_) {
    const Array<float> pairs(pairs_, "pairs");
    const Array<uint32_t> indices(indices_, "indices");
    const auto values = writable<float>(values_, "values");
    check_length("values", values.length, 2 * indices.length);
    float range[2];
    const bool inside = run([&](const Table& t) {
        uint32_t largest = 0;
        for (int64_t i = 0; i < indices.length; i++) largest = indices.data[i] > largest ? indices.data[i] : largest;
        if (indices.length && int64_t(largest) >= pairs.length / 2) return false;
        t.frequency.gather_pairs(pairs.data, indices.data, indices.length, values.data, range);
        return true;
    });
    if (!inside) bad_value("indices must be below " + number(pairs.length / 2));
    return nb::make_tuple(double(range[0]), double(range[1]));
}

static void mark(handle indices_, handle bitmap_) {
    const Array<uint32_t> indices(indices_, "indices");
    const auto bitmap = writable<uint8_t>(bitmap_, "bitmap");
    if (!run([&](const Table& t) { return t.frequency.mark(indices.data, indices.length, bitmap.data, bitmap.length); }))
        bad_value("indices must ascend strictly and be below " + number(8 * bitmap.length));
}

// The row of the first corrupt payload; -1 if there is none, and `out` and `rest` are written.
static int64_t synthesize(handle payloads_, const std::tuple<int64_t, int64_t, int64_t, int, int64_t, int>& sections, handle entries_,
                          const nb::sequence& tables_, int64_t block, handle roots, handle factors, double scale, handle minuend_,
                          handle out_, handle rest_) {
    const Array<uint8_t> payloads(payloads_, "payloads", false, 2);
    const Array<uint32_t> entries(entries_, "entries");
    const auto out = writable<float>(out_, "out"), rest = writable<float>(rest_, "rest");
    const Plan plan(roots, factors, block, out.length);
    const Minuend minuend(minuend_, out);
    const auto& [counts_at, places_at, codes_at, count_bytes, capacity, bits] = sections;
    check_length("entries", entries.length, payloads.length);
    check_length("tables", int64_t(nb::len(tables_)), payloads.length);
    if (rest.length % 2) bad_value("rest has " + number(rest.length) + " elements, which are no pairs");
    if (count_bytes != 0 && count_bytes != 2 && count_bytes != 4) bad_value("count_bytes must be 0, 2 or 4, not " + number(count_bytes));
    if (bits < 4 || bits > 16) bad_value("bits must be from 4 to 16, not " + number(bits));
    if (capacity < 0 || capacity > 8 * payloads.columns) bad_value("capacity does not fit the payloads: " + number(capacity));
    const int64_t pairs = (out.length + rest.length) / 2;
    const auto fits = [&](const char* name, int64_t at, int64_t size) {
        if (at < 0 || size > payloads.columns || at > payloads.columns - size)
            bad_value(string(name) + " = " + number(at) + " and its " + number(size) + " bytes exceed payloads of " +
                      number(payloads.columns) + " bytes");
    };
    fits("counts_at", counts_at, (pairs + BLOCK - 1) / BLOCK * count_bytes);
    fits("places_at", places_at, count_bytes ? capacity * 2 : (pairs + 63) / 64 * 8);
    fits("codes_at", codes_at, (2 * capacity * bits + 7) / 8);
    for (const Array<float>* to : {&out, &rest})
        if (overlap(to->data, to->bytes(), payloads.data, payloads.bytes())) bad_value("out or rest overlaps payloads");
    std::vector<Array<float>> tables;
    std::vector<const float*> pointers;
    std::vector<uint32_t> lengths;
    for (handle item : tables_) {
        tables.emplace_back(item, "tables[" + number(int64_t(tables.size())) + "]");
        pointers.push_back(tables.back().data);
        lengths.push_back(uint32_t(tables.back().length));
    }
    const SpectrumPayloads p{payloads.data, payloads.length, payloads.columns, counts_at, places_at, codes_at, count_bytes,
                             capacity, bits, entries.data, pointers.data(), lengths.data()};
    return run([&](const Table& t) {
        const int64_t corrupt = t.frequency.check_pairs(p, pairs);
        if (corrupt < 0)
            t.frequency.synthesize(p, plan.blocks, plan.transform, float(scale), minuend.data, out.data, rest.data, rest.length / 2);
        return corrupt;
    });
}

static void define_frequency(nb::module_& m) {
    using namespace nb::literals;
    m.def("range_encode", &range_encode);
    m.def("range_decode", &range_decode);
    m.def("select_pairs", &select_pairs);
    m.def("gather_pairs", &gather_pairs, "pairs"_a, "indices"_a, "values"_a);
    m.def("mark", &mark, "indices"_a, "bitmap"_a);
    m.def("synthesize", &synthesize, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
          nb::arg().none(), nb::arg(), nb::arg());
    m.def("forward", &forward);
    m.def("inverse", &inverse, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg());
}

}  // namespace python
