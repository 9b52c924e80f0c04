"""Single operators over many shapes beside ONNX Runtime and PyTorch: what rules should look at next.

    python benchmarks/single_ops.py [--threads 1] [--only softmax] [--seconds 0.1] [--part 1/4] | sort -n

In: nothing. Out: per case the fastest time of each engine in interleaved rounds, each after a short rest, and the fastest
other engine's over ours (above 1: we are faster). Outputs are reused where an engine allows that; times of a few
microseconds measure calls, not kernels. Nothing is expected of the machine.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from cases import Net
from onnx import numpy_helper, shape_inference

import tilewright

Run = Callable[[], Any]


# ---- cases -----------------------------------------------------------------------------------------------------------
def layer(op: str, shape: tuple[int, ...], *constants: Any, **attributes: Any) -> tuple[str, onnx.ModelProto]:
    """A model of one node: x and constants."""
    net = Net(*shape)
    names = ["" if c is None else net.constant(c) for c in constants]
    shown = ",".join(f"{k}={v}" for k, v in attributes.items())
    shown += "".join(f" {np.asarray(c).tolist()}" for c in constants if c is not None and np.asarray(c).size <= 8)
    model = net.add(op, *names, **attributes).done()
    if op == "TopK":
        model.graph.node[0].output.append("indices")
    elif op == "ArgMax":
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return f"{op} {'×'.join(map(str, shape))} {shown}", model


IMAGES = [(1, 64, 56, 56), (1, 3, 224, 224), (1, 128, 28, 28), (1, 512, 7, 7), (1, 33, 31, 29), (8, 64, 28, 28)]
MATRICES = [(128, 768), (1024, 1024), (7, 33), (12, 128, 128), (1, 600000), (1000, 37), (3, 5, 50257)]


def all_cases() -> Iterator[tuple[str, onnx.ModelProto]]:
    for s in MATRICES:
        last = len(s) - 1
        yield layer("Softmax", s, axis=-1)
        yield layer("Softmax", s, axis=0)
        yield layer("ReduceSum", s, np.array([last]), keepdims=0)
        yield layer("ReduceSum", s, np.array([0]), keepdims=0)
        yield layer("ReduceMax", s, np.array([last]), keepdims=0)
        yield layer("ReduceMean", s, keepdims=0)
        yield layer("ArgMax", s, axis=-1)
        yield layer("CumSum", s, np.array(last))
        yield layer("CumSum", s, np.array(0))
        yield layer("LayerNormalization", s, np.ones(s[-1], np.float32), np.ones(s[-1], np.float32))
        yield layer("Transpose", s, perm=list(range(len(s)))[::-1])
        for op in ("Relu", "Exp", "Tanh", "Sigmoid", "Gelu", "Erf", "Log", "Sqrt", "Softplus", "HardSwish"):
            yield layer(op, s)
        if s[-1] >= 64:
            yield layer("TopK", s, np.array([5]), axis=-1)
    for s in IMAGES:
        yield layer("MaxPool", s, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        yield layer("AveragePool", s, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4)
        yield layer("GlobalAveragePool", s)
        yield layer("Transpose", s, perm=[0, 2, 3, 1])
        yield layer("Resize", s, None, np.array([1, 1, 2, 2], np.float32), mode="nearest",
                    coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        yield layer("Resize", s, None, np.array([1, 1, 2, 2], np.float32), mode="linear")
        yield layer("ReduceMean", s, np.array([2, 3]), keepdims=1)
        yield layer("ReduceMean", s, np.array([1]), keepdims=1)
        yield layer("Pad", s, np.array([0, 0, 1, 1, 0, 0, 1, 1]))
        yield layer("BatchNormalization", s, *[np.full(s[1], 0.5, np.float32)] * 4)
        yield layer("InstanceNormalization", s, *[np.full(s[1], 0.5, np.float32)] * 2)
        yield layer("PRelu", s, np.full((s[1], 1, 1), 0.1, np.float32))
        yield layer("DepthToSpace", (s[0], 16, s[2], s[3]), blocksize=2)


# ---- engines ---------------------------------------------------------------------------------------------------------
def ours(model: onnx.ModelProto, x: Any, threads: int) -> Run:
    made = tilewright.compile(model, threads=threads)
    executable = made.executable
    out = executable.run([x])
    return lambda: (executable.run([x], out), made)


def onnxruntime(model: onnx.ModelProto, x: Any, threads: int) -> Run:
    import onnxruntime as ort
    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    shape = session.run(None, {"x": x})[0]
    value = ort.OrtValue.ortvalue_from_numpy(shape)
    binding.bind_ortvalue_output(session.get_outputs()[0].name, value)
    return lambda: session.run_with_iobinding(binding)


def pytorch(model: onnx.ModelProto, x: Any, threads: int) -> Run | None:
    """PyTorch's own function for a node, where it has one of the same meaning."""
    import torch
    import torch.nn.functional as F
    torch.set_num_threads(threads)
    node, t = model.graph.node[0], torch.from_numpy(x)
    weights = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in model.graph.initializer}
    w = [weights.get(n) for n in node.input[1:]]
    a = {k.name: onnx.helper.get_attribute_value(k) for k in node.attribute}
    axes = [int(v) for v in w[0]] if node.op_type.startswith("Reduce") and w else list(range(t.ndim))
    fns: dict[str, Callable[[], Any]] = {
        "Softmax": lambda: torch.softmax(t, a["axis"]), "ReduceSum": lambda: t.sum(axes), "ReduceMax": lambda: t.amax(axes),
        "ReduceMean": lambda: t.mean(axes), "ArgMax": lambda: t.argmax(a["axis"]), "CumSum": lambda: t.cumsum(int(w[0])),
        "LayerNormalization": lambda: F.layer_norm(t, t.shape[-1:], w[0], w[1]),
        "Transpose": lambda: t.permute(a["perm"]).contiguous(), "Relu": t.relu, "Exp": t.exp, "Tanh": t.tanh,
        "Sigmoid": t.sigmoid, "Gelu": lambda: F.gelu(t), "Erf": t.erf, "Log": t.log, "Sqrt": t.sqrt,
        "Softplus": lambda: F.softplus(t), "HardSwish": lambda: F.hardswish(t), "TopK": lambda: t.topk(5),
        "MaxPool": lambda: F.max_pool2d(t, 3, 2, 1),
        "AveragePool": lambda: F.avg_pool2d(t, 3, 1, 1, count_include_pad=False),
        "GlobalAveragePool": lambda: F.adaptive_avg_pool2d(t, 1),
        "Resize": lambda: F.interpolate(t, scale_factor=2, mode="nearest" if a["mode"] == b"nearest" else "bilinear"),
        "Pad": lambda: F.pad(t, (1, 1, 1, 1)), "DepthToSpace": lambda: F.pixel_shuffle(t, 2)}
    return fns.get(node.op_type)


