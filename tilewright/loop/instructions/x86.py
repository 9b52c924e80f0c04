"""Dot products of small integers on x86 (Intel's Software Developer's Manual, volume 2: VPDPBUSD, PMADDWD).

vpdpbusd (AVX512-VNNI, AVX-VNNI): four products each, unsigned by signed bytes, added to 32-bit integers; nothing saturates.
One row of `a` meets a vector of columns of `b`, whose four bytes along the reduction lie together: pack weights as
[N/16, K/4, 16, 4].

pmaddwd: two products each of 16-bit numbers. The bytes of `a` are widened as they are loaded; `b` is packed in 16 bits,
[N/16, K/2, 16, 2].
"""
from __future__ import annotations

from tilewright.loop.tensor_intrinsics import TensorIntrinsic, tensor_intrinsic


def _vpdpbusd(name: str, n: int, requires: str) -> TensorIntrinsic:
    sums, bytes_ = f"<{n} x i32>", f"<{4 * n} x i8>"
    function = f"@llvm.x86.avx512.vpdpbusd.{32 * n}"
    return tensor_intrinsic(f"""
        program {name}(c: i32[{n}] strides[1], a: u8[4] strides[1], b: i8[{n}, 4] strides[4, 1]):
            for i in 0..{n}:
                for k in 0..4:
                    c[i] = c[i] + i32(a[k]) * i32(b[i, k])
    """, requires=requires, emit={"llvm": f"""
        declare {sums} {function}({sums}, {bytes_}, {bytes_})
        %four = load i32, ptr $a, align 1
        %one = insertelement {sums} poison, i32 %four, i64 0
        %row = shufflevector {sums} %one, {sums} poison, <{n} x i32> zeroinitializer
        %bytes = bitcast {sums} %row to {bytes_}
        %columns = load {bytes_}, ptr $b, align 1
        %sums = load {sums}, ptr $c, align 4
        %new = call {sums} {function}({sums} %sums, {bytes_} %bytes, {bytes_} %columns)
        store {sums} %new, ptr $c, align 4
    """})


def _pmaddwd(name: str, n: int, requires: str, function: str) -> TensorIntrinsic:
    return tensor_intrinsic(f"""
        program {name}(c: i32[{n}] strides[1], a: u8[2] strides[1], b: i16[{n}, 2] strides[2, 1]):
            for i in 0..{n}:
                for k in 0..2:
                    c[i] = c[i] + i32(a[k]) * i32(b[i, k])
    """, requires=requires, emit={"llvm": f"""
        declare <{n} x i32> @llvm.x86.{function}(<{2 * n} x i16>, <{2 * n} x i16>)
        %two = load i16, ptr $a, align 1
        %one = insertelement <{n} x i16> poison, i16 %two, i64 0
        %row = shufflevector <{n} x i16> %one, <{n} x i16> poison, <{n} x i32> zeroinitializer
        %bytes = bitcast <{n} x i16> %row to <{2 * n} x i8>
        %words = zext <{2 * n} x i8> %bytes to <{2 * n} x i16>
        %columns = load <{2 * n} x i16>, ptr $b, align 2
        %products = call <{n} x i32> @llvm.x86.{function}(<{2 * n} x i16> %words, <{2 * n} x i16> %columns)
        %sums = load <{n} x i32>, ptr $c, align 4
        %new = add <{n} x i32> %sums, %products
        store <{n} x i32> %new, ptr $c, align 4
    """})


VPDPBUSD = _vpdpbusd("vpdpbusd", 16, "vnni")
VPDPBUSD_256 = _vpdpbusd("vpdpbusd_256", 8, "avx_vnni")
PMADDWD_512 = _pmaddwd("pmaddwd_512", 16, "madd_512", "avx512.pmaddw.d.512")
PMADDWD_256 = _pmaddwd("pmaddwd_256", 8, "madd_256", "avx2.pmadd.wd")
PMADDWD = _pmaddwd("pmaddwd", 4, "madd", "sse2.pmadd.wd")
