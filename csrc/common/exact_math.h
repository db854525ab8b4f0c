// Include before everything else in a file whose floating point decides something (which pairs are near, which edge
// is joined first): there every operation is rounded by itself and in the order written, as plain torch and the CUDA
// kernels round it, on every instruction set. The build allows more elsewhere (-ffast-math).
#pragma once

#if defined(__clang__)
#pragma clang fp contract(off) reassociate(off)
#elif defined(__GNUC__)
#pragma GCC optimize("no-associative-math", "no-reciprocal-math", "no-unsafe-math-optimizations", "fp-contract=off")
#endif