def race(runs: dict[str, Run], seconds: float) -> dict[str, float]:
    """Fastest time of each, in microseconds, in interleaved rounds."""
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        for _ in range(3):
            run()
    stop, rounds = time.perf_counter() + seconds, 0
    while rounds < 4 or time.perf_counter() < stop:
        rounds += 1
        for name, run in runs.items():
            time.sleep(0.002)  # an engine's waiting threads spin for a while, and would be in the next one's way
            run()
            for _ in range(3):
                start = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - start)
    return {k: v * 1e6 for k, v in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", "-j", type=int, default=1)
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=0.05, help="least measuring time per case")
    parser.add_argument("--part", default="1/1", help="which of how many parts of the cases, such as 2/4")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    engines = {"tilewright": ours}
    engines |= {k: f for k, f in (("onnxruntime", onnxruntime), ("torch", pytorch)) if importlib.util.find_spec(k)}
    found = []
    part, parts = map(int, options.part.split("/"))
    for k, (name, model) in enumerate(all_cases()):
        if k % parts != part - 1 or options.only.lower() not in name.lower():
            continue
        sizes = [d.dim_value for d in shape_inference.infer_shapes(model).graph.input[0].type.tensor_type.shape.dim]
        x = np.random.default_rng(0).random(sizes, np.float32) + np.float32(0.1)
        runs = {k: made for k, f in engines.items() if (made := f(model, x, options.threads)) is not None}
        times = race(runs, options.seconds)
        peers = [v for k, v in times.items() if k != "tilewright"]
        found.append({"case": name, **times, "ratio": min(peers, default=float("nan")) / times["tilewright"]})
        if not options.json:
            each = "  ".join(f"{k} {v:9.1f}" for k, v in times.items())
            print(f"{found[-1]['ratio']:6.2f}  {each}  {name}", flush=True)
    if options.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
