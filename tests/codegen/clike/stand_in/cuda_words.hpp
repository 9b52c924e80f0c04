// Stands in for what CUDA's and HIP's compilers know without a header, so that kernels in CUDA C++ are C++ for the CPU.
// Names and meanings: the CUDA C++ programming guide, appendix on language extensions.
#pragma once
#include <cmath>
#include <cstring>

#include "threads.hpp"

#define __global__
#define __device__
#define __constant__
#define __forceinline__ inline
#define __shared__ static  // there is one block at a time
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

#define blockIdx stand_in::block
#define threadIdx stand_in::thread

inline void __syncthreads() { stand_in::barrier(); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
