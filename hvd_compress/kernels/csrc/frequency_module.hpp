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

static void define_frequency(nb::module_& m) {
    m.def("range_encode", &range_encode);
    m.def("range_decode", &range_decode);
}

}  // namespace python
