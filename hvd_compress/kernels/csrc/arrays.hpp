// Arguments from Python: checked here, so that the kernels can rely on them. Every error names its argument.
#pragma once

#include <nanobind/nanobind.h>

#include <cstring>
#include <string>
#include <vector>

#include "runtime.hpp"

namespace hvd {

namespace nb = nanobind;
using std::string;

[[noreturn]] inline void bad_value(const string& message) { throw nb::value_error(message.c_str()); }
[[noreturn]] inline void bad_type(const string& message) { throw nb::type_error(message.c_str()); }

template <class T>
struct Dtype;
template <>
struct Dtype<float> {
    static constexpr const char *name = "float32", *codes = "f";
};
template <>
struct Dtype<double> {
    static constexpr const char *name = "float64", *codes = "d";
};
template <>
struct Dtype<uint8_t> {
    static constexpr const char *name = "uint8", *codes = "B";
};
template <>
struct Dtype<uint16_t> {
    static constexpr const char *name = "uint16", *codes = "H";
};
template <>
struct Dtype<uint32_t> {
    static constexpr const char *name = "uint32", *codes = "IL";
};
template <>
struct Dtype<int32_t> {
    static constexpr const char *name = "int32", *codes = "il";
};
template <>
struct Dtype<int64_t> {
    static constexpr const char *name = "int64", *codes = "lq";
};

// A buffer held for the length of a call; moving hands it over.
class View {
   public:
    View() = default;
    View(nb::handle object, const string& name, bool writable, int dimensions) {
        const int flags = PyBUF_FORMAT | PyBUF_STRIDES | (writable ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(object.ptr(), &buffer, flags)) {
            PyErr_Clear();
            bad_type(name + (writable ? " must be a writable array" : " must be an array"));
        }
        held = true;
        if (buffer.ndim != dimensions || !PyBuffer_IsContiguous(&buffer, 'C')) {
            release();
            bad_value(name + " must be C-contiguous, with " + std::to_string(dimensions) + " dimension" +
                      (dimensions == 1 ? "" : "s"));
        }
    }
    View(View&& other) noexcept : buffer(other.buffer), held(other.held) { other.held = false; }
    View& operator=(View&& other) noexcept {
        release();
        buffer = other.buffer;
        held = other.held;
        other.held = false;
        return *this;
    }
    ~View() { release(); }

    bool is(size_t size, const char* codes) const {
        const char* format = buffer.format;
        if (*format == '<' || *format == '=' || *format == '@') format++;
        return size_t(buffer.itemsize) == size && *format && strchr(codes, *format) && !format[1];
    }

    Py_buffer buffer{};

   private:
    void release() {
        if (held) PyBuffer_Release(&buffer);
        held = false;
    }
    bool held = false;
};

template <class T>
class Array {
   public:
    Array() = default;
    Array(nb::handle object, const string& name, bool writable = false, int dimensions = 1)
        : view(object, name, writable, dimensions) {
        if (!view.is(sizeof(T), Dtype<T>::codes)) bad_type(name + " must be " + Dtype<T>::name);
        data = static_cast<T*>(view.buffer.buf);
        length = view.buffer.shape[0];
        columns = dimensions == 2 ? view.buffer.shape[1] : 1;
        if (reinterpret_cast<uintptr_t>(data) % alignof(T) && length) bad_value(name + " must be aligned to its elements");
    }

    T* data = nullptr;
    int64_t length = 0, columns = 1;
    int64_t bytes() const { return length * columns * int64_t(sizeof(T)); }

   private:
    View view;
};

template <class T>
Array<T> writable(nb::handle object, const char* name) {
    return Array<T>(object, name, true);
}

inline bool overlap(const void* a, int64_t a_bytes, const void* b, int64_t b_bytes) {
    const auto p = reinterpret_cast<uintptr_t>(a), q = reinterpret_cast<uintptr_t>(b);
    return p < q + uintptr_t(b_bytes) && q < p + uintptr_t(a_bytes);
}

inline string number(int64_t n) { return std::to_string(n); }

// The memory and the pieces of a gradient.
class Gradient {
   public:
    Gradient(nb::handle memory_object, nb::handle pieces_object, int64_t d) {  // d < 0: as long as they are
        if (!memory_object.is_none()) memory = Array<float>(memory_object, "memory");
        PyObject* sequence = PySequence_Fast(pieces_object.ptr(), "pieces must be a sequence of arrays");
        if (!sequence) throw nb::python_error();
        const nb::object owner = nb::steal(sequence);
        const Py_ssize_t n = PySequence_Fast_GET_SIZE(sequence);
        pieces.reserve(size_t(n));
        pointers.reserve(size_t(n));
        ends.reserve(size_t(n));
        int64_t total = 0;
        for (Py_ssize_t j = 0; j < n; j++) {
            pieces.emplace_back(PySequence_Fast_GET_ITEM(sequence, j), "pieces[" + number(j) + "]");
            pointers.push_back(pieces.back().data);
            ends.push_back(total += pieces.back().length);
        }
        if (d < 0) d = memory.data ? memory.length : total;
        if (!memory_object.is_none() && memory.length != d)
            bad_value("memory has " + number(memory.length) + " elements, not " + number(d));
        if (n && total != d) bad_value("pieces have " + number(total) + " elements in all, not " + number(d));
        if (d > int64_t(0xffffffff)) bad_value("a bucket has at most 2**32 - 1 elements, not " + number(d));
        input = {memory.data, pointers.data(), ends.data(), int64_t(n), d};
    }

    // `out` may be the memory, and a piece the part of `out` that it is written to.
    void check_overlap(const Array<float>& out, const char* name, bool same_place = true) const {
        const bool same = same_place && memory.data == out.data;
        if (!same && overlap(memory.data, memory.bytes(), out.data, out.bytes()))
            bad_value(string(name) + " overlaps memory");
        for (size_t j = 0; j < pieces.size(); j++) {
            const bool in_place = same_place && pieces[j].data == out.data + (ends[j] - pieces[j].length);
            if (!in_place && overlap(pieces[j].data, pieces[j].bytes(), out.data, out.bytes()))
                bad_value(string(name) + " overlaps pieces[" + number(int64_t(j)) + "]");
        }
    }

    // `out` may be no part of the pieces.
    void check_apart(const void* out, int64_t bytes, const char* name) const {
        for (size_t j = 0; j < pieces.size(); j++)
            if (overlap(pieces[j].data, pieces[j].bytes(), out, bytes))
                bad_value(string(name) + " overlaps pieces[" + number(int64_t(j)) + "]");
    }

    Input input;

   private:
    Array<float> memory;
    std::vector<Array<float>> pieces;
    std::vector<const float*> pointers;
    std::vector<int64_t> ends;
};

}  // namespace hvd
