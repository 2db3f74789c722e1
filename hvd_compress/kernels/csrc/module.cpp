// The Python module: check the arguments, let go of the GIL, run the kernel.
#include <cmath>
#include <cstring>

#include <nanobind/stl/tuple.h>

#include "call.hpp"

using namespace hvd;
using nb::handle;

static nb::tuple as_tuple(const Moments& m) { return nb::make_tuple(m.count, m.total, m.squares, double(m.largest)); }

static float checked_threshold(double threshold) {
    if (!(threshold >= 0)) bad_value("threshold must be >= 0, not " + std::to_string(threshold));
    return float(threshold);
}

static void check_wire(int wire, int lowest) {
    if (wire < lowest || wire > FLOAT16)
        bad_value("wire must be " + string(lowest ? "1 or 2" : "0, 1 or 2") + " (see WIRES), not " + number(wire));
}

namespace python {

static nb::tuple add(handle memory, handle pieces, handle out_) {
    const auto out = writable<float>(out_, "out");
    const Gradient a(memory, pieces, out.length);
    a.check_overlap(out, "out");
    return as_tuple(run([&](const Table& t) { return t.add(a.input, out.data); }));
}

static bool add_momentum(
    handle momentum, handle velocity, handle pieces, double beta, bool nesterov, handle momentum_out,
    handle velocity_out) {
    const auto u_out = writable<float>(momentum_out, "momentum_out"), v_out = writable<float>(velocity_out, "velocity_out");
    const Array<float> u(momentum, "momentum"), v(velocity, "velocity");
    const int64_t d = u_out.length;
    check_length("velocity_out", v_out.length, d);
    check_length("momentum", u.length, d);
    check_length("velocity", v.length, d);
    const Gradient g(nb::none(), pieces, d);
    g.check_overlap(u_out, "momentum_out", false);
    g.check_overlap(v_out, "velocity_out", false);
    const Array<float>*outs[2] = {&u_out, &v_out}, *ins[2] = {&u, &v};
    const char *out_names[2] = {"momentum_out", "velocity_out"}, *in_names[2] = {"momentum", "velocity"};
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++)
            if (!(i == j && outs[i]->data == ins[j]->data) &&
                overlap(outs[i]->data, outs[i]->bytes(), ins[j]->data, ins[j]->bytes()))
                bad_value(string(out_names[i]) + " overlaps " + in_names[j]);
    if (overlap(u_out.data, u_out.bytes(), v_out.data, v_out.bytes())) bad_value("momentum_out overlaps velocity_out");
    return run([&](const Table& t) {
        return t.add_momentum(g.input, u.data, v.data, float(beta), nesterov, u_out.data, v_out.data);
    });
}

static nb::tuple sample(handle memory, handle pieces, uint64_t key, int64_t lines, handle out_) {
    const auto out = writable<float>(out_, "out");
    const Gradient a(memory, pieces, -1);
    if (lines < 0) bad_value("lines must be >= 0, not " + number(lines));
    const int64_t wanted = lines >= a.input.d / LANES ? a.input.d : lines * LANES;
    if (out.length < wanted)
        bad_value("out has room for " + number(out.length) + " elements, not for " + number(wanted));
    a.check_overlap(out, "out", false);
    return as_tuple(run([&](const Table& t) { return t.sample(a.input, key, lines, out.data); }));
}

static nb::tuple exceedances(handle x_, double threshold, handle out_) {
    const auto out = writable<float>(out_, "out");
    const Array<float> x(x_, "x");
    const float limit = checked_threshold(threshold);
    if (out.length < x.length)
        bad_value("out has " + number(out.length) + " elements, fewer than x, " + number(x.length));
    if (out.data != x.data && overlap(out.data, out.bytes(), x.data, x.bytes())) bad_value("out overlaps x");
    return as_tuple(run([&](const Table& t) { return t.exceedances(x.data, x.length, limit, out.data); }));
}

