"""Depthwise convolutions on a CUDA device: the tutorial's schedule beside PyTorch with cuDNN, both as replayed CUDA graphs.

    python benchmarks/depthwise.py [--sizes 21 32 64 96] [--kernels 3 5] [--multipliers 1 2] [--json out.json]

In: a machine with a CUDA device, PyTorch and NVRTC (`pip install torch nvidia-cuda-nvrtc-cu12`); without them it says so and
measures nothing. Out: for [1, 256, n, n], alone and followed by scale, shift and ReLU, microseconds of both, the ratio, and
the share of the bandwidth that a copy of the same bytes reaches; and the geometric means of the ratios.

Ours is the schedule of docs/tutorials/depthwise_conv.py, its numbers of threads found on the device by trying all. PyTorch's
is the faster of its two memory formats with cuDNN's benchmark mode on and TF32 off, its follow-up in kernels as eager
PyTorch launches them (addcmul, then ReLU in place). A graph holds many launches in a row on the same buffers, so both find
in the cache what fits there, and neither pays for launches from Python. Our cubins are launched through the CUDA driver in
PyTorch's context, on the stream that it captures.
"""
from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import math
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilewright import te
from tilewright.codegen.clike import nvrtc
from tilewright.loop.ir import Address, Buffer, Launch, Seq, as_int
from tilewright.target.presets import get_target
from tilewright.target.target import Target

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "tutorials"))
import depthwise_conv as tutorial

LAUNCHES = 50
"""In a graph."""
REPLAYS = 20
CHANNELS = 256
TOLERANCE = 1e-4
"""Of the largest value, between float32 results that are added up in different orders."""


# ---- our side ------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Call:
    """One launch: the kernel, its buffers by their place among the function's inputs, outputs and scratch, its grid."""
    kernel: str
    arguments: tuple[int, ...]
    grid: tuple[int, ...]


def calls_of(f: te.Function) -> tuple[list[Call], list[int]]:
    """The launches of a function in order, and the bytes of its scratch buffers."""
    host = f.lowered.programs[0]
    buffers = [p for p in host.params if isinstance(p, Buffer)]
    order = [*f.inputs, *f.outputs]
    scratch = [b for b in buffers if b not in order]
    place = {b: k for k, b in enumerate([*order, *scratch])}
    body = host.body.stmts if isinstance(host.body, Seq) else (host.body,)
    calls = []
    for s in body:
        assert isinstance(s, Launch)
        arguments = [place[a.buffer] for a in s.args if isinstance(a, Address)]
        calls.append(Call(s.callee, tuple(arguments), tuple([as_int(e) or 1 for e in s.grid])))
    return calls, [math.prod([as_int(d) or 1 for d in b.shape]) * b.dtype.nbytes for b in scratch]


class Cubin:
    """A function's kernels in the CUDA driver, in the context that is current."""

    def __init__(self, f: te.Function, target: Target) -> None:
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.calls, self.scratch_bytes = calls_of(f)
        self.image = nvrtc.compile_cubin(f.source, target.arch_name)
        self.module = ctypes.c_void_p()
        self._check(self.driver.cuModuleLoadData(ctypes.byref(self.module), self.image))
        self.functions = {}
        for call in self.calls:
            function = ctypes.c_void_p()
            self._check(self.driver.cuModuleGetFunction(ctypes.byref(function), self.module, call.kernel.encode()))
            self.functions[call.kernel] = function

    def launch(self, pointers: Sequence[int], stream: int) -> None:
        for call in self.calls:
            held = [ctypes.c_void_p(pointers[k]) for k in call.arguments]
            packed = (ctypes.c_void_p * len(held))(*[ctypes.cast(ctypes.byref(p), ctypes.c_void_p) for p in held])
            function, where = self.functions[call.kernel], ctypes.c_void_p(stream)
            self._check(self.driver.cuLaunchKernel(function, *call.grid, 0, where, packed, None))

    def close(self) -> None:
        self._check(self.driver.cuModuleUnload(self.module))

    def _check(self, status: int) -> None:
        if status:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorString(status, ctypes.byref(text))
            raise RuntimeError(f"the CUDA driver says {text.value!r}")


