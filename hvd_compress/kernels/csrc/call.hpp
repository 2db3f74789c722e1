// Calling a kernel from Python.
#pragma once

#include "arrays.hpp"

namespace hvd {

inline const Table* table = nullptr;  // set when the module is made, and by use()

// Runs a kernel without the GIL and in the standard floating-point environment.
template <class F>
auto run(F f) {
    const nb::gil_scoped_release released;
    const StandardArithmetic arithmetic;
    return f(*table);
}

inline void check_length(const char* name, int64_t length, int64_t wanted) {
    if (length != wanted) bad_value(string(name) + " has " + number(length) + " elements, not " + number(wanted));
}

void bind_lanes(nb::module_& m);

}  // namespace hvd