// The count of positive elements and the sum of their exponents; the significands' products go to `products`.
static nb::tuple log_sum(handle x_, handle products_) {
    const Array<float> x(x_, "x");
    const auto products = writable<double>(products_, "products");
    const int64_t chunk = LOG_ROWS * LANES;
    check_length("products", products.length, (x.length + chunk - 1) / chunk * LANES);
    int64_t exponents = 0;
    const int64_t count = run([&](const Table& t) { return t.log_sum(x.data, x.length, &exponents, products.data); });
    return nb::make_tuple(count, exponents);
}

static double kth_largest(handle x_, int64_t k) {
    const Array<float> x(x_, "x");
    if (k < 1 || k > x.length) bad_value("k must be in [1, " + number(x.length) + "], not " + number(k));
    const uint32_t bits = run([&](const Table& t) { return t.kth_largest(x.data, x.length, k); });
    float result;
    memcpy(&result, &bits, 4);
    return double(result);
}

static nb::tuple select(handle memory, handle pieces, handle out_, double threshold_, int64_t capacity, handle indices_,
                        handle values_) {
    const auto out = writable<float>(out_, "out");
    const auto indices = writable<uint32_t>(indices_, "indices");
    const auto values = writable<float>(values_, "values");
    const Gradient a(memory, pieces, out.length);
    const float threshold = checked_threshold(threshold_);
    if (capacity < 0 || capacity > int64_t(0xffffffff)) bad_value("capacity must be >= 0, not " + number(capacity));
    const int64_t space = 2 * capacity + 4096;
    if (indices.length != values.length || indices.length < space)
        bad_value("indices and values need " + number(space) + " elements each (see workspace)");
    a.check_overlap(out, "out");
    if (overlap(out.data, out.bytes(), indices.data, indices.bytes())) bad_value("indices overlap out");
    if (overlap(out.data, out.bytes(), values.data, values.bytes())) bad_value("values overlap out");
    uint32_t bits;
    memcpy(&bits, &threshold, 4);
    const Selection s = run([&](const Table& t) {
        return t.select(a.input, out.data, bits & MAGNITUDE, capacity, indices.data, values.data, indices.length);
    });
    return nb::make_tuple(s.found, s.kept, s.finite);
}

constexpr int64_t AHEAD = 32;  // indices, at random: how early their cache lines are asked for

// The largest index, or -1.
static int64_t largest(const Array<uint32_t>& indices) {
    int64_t found = -1;
    for (int64_t i = 0; i < indices.length; i++) found = int64_t(indices.data[i]) > found ? int64_t(indices.data[i]) : found;
    return found;
}

static void restore(handle out_, handle indices_, handle values_) {
    const auto out = writable<float>(out_, "out");
    const Array<uint32_t> indices(indices_, "indices");
    const Array<float> values(values_, "values");
    check_length("values", values.length, indices.length);
    const bool inside = run([&](const Table&) {
        if (largest(indices) >= out.length) return false;
        for (int64_t i = 0; i < indices.length; i++) {
            if (i + AHEAD < indices.length) __builtin_prefetch(out.data + indices.data[i + AHEAD], 1);
            out.data[indices.data[i]] = values.data[i];
        }
        return true;
    });
    if (!inside) bad_value("indices must be below len(out) = " + number(out.length));
}

static void take(handle values_, handle indices_, handle out_) {
    const Array<float> values(values_, "values");
    const Array<uint32_t> indices(indices_, "indices");
    const auto out = writable<float>(out_, "out");
    check_length("out", out.length, indices.length);
    const bool inside = run([&](const Table&) {
        if (largest(indices) >= values.length) return false;
        for (int64_t i = 0; i < indices.length; i++) {
            if (i + AHEAD < indices.length) __builtin_prefetch(values.data + indices.data[i + AHEAD]);
            out.data[i] = values.data[indices.data[i]];
        }
        return true;
    });
    if (!inside) bad_value("indices must be below len(values) = " + number(values.length));
}

