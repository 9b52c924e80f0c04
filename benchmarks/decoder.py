"""Tokens of exported language models, beside ONNX Runtime: one compiled model for every length of prompt and cache.

    python benchmarks/decoder.py decoder.onnx ... [--threads 2] [--rounds 6]

In: decoders as exporters write them, with symbolic sizes: token numbers (`input_ids` or `ids`), perhaps a mask
(`attention_mask`, `mask`) over past and new tokens and their positions (`position_ids`, `pos`), and caches [batch, heads,
past, width]. Out: per model a table of batch, new tokens and past tokens with the median of both engines' times in
interleaved rounds (each after a rest), their ratio, and the largest difference of any output relative to its largest value.
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import tilewright
from tilewright.tools.bench import load_onnxruntime, race, runner

SIZES = ((1, 1, 1), (1, 1, 127), (1, 1, 511), (1, 1, 1500), (4, 1, 500), (1, 7, 33), (1, 128, 0))
"""Batch, new tokens, past tokens."""

VOCABULARY = 1000


def inputs(graph: onnx.GraphProto, batch: int, new: int, past: int) -> dict[str, Any]:
    """Random tokens behind a random cache, all of them visible."""
    rng = np.random.default_rng(batch + new + past)
    out: dict[str, Any] = {}
    for v in graph.input:
        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type))
        shape = [d.dim_value for d in v.type.tensor_type.shape.dim]
        if len(shape) == 4:
            out[v.name] = rng.standard_normal((batch, shape[1], past, shape[3])).astype(kind)
        elif "mask" in v.name:
            out[v.name] = np.ones((batch, past + new), kind)
        elif "pos" in v.name:
            out[v.name] = np.broadcast_to(np.arange(past, past + new, dtype=kind), (batch, new)).copy()
        else:
            out[v.name] = rng.integers(0, VOCABULARY, (batch, new)).astype(kind)
    return out


def main() -> None:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("models", nargs="+", type=Path)
    asked.add_argument("--threads", type=int, default=None)
    asked.add_argument("--rounds", type=int, default=6)
    given = asked.parse_args()
    for path in given.models:
        model = onnx.load(path)
        start = time.perf_counter()
        compiled = tilewright.compile(path, threads=given.threads, fallback="error")
        print(f"\n{path.name}: compiled in {time.perf_counter() - start:.1f} s\n")
        print("| batch, new, past | ms | ONNX Runtime, ms | ratio | difference |\n|---|---|---|---|---|")
        runs = {"onnxruntime": load_onnxruntime(model, given.threads), "tilewright": runner(compiled)}
        for sizes in SIZES:
            theirs, ours = race(runs, [inputs(model.graph, *sizes)], rounds=given.rounds, seconds=0)
            print(f"| {', '.join(map(str, sizes))} | {ours.timing.median:.1f} | {theirs.timing.median:.1f} "
                  f"| {ours.ratio:.2f} | {ours.error:.1e} |", flush=True)


if __name__ == "__main__":
    main()
