"""The C-like languages that kernels can be written in: OpenCL C, CUDA C, HIP, Metal, WGSL (wgsl.py), and C for reading and
for tests on the CPU.

Names and meanings are those of the OpenCL C 1.2 specification (6.12: built-in functions, 6.1.2: vector types), the CUDA C++
programming guide (appendix on language extensions and mathematical functions) and C99's <math.h>.
"""
from __future__ import annotations

import dataclasses

from tilewright.codegen.clike.language import Language
from tilewright.codegen.clike.wgsl import WGSL

_MATH = ("exp", "log", "sqrt", "erf", "tanh", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh",
         "atanh", "floor", "ceil", "trunc")
_C = {**{name: name + "f({0})" for name in _MATH}, "rsqrt": "(1.0f / sqrtf({0}))", "round": "rintf({0})",
      "abs": "fabsf({0})", "pow": "powf({0}, {1})", "fmod": "fmodf({0}, {1})", "fma": "fmaf({0}, {1}, {2})",
      "gelu": "(0.5f * {0} * (1.0f + erff({0} * 0.70710678f)))", "isnan": "({0} != {0})",
      "isinf": "(fabsf({0}) == INFINITY)"}
_C_DOUBLE = {name: text.replace("f(", "(").replace("1.0f", "1.0") for name, text in _C.items()}
_C_DOUBLE["erf"] = "erf({0})"
_C_DOUBLE["gelu"] = "(0.5 * {0} * (1.0 + erf({0} * 0.70710678118654752)))"
_OPENCL = {**{name: name + "({0})" for name in _MATH}, "rsqrt": "rsqrt({0})", "round": "rint({0})", "abs": "fabs({0})",
           "pow": "pow({0}, {1})", "fmod": "fmod({0}, {1})", "fma": "fma({0}, {1}, {2})", "isnan": "isnan({0})",
           "gelu": "(0.5f * {0} * (1.0f + erf({0} * 0.70710678f)))",
           "isinf": "isinf({0})"}

OPENCL = Language(
    name="opencl",
    types={"f32": "float", "f64": "double", "i64": "long", "i32": "int", "i16": "short", "i8": "char", "u64": "ulong",
           "u32": "uint", "u16": "ushort", "u8": "uchar", "bool": "uchar"},
    prelude="#ifdef cl_khr_fp64\n#pragma OPENCL EXTENSION cl_khr_fp64 : enable\n#endif\n",
    kernel="__kernel __attribute__((reqd_work_group_size({x}, {y}, {z})))\nvoid {name}({params})",
    buffer="__global {const}{type} *restrict {name}, const long {name}_at",
    begin="{name} = (__global {const}{type} *)((__global {const}uchar *){name} + {name}_at);",
    index={**{f"blockIdx.{x}": f"(int)get_group_id({k})" for k, x in enumerate("xyz")},
           **{f"threadIdx.{x}": f"(int)get_local_id({k})" for k, x in enumerate("xyz")}},
    shared="__local {type} {name}[{n}];", barrier="barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);",
    helper="{type} {name}({params})", table="__constant {type} {name}[{n}] = {{{values}}};",
    wide="vstore{n}(vload{n}(0, {source}), 0, {to});", reinterpret="as_{type}({0})",
    functions=_OPENCL, double={**_OPENCL, "gelu": _C_DOUBLE["gelu"]})

# 16-bit floats are computed in f32 and rounded after each operation; a vector of them is moved as integers. NVRTC's wheel
# has no header of them, so the conversions are PTX's own (PTX ISA, cvt); AMD's compilers have the type _Float16.
_SHORT_FLOATS = """\
#if defined(__CUDACC__) || defined(__HIP__)
struct __align__(2) tw_f16 {
  unsigned short bits;
  tw_f16() = default;
#ifdef __HIP__
  __device__ tw_f16(float v) { union { _Float16 h; unsigned short b; } u; u.h = (_Float16)v; bits = u.b; }
  __device__ operator float() const { union { _Float16 h; unsigned short b; } u; u.b = bits; return (float)u.h; }
#else
  __device__ __forceinline__ tw_f16(float v) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v)); }
  __device__ __forceinline__ operator float() const { float v; asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits)); return v; }
#endif
};
struct __align__(2) tw_bf16 {
  unsigned short bits;
  tw_bf16() = default;
  __device__ __forceinline__ tw_bf16(float v) {
    const unsigned u = __float_as_uint(v);
    bits = v != v ? 0x7fc0 : (unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
  __device__ __forceinline__ operator float() const { return __uint_as_float((unsigned)bits << 16); }
};
typedef unsigned int tw_f162, tw_bf162;
typedef uint2 tw_f164, tw_bf164;
typedef uint4 tw_f168, tw_bf168;
#endif
"""