static void pack(handle indices_, handle values_, int wire, handle counts_, handle positions_, handle words_, handle memory_) {
    check_wire(wire, FLOAT32);
    const Array<uint32_t> indices(indices_, "indices");
    const Array<float> values(values_, "values");
    const auto positions = writable<uint16_t>(positions_, "positions");
    const View counts(counts_, "counts", true, 1);
    const int count_bytes = counts.is(2, "H") ? 2 : counts.is(4, "IL") ? 4 : 0;
    if (!count_bytes) bad_type("counts must be uint16 or uint32");
    if (reinterpret_cast<uintptr_t>(counts.buffer.buf) % size_t(count_bytes)) bad_value("counts must be aligned to its elements");
    const View words(words_, "words", true, 1);
    const size_t size = wire == FLOAT32 ? 4 : 2;
    if (!words.is(size, wire == FLOAT32 ? "f" : "H")) bad_type(wire == FLOAT32 ? "words must be float32" : "words must be uint16");
    if (reinterpret_cast<uintptr_t>(words.buffer.buf) % size) bad_value("words must be aligned to its elements");
    const int64_t room = positions.length;
    Array<float> memory;
    const bool lossy = wire != FLOAT32 && !memory_.is_none();
    const int64_t n = indices.length;
    check_length("values", values.length, n);
    check_length("words", words.buffer.shape[0], room);
    if (n > room) bad_value("indices has " + number(n) + " elements, and positions room for " + number(room));
    const auto go = [&](float* to, int64_t length) {
        if (to && n && int64_t(indices.data[n - 1]) >= length)
            bad_value("memory has " + number(length) + " elements, and indices reach " + number(indices.data[n - 1]));
        const Packed packed{counts.buffer.buf, count_bytes, int64_t(counts.buffer.shape[0]), positions.data, words.buffer.buf, room, wire};
        return run([&](const Table& t) { return t.pack(indices.data, values.data, n, packed, to); });
    };
    Bad bad;
    if (lossy) {
        const auto target = writable<float>(memory_, "memory");
        bad = go(target.data, target.length);
    } else {
        bad = go(nullptr, 0);
    }
    if (bad == Bad::ascent)
        bad_value("indices must ascend strictly and be below " + number(counts.buffer.shape[0]) + " blocks of 65536");
    if (bad == Bad::counts) bad_value("a block of 65536 entries overflows counts of uint16");
}

// The row of a corrupt payload; -1 if there is none, and `out` is written.
static int64_t accumulate(handle payloads_, int64_t counts_at, int64_t positions_at, int64_t values_at, int count_bytes,
                          int64_t capacity, int wire, handle entries_, double scale, handle out_) {
    check_wire(wire, FLOAT32);
    const Array<uint8_t> payloads(payloads_, "payloads", false, 2);
    const Array<uint32_t> entries(entries_, "entries");
    const auto out = writable<float>(out_, "out");
    check_length("entries", entries.length, payloads.length);
    if (count_bytes != 2 && count_bytes != 4) bad_value("count_bytes must be 2 or 4, not " + number(count_bytes));
    if (capacity < 0 || capacity > payloads.columns) bad_value("capacity does not fit the payloads: " + number(capacity));
    const int64_t blocks = (out.length + BLOCK - 1) / BLOCK;
    const auto fits = [&](const char* name, int64_t at, int64_t size) {
        if (at < 0 || size > payloads.columns || at > payloads.columns - size)
            bad_value(string(name) + " = " + number(at) + " and its " + number(size) + " bytes exceed payloads of " +
                      number(payloads.columns) + " bytes");
    };
    fits("counts_at", counts_at, blocks * count_bytes);
    fits("positions_at", positions_at, capacity * 2);
    fits("values_at", values_at, capacity * (wire == FLOAT32 ? 4 : 2));
    if (overlap(out.data, out.bytes(), payloads.data, payloads.bytes())) bad_value("out overlaps payloads");
    const Payloads p{payloads.data, payloads.length, payloads.columns, counts_at, positions_at, values_at,
                     count_bytes, capacity, wire, entries.data};
    return run([&](const Table& t) { return t.accumulate(p, float(scale), out.data, out.length); });
}

