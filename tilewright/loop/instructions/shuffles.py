"""Sums, maxima and minima over the threads of a warp by shuffles, without shared memory: CUDA and HIP.

Each thread has one element of a vector of 32 in a buffer of scope "warp"; the sum goes to memory. (CUDA C++ programming
guide, "Warp shuffle functions"; HIP: the same with a width, since a wavefront may have 64 threads.) The order of the
additions is that of a butterfly. A schedule splits a reduction so that one loop has 32 steps, rfactors that loop, puts
the partial results into "warp", binds their loop to threadIdx.x and tensorizes what reduces them:

    lane threadIdx.x: part[lane] = Σ x[…*32 + lane] | WARP_SUM_F32: sum += Σ part
"""
from __future__ import annotations

from tilewright.loop.tensor_intrinsics import Fragment, TensorIntrinsic, tensor_intrinsic

LANES = Fragment("lanes", (32,), lambda i: i, lambda i: i - i)


def _reduction(name: str, t: str, combine: str, cuda: str, word: str) -> TensorIntrinsic:
    def template(shuffle: str) -> str:
        return f"""
            {word} v = *($p);
            for (int d = 16; d > 0; d >>= 1) {{ const {word} w = {shuffle}; v = {cuda}; }}
            if ($lane % 32 == 0) {{ const {word} w = *($o); *($o) = {cuda}; }}
        """

    return tensor_intrinsic(f"""
        program warp_{name}_{t}(o: {t}[1], p: {t}[32] warp):
            for k in 0..32:
                o[0] = {combine}
    """, {"cuda": template("__shfl_xor_sync(0xffffffffu, v, d)"), "hip": template("__shfl_xor(v, d, 32)")},
        threads=32, requires="shuffle", fragments={"p": LANES})


_SUM, _MAX, _MIN = "o[0] + p[k]", "max(o[0], p[k])", "min(o[0], p[k])"
WARP_SUM_F32 = _reduction("sum", "f32", _SUM, "v + w", "float")
WARP_MAX_F32 = _reduction("max", "f32", _MAX, "(v != v || v > w) ? v : w", "float")
WARP_MIN_F32 = _reduction("min", "f32", _MIN, "(v != v || v < w) ? v : w", "float")
WARP_SUM_I32 = _reduction("sum", "i32", _SUM, "v + w", "int")
WARP_MAX_I32 = _reduction("max", "i32", _MAX, "v > w ? v : w", "int")
WARP_MIN_I32 = _reduction("min", "i32", _MIN, "v < w ? v : w", "int")