def candidates(d: tutorial.Depthwise, target: Target) -> Iterator[tutorial.Threads]:
    """All divisions of a tile into threads, each also with virtual threads along x, and along both axes."""
    for t in tutorial.divisions(d.tile, target):
        yield t
        if d.tile // t.x > 1:
            yield dataclasses.replace(t, virtual_x=d.tile // t.x)
            if d.tile // t.y > 1:
                yield dataclasses.replace(t, virtual_x=d.tile // t.x, virtual_y=d.tile // t.y)


# ---- measuring -----------------------------------------------------------------------------------------------------------
def microseconds(torch: Any, run: Callable[[], Any]) -> float:
    """Of one call of `run`, out of replayed graphs of many calls: the median."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            run()
    times = []
    for k in range(REPLAYS + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if k >= 3:
            times.append(begin.elapsed_time(end) * 1e3 / LAUNCHES)
    return float(np.median(times))


class Ours:
    """The best of our kernels for a case."""

    def __init__(self, torch: Any, d: tutorial.Depthwise, target: Target, fused: bool, inputs: Sequence[Any],
                 want: Any) -> None:
        args = d.fused_args if fused else d.args
        found = []
        for threads in candidates(d, target):
            s = tutorial.tiled(te.create_schedule((d.out if fused else d.y).op), d, d.out if fused else d.y, threads, d.tile)
            cubin = Cubin(te.build(s, target, args=args), target)
            out = torch.empty_like(want)
            scratch = [torch.empty(n, dtype=torch.uint8, device="cuda") for n in cubin.scratch_bytes]
            pointers = [t.data_ptr() for t in (*inputs, out, *scratch)]

            def run(cubin: Cubin = cubin, pointers: list[int] = pointers) -> None:
                cubin.launch(pointers, torch.cuda.current_stream().cuda_stream)
            found.append((microseconds(torch, run), threads))
            error = float((out - want).abs().max() / want.abs().max())
            if not error <= TOLERANCE:
                raise SystemExit(f"{threads}: wrong by {error:.3g} of the largest value")
            torch.cuda.synchronize()
            cubin.close()
        self.time, self.threads = min(found, key=lambda pair: pair[0])


def theirs(torch: Any, fused: bool, inputs: Sequence[Any], channels: int) -> tuple[float, Any]:
    """PyTorch's time in the faster memory format, and its result."""
    x, w, *rest = inputs
    weight = w.reshape(-1, 1, *w.shape[2:])
    times, result = [], None
    for form in (torch.contiguous_format, torch.channels_last):
        a, b = x.contiguous(memory_format=form), weight.contiguous(memory_format=form)
        scale, shift = ([t.reshape(1, -1, 1, 1) for t in rest] if fused else (None, None))

        def run(a: Any = a, b: Any = b, scale: Any = scale, shift: Any = shift) -> Any:
            y = torch.nn.functional.conv2d(a, b, padding=b.shape[-1] // 2, groups=channels)
            return y if scale is None else torch.addcmul(shift, y, scale).relu_()
        result = run().contiguous()
        times.append(microseconds(torch, run))
    return min(times), result


def case(torch: Any, target: Target, size: int, kernel: int, multiplier: int) -> dict[str, Any]:
    """Both sides of one shape, alone and fused."""
    d = tutorial.Depthwise(CHANNELS, size, kernel, multiplier)
    inputs = [torch.from_numpy(a).cuda() for a in d.inputs()]
    nbytes = 4 * (inputs[0].numel() + math.prod(d.shape))
    source, sink = (torch.empty(nbytes // 8, dtype=torch.float32, device="cuda") for _ in range(2))
    copy = microseconds(torch, lambda: sink.copy_(source))
    row: dict[str, Any] = {"size": size, "kernel": kernel, "multiplier": multiplier, "copy": copy}
    for name, fused in (("alone", False), ("fused", True)):
        given = inputs if fused else inputs[:2]
        time, want = theirs(torch, fused, given, CHANNELS)
        ours = Ours(torch, d, target, fused, given, want)
        row[name] = {"ours": ours.time, "torch": time, "ratio": time / ours.time, "of_copy": copy / ours.time,
                     "threads": dataclasses.astuple(ours.threads)}
    return row


def device() -> tuple[Any, Target]:
    """PyTorch and the target that its device is. Exits where one of them is missing."""
    nothing = "Nothing was measured: "
    try:
        import torch
    except ImportError:
        raise SystemExit(f"{nothing}PyTorch is not installed (pip install torch)") from None
    if not torch.cuda.is_available():
        raise SystemExit(f"{nothing}PyTorch finds no CUDA device on this machine")
    if not nvrtc.is_there():
        raise SystemExit(f"{nothing}NVRTC is missing (pip install nvidia-cuda-nvrtc-cu12)")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch, get_target("cuda")


def mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    """The geometric mean of PyTorch's time over ours."""
    return math.exp(sum(math.log(r[name]["ratio"]) for r in rows) / len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, values in (("sizes", [21, 32, 64, 96]), ("kernels", [3, 5]), ("multipliers", [1, 2])):
        parser.add_argument(f"--{name}", type=int, nargs="*", default=values)
    parser.add_argument("--json", type=Path, help="also write the rows into this file")
    given = parser.parse_args()
    torch, target = device()
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda,
             "cudnn": torch.backends.cudnn.version(), "system": platform.platform(), "target": target.arch_name,
             "command": " ".join(sys.argv)}
    print("\n".join([f"{k}: {v}" for k, v in about.items()]))
    print(f"\n{'[1, 256, n, n]':28}{'alone: ours':>12}{'torch':>9}{'ratio':>7}{'of copy':>9}"
          f"{'  fused: ours':>14}{'torch':>9}{'ratio':>7}{'of copy':>9}   µs; threads y, x, virtual y, x")
    rows = []
    for size in given.sizes:
        for kernel in given.kernels:
            for multiplier in given.multipliers:
                row = case(torch, target, size, kernel, multiplier)
                rows.append(row)
                a, f = row["alone"], row["fused"]
                print(f"n {size:3}, {kernel}×{kernel}, multiplier {multiplier}     {a['ours']:12.2f}{a['torch']:9.2f}"
                      f"{a['ratio']:7.2f}{a['of_copy']:9.0%}{f['ours']:14.2f}{f['torch']:9.2f}{f['ratio']:7.2f}"
                      f"{f['of_copy']:9.0%}   {a['threads']} {f['threads']}", flush=True)
    print(f"\ngeometric mean of the ratios: alone {mean(rows, 'alone'):.2f}, fused {mean(rows, 'fused'):.2f}")
    if given.json:
        given.json.write_text(json.dumps({**about, "rows": rows}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
