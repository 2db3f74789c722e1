// Dispatch, memory, and the floating-point environment.
#pragma once

#include "types.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace hvd {

const Table* table_at(int rank);  // 0, 1, 2: best first; null where this machine cannot run it
const Table* table_named(const char* name);

void* allocate(size_t bytes);  // 64-byte aligned; from 2 MiB on in huge pages, where the system grants them. free() it.

// Rounding to nearest and denormals kept, whatever the calling thread has set: TensorFlow's threads flush denormals.
class StandardArithmetic {
   public:
    StandardArithmetic() {
#if defined(__x86_64__)
        saved = _mm_getcsr();
        _mm_setcsr(0x1f80);
#endif
    }
    ~StandardArithmetic() {
#if defined(__x86_64__)
        _mm_setcsr(saved);
#endif
    }
    StandardArithmetic(const StandardArithmetic&) = delete;
    StandardArithmetic& operator=(const StandardArithmetic&) = delete;

   private:
    unsigned saved = 0;
};

}  // namespace hvd
