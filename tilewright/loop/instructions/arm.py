"""Dot products of signed bytes on 64-bit ARM: sdot (Arm Architecture Reference Manual, FEAT_DotProd).

Four sums of four products each. One row of `a` meets four columns of `b`, whose four bytes along the reduction lie
together: pack weights as [N/4, K/4, 4, 4].
"""
from __future__ import annotations

from tilewright.loop.tensor_intrinsics import tensor_intrinsic

SDOT = tensor_intrinsic("""
    program sdot(c: i32[4] strides[1], a: i8[4] strides[1], b: i8[4, 4] strides[4, 1]):
        for i in 0..4:
            for k in 0..4:
                c[i] = c[i] + i32(a[k]) * i32(b[i, k])
""", requires="dotprod", emit={"llvm": """
    declare <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)
    %four = load i32, ptr $a, align 1
    %one = insertelement <4 x i32> poison, i32 %four, i64 0
    %row = shufflevector <4 x i32> %one, <4 x i32> poison, <4 x i32> zeroinitializer
    %bytes = bitcast <4 x i32> %row to <16 x i8>
    %columns = load <16 x i8>, ptr $b, align 1
    %sums = load <4 x i32>, ptr $c, align 4
    %new = call <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32> %sums, <16 x i8> %bytes, <16 x i8> %columns)
    store <4 x i32> %new, ptr $c, align 4
"""})
