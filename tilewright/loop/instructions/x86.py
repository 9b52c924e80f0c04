"""Dot products of bytes on x86: AVX512-VNNI's vpdpbusd (Intel's Software Developer's Manual, volume 2: VPDPBUSD).

Sixteen sums of four products each, unsigned by signed bytes, added to 32-bit integers; nothing saturates. One row of `a`
meets sixteen columns of `b`, whose four bytes along the reduction lie together: pack weights as [N/16, K/4, 16, 4].
"""
from __future__ import annotations

from tilewright.loop.tensor_intrinsics import tensor_intrinsic

VPDPBUSD = tensor_intrinsic("""
    program vpdpbusd(c: i32[16] strides[1], a: u8[4] strides[1], b: i8[16, 4] strides[4, 1]):
        for i in 0..16:
            for k in 0..4:
                c[i] = c[i] + i32(a[k]) * i32(b[i, k])
""", requires="vnni", emit={"llvm": """
    declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <64 x i8>, <64 x i8>)
    %four = load i32, ptr $a, align 1
    %one = insertelement <16 x i32> poison, i32 %four, i64 0
    %row = shufflevector <16 x i32> %one, <16 x i32> poison, <16 x i32> zeroinitializer
    %bytes = bitcast <16 x i32> %row to <64 x i8>
    %columns = load <64 x i8>, ptr $b, align 1
    %sums = load <16 x i32>, ptr $c, align 4
    %new = call <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32> %sums, <64 x i8> %bytes, <64 x i8> %columns)
    store <16 x i32> %new, ptr $c, align 4
"""})
