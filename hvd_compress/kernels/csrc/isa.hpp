// Everything for one instruction set: the including file names it in HVD_ISA and HVD_LINE. Nothing here calls inline
// functions of the standard library: compiled with AVX-512, one could be linked in place of its portable twin.
#include <cstring>

#include "types.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace hvd {
namespace {

#include HVD_LINE
#include "walk.hpp"
#include "wire.hpp"
#include "moments.hpp"
#include "select.hpp"
#include "sparse.hpp"
#include "dense.hpp"
#include "lanes.hpp"
#include "permutation.hpp"
#include "ternary.hpp"
#include "range.hpp"
#include "fourier.hpp"
#include "spectrum.hpp"

constexpr Table TABLE{HVD_ISA, add, add_momentum, sample, exceedances, log_sum, kth_largest, select,
                      pack, accumulate, narrow, accumulate_dense, norm,
                      quantize, dequantize, mask, permutation, section_moments, ternarize, accumulate_ternary,
                      {range_encode, range_codes_below, range_decode, forward, inverse, select_pairs, gather_pairs,
                       mark, check_pairs, synthesize}};

}  // namespace
}  // namespace hvd
