// Compiled with the flags of this instruction set, or, where the compiler does not know it, empty.
#ifdef __AVX2__
#define HVD_ISA "avx2"
#define HVD_LINE "line_avx2.hpp"
#include "isa.hpp"

const hvd::Table* hvd::table_avx2() { return &hvd::TABLE; }
#else
#include "types.hpp"

const hvd::Table* hvd::table_avx2() { return nullptr; }
#endif
