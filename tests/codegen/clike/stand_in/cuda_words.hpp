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

#define STAND_IN_VECTOR(name, type) \
  struct alignas(2 * sizeof(type)) name##2 { \
    type x, y; \
  }; \
  struct alignas(sizeof(type) < 8 ? 4 * sizeof(type) : 16) name##4 { \
    type x, y, z, w; \
  };
STAND_IN_VECTOR(char, signed char) STAND_IN_VECTOR(uchar, unsigned char) STAND_IN_VECTOR(short, short)
STAND_IN_VECTOR(ushort, unsigned short) STAND_IN_VECTOR(int, int) STAND_IN_VECTOR(uint, unsigned int)
STAND_IN_VECTOR(longlong, long long) STAND_IN_VECTOR(ulonglong, unsigned long long) STAND_IN_VECTOR(float, float)
STAND_IN_VECTOR(double, double)

inline void __syncthreads() { stand_in::barrier(); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