CUDA = Language(
    name="cuda",
    types={"f16": "tw_f16", "bf16": "tw_bf16", "f32": "float", "f64": "double", "i64": "long long", "i32": "int",
           "i16": "short", "i8": "signed char",
           "u64": "unsigned long long", "u32": "unsigned int", "u16": "unsigned short", "u8": "unsigned char",
           "bool": "unsigned char"},
    prelude="#ifndef INFINITY\n#define INFINITY __int_as_float(0x7f800000)\n"
            "#define NAN __int_as_float(0x7fffffff)\n#endif\n" + _SHORT_FLOATS,
    kernel='extern "C" __global__ void __launch_bounds__({threads}, {blocks})\n{name}({params})',
    buffer="{const}{type} *__restrict__ {name}",
    index={f"{kind}.{x}": f"(int){kind}.{x}" for kind in ("blockIdx", "threadIdx") for x in "xyz"},
    shared="__shared__ __align__(16) {type} {name}[{n}];", barrier="__syncthreads();",
    warp="__align__(16) {type} {name}[{n}];", wait='asm volatile("cp.async.wait_all;" ::: "memory");',
    wait_group='asm volatile("cp.async.wait_group {n};" ::: "memory");',
    commit='asm volatile("cp.async.commit_group;" ::: "memory");',
    helper="static __device__ __forceinline__ {type} {name}({params})",
    table="static __constant__ {type} {name}[{n}] = {{{values}}};",
    wide="*({vector}{n} *)({to}) = *(const {vector}{n} *)({source});", suffix={"f32": "f", "i64": "LL"},
    vectors={"i64": "longlong", "u64": "ulonglong", "u32": "uint", "u16": "ushort", "u8": "uchar", "i8": "char",
             "bool": "uchar"},
    registers=65536, functions={**_C, "rsqrt": "rsqrtf({0})"}, double={**_C_DOUBLE, "rsqrt": "rsqrt({0})"})

# HIP's language is CUDA's (AMD's HIP programming guide, "HIP C++ language extensions"); its run-time compiler knows the
# built-in names, its compiler driver has them in a header. The second of its launch bounds means something else.
HIP = dataclasses.replace(
    CUDA, name="hip", wait="", wait_group="", commit="", kernel=CUDA.kernel.replace(", {blocks}", ""),
    prelude="#ifndef __HIPCC_RTC__\n#include <hip/hip_runtime.h>\n#endif\n" + CUDA.prelude)

_METAL = {**{name: f"precise::{name}({{0}})" for name in _MATH if name != "erf"}, "floor": "floor({0})", "ceil": "ceil({0})",
          "trunc": "trunc({0})", "rsqrt": "precise::rsqrt({0})", "round": "rint({0})", "abs": "fabs({0})",
          "pow": "precise::pow({0}, {1})", "fmod": "precise::fmod({0}, {1})", "fma": "fma({0}, {1}, {2})",
          "isnan": "isnan({0})", "isinf": "isinf({0})"}

# Apple's Metal Shading Language Specification, chapters 2 (types), 4 (address spaces), 5.2 (attributes), 6.5 (mathematics).
# A kernel has 31 buffers at most. It must be built without "fast math", which takes NaN for impossible.
METAL = Language(
    name="metal",
    types={"f32": "float", "i64": "long", "i32": "int", "i16": "short", "i8": "char", "u64": "ulong", "u32": "uint",
           "u16": "ushort", "u8": "uchar", "bool": "uchar"},
    prelude="#include <metal_stdlib>\nusing namespace metal;\n",
    kernel="[[max_total_threads_per_threadgroup({threads})]]\nkernel void {name}({params})",
    buffer="device {const}{type} *{name} [[buffer({at})]]", number="constant {type} &{name} [[buffer({at})]]",
    extra=("uint3 tw_block [[threadgroup_position_in_grid]]", "uint3 tw_thread [[thread_position_in_threadgroup]]"),
    index={f"{kind}Idx.{x}": f"(int)tw_{kind}.{x}" for kind in ("block", "thread") for x in "xyz"},
    shared="threadgroup {type} {name}[{n}];",
    barrier="threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);",
    table="constant {type} {name}[{n}] = {{{values}}};", reinterpret="as_type<{type}>({0})", functions=_METAL)

C = Language(
    name="c",
    types={"f32": "float", "f64": "double", "i64": "int64_t", "i32": "int32_t", "i16": "int16_t", "i8": "int8_t",
           "u64": "uint64_t", "u32": "uint32_t", "u16": "uint16_t", "u8": "uint8_t", "bool": "uint8_t"},
    prelude="#include <math.h>\n#include <stdint.h>\n",
    kernel="void {name}({params})", buffer="{const}{type} *restrict {name}", index={},
    suffix={"f32": "f", "i64": "LL"}, functions=_C, double=_C_DOUBLE)

LANGUAGES = {language.name: language for language in (OPENCL, CUDA, HIP, METAL, C, WGSL)}
