// One source, three instruction sets: the compiler makes an AVX-512, an AVX2+FMA and a plain copy of a
// function marked P3M_KERNEL, and the loader picks one for the machine it runs on. Mark leaf functions
// that take raw pointers; helpers they call must be P3M_INLINE so that each copy gets its own.
// A build with -DP3M_PLAIN keeps the plain copy only, which is how that path is tested.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__) && !defined(P3M_PLAIN)
#define P3M_KERNEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define P3M_KERNEL
#endif

#define P3M_INLINE __attribute__((always_inline)) inline
#define P3M_RESTRICT __restrict__
