// Which instruction sets this machine has, and each thread's buffers.
#include "runtime.hpp"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hvd {

static bool has_avx2() {
#if defined(__x86_64__)
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
    return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
#else
    return false;
#endif
}

static bool has_avx512() {
#if defined(__x86_64__)
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    return false;
#endif
}

const Table* table_at(int rank) {
    static const Table* const tables[3] = {has_avx512() ? table_avx512() : nullptr, has_avx2() ? table_avx2() : nullptr,
                                           table_portable()};
    return rank < 3 ? tables[rank] : nullptr;
}

const Table* table_named(const char* name) {
    for (int rank = 0; rank < 3; rank++)
        if (const Table* t = table_at(rank))
            if (!strcmp(t->name, name)) return t;
    return nullptr;
}

constexpr size_t HUGE_PAGE = size_t(2) << 20;

void* allocate(size_t bytes) {
    const size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : 64;
    const size_t rounded = (bytes + alignment) / alignment * alignment;  // never 0
    void* p = nullptr;
    if (rounded < bytes || posix_memalign(&p, alignment, rounded)) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (alignment == HUGE_PAGE) madvise(p, rounded, MADV_HUGEPAGE);  // a refusal costs speed only
#endif
    return p;
}

struct Free {
    void operator()(void* p) const { free(p); }
};

void* scratch(Slot slot, size_t bytes) {
    struct Buffer {
        std::unique_ptr<void, Free> data;
        size_t bytes = 0;
    };
    thread_local Buffer buffers[SLOTS];
    Buffer& b = buffers[slot];
    if (b.bytes < bytes) {
        b.data.reset();
        b.bytes = 0;
        b.data.reset(allocate(bytes + bytes / 4));
        b.bytes = bytes + bytes / 4;
    }
    return b.data.get();
}

}  // namespace hvd