static void narrow(handle x_, int wire, handle out_) {
    check_wire(wire, BFLOAT16);
    const Array<float> x(x_, "x");
    const auto out = writable<uint16_t>(out_, "out");
    check_length("out", out.length, x.length);
    if (overlap(out.data, out.bytes(), x.data, x.bytes())) bad_value("out overlaps x");
    run([&](const Table& t) { t.narrow(x.data, x.length, wire, out.data); });
}

static bool accumulate_dense(handle payloads_, int wire, double scale, handle out_) {
    check_wire(wire, BFLOAT16);
    const Array<uint16_t> payloads(payloads_, "payloads", false, 2);
    const auto out = writable<float>(out_, "out");
    if (payloads.columns != out.length)
        bad_value("payloads have " + number(payloads.columns) + " elements each, not " + number(out.length));
    if (overlap(out.data, out.bytes(), payloads.data, payloads.bytes())) bad_value("out overlaps payloads");
    return run([&](const Table& t) {
        return t.accumulate_dense(payloads.data, payloads.length, out.length, wire, float(scale), out.data);
    });
}

// A memoryview of fresh bytes that keeps its memory alive; NumPy wraps it.
struct Block {
    explicit Block(int64_t n) : bytes(n), data(allocate(size_t(n))) {}
    ~Block() { free(data); }
    Block(const Block&) = delete;
    int64_t bytes;
    void* data;
};

static int get_buffer(PyObject* self, Py_buffer* view, int flags) {
    const Block* block = nb::inst_ptr<Block>(handle(self));
    return PyBuffer_FillInfo(view, self, block->data, Py_ssize_t(block->bytes), 0, flags);
}

static PyType_Slot block_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)}, {0, nullptr}};

static std::vector<string> available() {
    std::vector<string> names;
    for (int rank = 0; rank < 3; rank++)
        if (const Table* t = table_at(rank)) names.push_back(t->name);
    return names;
}

static void use(const char* name) {
    const Table* wanted = table_named(name);
    if (!wanted) {
        string names;
        for (const auto& n : available()) names += (names.empty() ? "" : ", ") + n;
        bad_value("no instruction set '" + string(name) + "' here; there is " + names);
    }
    table = wanted;
}

}  // namespace python

#include "module_frequency.hpp"

NB_MODULE(_host, m) {
    using namespace nb::literals;
    // Buffers that a compressor still holds when the interpreter exits are no leak worth a page of warnings.
    nb::set_leak_warnings(false);
    // Functions with named arguments are the interface as they are; host.py calls the others.
    m.doc() = "C++ kernels; hvd_compress.kernels.host is the interface.";
    for (int rank = 2; rank >= 0; rank--)
        if (const Table* t = table_at(rank)) table = t;

    nb::class_<python::Block>(m, "Block", nb::type_slots(python::block_slots)).def(nb::init<int64_t>());
    m.def("isa", [] { return table->name; });
    m.def("use", &python::use);
    m.def("available", [] {
        nb::list names;
        for (const auto& n : python::available()) names.append(nb::str(n.c_str()));
        return names;
    });
    m.def("add", &python::add, nb::arg().none(), nb::arg(), nb::arg());
    m.def("add_momentum", &python::add_momentum, "momentum"_a, "velocity"_a, "pieces"_a, "beta"_a, "nesterov"_a, "momentum_out"_a, "velocity_out"_a);
    m.def("sample", &python::sample, nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg());
    m.def("exceedances", &python::exceedances);
    m.def("log_sum", &python::log_sum);
    m.def("kth_largest", &python::kth_largest, "x"_a, "k"_a);
    m.def("select", &python::select, nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg());
    m.def("restore", &python::restore, "out"_a, "indices"_a, "values"_a);
    m.def("take", &python::take, "values"_a, "indices"_a, "out"_a);
    m.def("pack", &python::pack, "indices"_a, "values"_a, "wire"_a, "counts"_a, "positions"_a, "words"_a, "memory"_a.none());
    m.def("accumulate", &python::accumulate);
    m.def("narrow", &python::narrow, "x"_a, "wire"_a, "out"_a);
    m.def("accumulate_dense", &python::accumulate_dense, "payloads"_a, "wire"_a, "scale"_a, "out"_a);
    bind_lanes(m);
    python::define_frequency(m);
}
