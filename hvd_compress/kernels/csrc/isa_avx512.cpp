// Compiled with the flags of this instruction set, or, where the compiler does not know it, empty.
#ifdef __AVX512F__
#define HVD_ISA "avx512"
#define HVD_LINE "line_avx512.hpp"
#include "isa.hpp"

const hvd::Table* hvd::table_avx512() { return &hvd::TABLE; }
#else
#include "types.hpp"

const hvd::Table* hvd::table_avx512() { return nullptr; }
#endif
