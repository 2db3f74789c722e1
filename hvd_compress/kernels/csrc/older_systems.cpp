// What a C++ library that is linked into the module would else ask of a C library from 2020 or later.

// From glibc 2.32 on it tells whether a process has one thread only, and then libstdc++ counts references without atomic
// instructions. "No" is always a right answer; it takes the atomic ones. Hidden: it is for this module alone.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
