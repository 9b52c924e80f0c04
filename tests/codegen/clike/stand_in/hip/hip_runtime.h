// Stands in for HIP's header: on the CPU that of CUDA's words, for an AMD processor those words by the compiler's built-ins.
#pragma once
#ifndef __HIP__
#include "../cuda_words.hpp"
#else
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __constant__ __attribute__((constant))
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(n) __attribute__((amdgpu_flat_work_group_size(1, n)))

#define STAND_IN_INDEX(which, name) \
  struct name##_##which { \
    __device__ operator unsigned() const { return __builtin_amdgcn_##name##_##which(); } \
  }
#define STAND_IN_INDICES(name) \
  STAND_IN_INDEX(x, name); \
  STAND_IN_INDEX(y, name); \
  STAND_IN_INDEX(z, name); \
  struct name##_3 { \
    name##_x x; \
    name##_y y; \
    name##_z z; \
  }
STAND_IN_INDICES(workitem_id);
STAND_IN_INDICES(workgroup_id);
static __device__ const workitem_id_3 threadIdx = {};
static __device__ const workgroup_id_3 blockIdx = {};

typedef float float2 __attribute__((ext_vector_type(2)));
typedef float float4 __attribute__((ext_vector_type(4)));
typedef int int2 __attribute__((ext_vector_type(2)));
typedef int int4 __attribute__((ext_vector_type(4)));
typedef unsigned uint2 __attribute__((ext_vector_type(2)));
typedef unsigned uint4 __attribute__((ext_vector_type(4)));
typedef long long longlong2 __attribute__((ext_vector_type(2)));
typedef long long longlong4 __attribute__((ext_vector_type(4)));

static __device__ inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
static __device__ inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }

static __device__ inline void __syncthreads() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

// The functions that are instructions; the others are AMD's device library, which is not here: they stay calls.
#define STAND_IN_BUILTIN(f) static __device__ inline float f(float x) { return __builtin_##f(x); }
STAND_IN_BUILTIN(sqrtf) STAND_IN_BUILTIN(floorf) STAND_IN_BUILTIN(ceilf) STAND_IN_BUILTIN(truncf) STAND_IN_BUILTIN(rintf)
STAND_IN_BUILTIN(fabsf)
static __device__ inline float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static __device__ inline float rsqrtf(float x) { return __builtin_amdgcn_rsqf(x); }
#define STAND_IN_LIBRARY(f) extern "C" __device__ float f(float);
STAND_IN_LIBRARY(expf) STAND_IN_LIBRARY(logf) STAND_IN_LIBRARY(erff) STAND_IN_LIBRARY(tanhf) STAND_IN_LIBRARY(sinf)
STAND_IN_LIBRARY(cosf) STAND_IN_LIBRARY(tanf) STAND_IN_LIBRARY(asinf) STAND_IN_LIBRARY(acosf) STAND_IN_LIBRARY(atanf)
STAND_IN_LIBRARY(sinhf) STAND_IN_LIBRARY(coshf) STAND_IN_LIBRARY(asinhf) STAND_IN_LIBRARY(acoshf) STAND_IN_LIBRARY(atanhf)
extern "C" __device__ float powf(float, float);
extern "C" __device__ float fmodf(float, float);
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#endif
