"""Rates of single kernels beside the peak of fused multiply-adds, measured in the same run (`make bench`).

In: nothing. Out: a table, and one line of JSON per kernel appended to out/rates.jsonl, so that a later run can be compared.
Kernels come through the ordinary path, an ONNX model of one node. The peak is a loop in C without loads that keeps every
multiply-adder busy on one thread; it is measured before each kernel, since machines are noisy.
"""
from __future__ import annotations

import ctypes
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import tilewright
from tilewright.runtime.toolchain import find_compiler
from tilewright.target.presets import get_target

OUT = Path("out") / "rates.jsonl"
PEAK = """
typedef float vec __attribute__((vector_size(BYTES)));
void run(long rounds, float *out) {
  vec a[ACC], x, y;
  for (int l = 0; l < BYTES / 4; ++l) { x[l] = 0.999f; y[l] = 1e-7f * l; }
#pragma GCC unroll 32
  for (int k = 0; k < ACC; ++k) a[k] = x * (float)k;
  for (long r = 0; r < rounds; ++r)
#pragma GCC unroll 32
    for (int k = 0; k < ACC; ++k) a[k] = a[k] * x + y;
  vec sum = a[0];
#pragma GCC unroll 32
  for (int k = 1; k < ACC; ++k) sum += a[k];
  for (int l = 0; l < BYTES / 4; ++l) out[l] = sum[l];
}
"""


class Peak:
    """The machine's rate of fused multiply-adds on one thread."""

    def __init__(self) -> None:
        target = get_target("native")
        self.lanes, self.accumulators = target.lanes(32), min(target.vector_registers - 4, 24)
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder, "peak.c"), Path(folder, "peak.so")
            source.write_text(PEAK)
            subprocess.run([*find_compiler(), "-O3", "-march=native", "-ffp-contract=fast", "-shared",
                            "-fPIC", f"-DBYTES={target.vector_bits // 8}", f"-DACC={self.accumulators}",
                            str(source), "-o", str(library)], check=True)
            self.library = ctypes.CDLL(str(library))

    def gflops(self, rounds: int = 1_000_000) -> float:
        out, best = (ctypes.c_float * self.lanes)(), float("inf")
        for _ in range(5):
            start = time.perf_counter()
            self.library.run(ctypes.c_long(rounds), out)
            best = min(best, time.perf_counter() - start)
        return 2 * self.lanes * self.accumulators * rounds / best / 1e9


def one_node(op: str, x: tuple[int, ...], w: tuple[int, ...], **attributes: object) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], op.lower(), **attributes)], op,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(rng.standard_normal(w).astype(np.float32), "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


CASES = {
    "matmul 128x768x768": (one_node("MatMul", (128, 768), (768, 768)), 128 * 768 * 768),
    "conv 3x3 64->64 at 56x56": (one_node("Conv", (1, 64, 56, 56), (64, 64, 3, 3), pads=[1] * 4), 56 * 56 * 64 * 64 * 9),
}


def heaviest(model: tilewright.Model) -> float:
    """GFLOP/s of the kernel that takes most of a run: the best of several short measurements."""
    parts = [max(model.profile(runs=20), key=lambda k: k.share) for _ in range(15)]
    return max(k.gflops for k in parts)


def main() -> None:
    peak = Peak()
    OUT.parent.mkdir(exist_ok=True)
    print("One thread. `heaviest kernel` counts its own operations (Winograd has fewer than the convolution has);")
    print("`whole` is the convolution's or product's own operations over the whole run, layout changes included.\n")
    print(f"{'case':26} {'numerics':9} {'peak':>6} {'heaviest kernel':>22} {'whole':>22}   GFLOP/s")
    with OUT.open("a") as history:
        for name, (proto, multiply_adds) in CASES.items():
            for numerics in ("strict", "default"):
                with tilewright.compile(proto, threads=1, numerics=numerics) as model:
                    limit = peak.gflops()
                    kernel = heaviest(model)
                    whole = 2 * multiply_adds / (model.benchmark(runs=300).minimum * 1e-3) / 1e9
                print(f"{name:26} {numerics:9} {limit:6.0f} {kernel:12.0f} ({kernel / limit:6.1%}) "
                      f"{whole:12.0f} ({whole / limit:6.1%})")
                history.write(json.dumps({"time": time.time(), "case": name, "numerics": numerics, "peak": limit,
                                          "kernel": kernel, "whole": whole}) + "\n")


if __name__ == "__main__":
    main()
