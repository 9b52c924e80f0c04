"""Errors of models against float64, in the default and in the strict mode, as a table for docs/performance.md.

    python benchmarks/errors.py [net.onnx ...] [--seeds 2] [--threads N] [--json]

In: the examples' models and ONNX files given. Out: per model and mode the largest difference of any output from a run of the
graph interpreter in float64 (its constants and inputs cast; the graph as imported, before any pass), relative to the
output's largest value; the same for ONNX Runtime where it is installed. Integer inputs are zeros and ones.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import tilewright

sys.path.insert(0, str(Path(__file__).parent))
import rates

from tilewright.core.dtype import DType, dtype
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.interpret import run as interpret
from tilewright.graph.ir import Graph, TensorType, Value
from tilewright.model import relative_error
from tilewright.tools.bench import load_onnxruntime

MODES = ("default", "strict")
F64 = dtype("f64")


def in_float64(graph: Graph) -> Graph:
    """The same graph with every f32 value in f64: inputs, constants, and what operations are asked to make. Raises
    ValueError for graphs with control flow."""
    b = GraphBuilder(graph.name)
    new: dict[Value, Value] = {v: b.input(v.name, _wide_type(v.type)) for v in graph.inputs}

    def wide(v: Value | None) -> Value | None:
        if v is None or v in new:
            return None if v is None else new[v]
        assert v.data is not None, v
        new[v] = b.constant(v.data.astype(np.float64), v.name) if v.dtype.name == "f32" else v
        return new[v]

    for op in graph.operations:
        if op.regions:
            raise ValueError("graphs with control flow are not cast")
        attrs = {k: F64 if isinstance(a, DType) and a.name == "f32" else a for k, a in op.attrs.items()}
        outs = b.add_all(op.op, [wide(v) for v in op.inputs], attrs, name=op.outputs[0].name, loc=op.loc)
        new.update(zip(op.outputs, outs, strict=True))
    return b.finish([wide(v) or v for v in graph.outputs], graph.output_names)


def _wide_type(t: TensorType) -> TensorType:
    return TensorType(F64, t.shape) if t.dtype.name == "f32" else t


def exactly(graph: Graph, feeds: Mapping[str, Any]) -> list[Any]:
    """The outputs in float64."""
    wide = {k: a.astype(np.float64) if a.dtype == np.float32 else a for k, a in feeds.items()}
    return interpret(in_float64(graph), wide)


def errors_of(proto: Any, seeds: int, threads: int | None) -> dict[str, float]:
    """The largest error by mode, over inputs from several seeds."""
    out: dict[str, float] = {}
    want: dict[int, list[Any]] = {}
    for mode in MODES:
        with tilewright.compile(proto, threads=threads, numerics=mode) as model:
            assert model.graph is not None
            for seed in range(seeds):
                feeds = model.random_inputs(seed)
                if seed not in want:
                    want[seed] = exactly(model.graph, feeds)
                found = max(relative_error(a, b) for a, b in zip(model.run(feeds), want[seed], strict=True))
                out[mode] = max(out.get(mode, 0.0), found)
            inputs = [model.random_inputs(seed) for seed in range(seeds)]
    if importlib.util.find_spec("onnxruntime"):
        run = load_onnxruntime(proto, threads)
        out["onnxruntime"] = max(relative_error(np.asarray(a), b) for seed, feeds in enumerate(inputs)
                                 for a, b in zip(run(feeds), want[seed], strict=True))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", type=Path, help="ONNX files beside the examples' models")
    parser.add_argument("--seeds", type=int, default=2, help="how many random inputs")
    parser.add_argument("--threads", "-j", type=int)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    columns = (*MODES, "onnxruntime")
    found = {}
    if not options.json:
        print(f"| model | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, proto in rates.protos(options.models):
        found[name] = errors_of(proto, options.seeds, options.threads)
        if not options.json:
            print(f"| {name} | " + " | ".join(f"{found[name][c]:.1e}" if c in found[name] else "–" for c in columns) + " |",
                  flush=True)
    if options.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
