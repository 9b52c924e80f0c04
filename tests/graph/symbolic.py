"""Kernels of symbolic sizes: one object per group, run natively at many sizes beside the graph interpreter."""
from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from tests.codegen.native import C_TYPES, Context, Runtime
from tilewright.codegen.llvm import compile as llvm_compile
from tilewright.codegen.llvm import jit
from tilewright.codegen.llvm.emit import emit
from tilewright.core.node import transform
from tilewright.graph import interpret
from tilewright.graph.ir import Graph, Value
from tilewright.graph.lower import group_program
from tilewright.graph.passes.fuse import Group, fuse
from tilewright.kernels import lowered_kernel, lowered_prepacks, workspace_bytes, workspaces_of
from tilewright.loop.ir import Call, Program, Var, as_int, const
from tilewright.loop.simplify import simplify
from tilewright.loop.substitute import substitute
from tilewright.target import Target, get_target
from tilewright.tensor.rules.dispatch import by_rules
from tilewright.tensor.schedule.schedule import Schedule

Array = np.ndarray[Any, Any]


class Kernel:
    """A group's program, scheduled by its rule (a refusal is an error), compiled once; `run` calls it with sizes."""

    def __init__(self, group: Group, keep: ExitStack, target: Target | None = None) -> None:
        self.target = target or get_target("native")
        self.made = group_program(group, "kernel")
        self.schedule: Schedule = by_rules(self.made.program, self.target)
        self.module = lowered_kernel(self.schedule, "kernel", self.target)
        prepacks, packed = lowered_prepacks(self.schedule, "kernel", self.target)
        modules = [self.module, *([prepacks] if prepacks.programs else [])]
        objects = [llvm_compile.compile_object(emit(m, self.target), self.target) for m in modules]
        self.runtime = Runtime()
        self.library = keep.enter_context(jit.load(objects, self.runtime.symbols))
        self.workspaces = workspaces_of(self.module, "kernel")
        self.weights = []
        for k, v in enumerate(self.made.weights):
            data: Array = np.ascontiguousarray(v.data)
            pack = packed.get(f"w{k}")
            if pack is not None:
                out = np.zeros(pack.shape, data.dtype)
                program = next(p for p in prepacks.programs if p.name == pack.program)
                self.call(program, [data, out])
                data = out
            self.weights.append(data)

    def call(self, program: Program, args: Sequence[Any]) -> None:
        types = [C_TYPES[q.dtype.name] if isinstance(q, Var) else ctypes.c_void_p for q in program.params]
        fn = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, *types)(self.library.address(program.name))
        context = Context(None, None, 0, 2)
        status = fn(ctypes.addressof(context), *[a.ctypes.data if isinstance(a, np.ndarray) else a for a in args])
        assert status == 0

    def run(self, values: dict[Value, Array], size: Callable[[Any], int]) -> list[Array]:
        """The outputs, each with a margin of NaNs that must survive."""
        inputs = [np.ascontiguousarray(values[v]) for v in self.made.inputs]
        sizes = [size(e) for e in self.made.sizes]
        outs, margins = [], []
        for v in self.made.outputs:
            shape = [size(d) for d in v.shape]
            n = int(np.prod(shape))
            whole = np.full((n + 64) * v.dtype.nbytes, 0xA5, np.uint8)
            outs.append(whole[:n * v.dtype.nbytes].view(v.dtype.numpy()).reshape(shape))
            margins.append(whole[n * v.dtype.nbytes:])
        nbytes = _numbers(workspace_bytes(self.workspaces, [const(n) for n in sizes]))
        scratch = [np.full(n + 64, 0xA5, np.uint8) for n in nbytes]
        (kernel,) = (p for p in self.module.programs if p.name == "kernel")
        self.call(kernel, [*inputs, *self.weights, *outs, *sizes, *scratch])
        assert all((m == 0xA5).all() for m in margins), "written beyond an output's end"
        assert all((s[-64:] == 0xA5).all() for s in scratch), "written beyond a workspace's end"
        return outs


def numbers(symbols: dict[Var, int]) -> Callable[[Any], int]:
    """What an expression over symbols is at some sizes."""
    def value(e: Any) -> int:
        found = as_int(simplify(substitute(e, {v: const(n) for v, n in symbols.items()})))
        assert found is not None, e
        return found
    return value


def _numbers(found: Sequence[Any]) -> list[int]:
    """Bytes, for two threads."""
    two = [transform(e, lambda n: const(2) if isinstance(n, Call) and n.name == "tw_threads" else n) for e in found]
    return [n for e in two if (n := as_int(simplify(e))) is not None]


def check(graph: Graph, symbols: Sequence[Var], sizes: Sequence[tuple[int, ...]], *, groups: int | None = 1,
          rtol: float = 1e-5, atol: float = 1e-5, data: Callable[[Value, list[int]], Array] | None = None,
          target: Target | None = None) -> list[Kernel]:
    """Compile each group of a graph once and compare every value that it stores, at each of `sizes`, with NumPy's."""
    found = fuse(graph)
    kernels = [g for g in found if g.kind == "kernel"]
    assert groups is None or len(kernels) == groups, [[op.op for op in g.operations] for g in kernels]
    rng = np.random.default_rng(0)
    with ExitStack() as keep:
        made = [Kernel(g, keep, target) for g in kernels]
        for setting in sizes:
            size = numbers(dict(zip(symbols, setting, strict=True)))
            feeds = [data(v, [size(d) for d in v.shape]) if data else _filled(rng, v, size) for v in graph.inputs]
            values: dict[Value, Array] = dict(zip(graph.inputs, feeds, strict=True))

            def see(op: Any, results: Any, values: dict[Value, Array] = values) -> None:
                values.update(zip(op.outputs, results, strict=True))
            interpret.run(graph, feeds, symbols={v.name: n for v, n in zip(symbols, setting, strict=True)}, observe=see)
            for k in made:
                for v, got in zip(k.made.outputs, k.run(values, size), strict=True):
                    want = values[v]
                    message = f"{v} at {dict(zip(symbols, setting, strict=True))}"
                    if want.dtype.kind in "biu":
                        np.testing.assert_array_equal(got, want, err_msg=message)
                    else:
                        np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=message)
    return made


def _filled(rng: np.random.Generator, v: Value, size: Callable[[Any], int]) -> Array:
    shape = [size(d) for d in v.shape]
    t = v.dtype.numpy()
    return rng.standard_normal(shape).astype(t) if np.dtype(t).kind == "f" else rng.integers(0, 5, shape).astype(t)
