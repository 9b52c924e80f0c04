"""Running emitted code on NumPy arrays, and the interpreter beside it."""
from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np

from tilewright.codegen.llvm import compile as llvm_compile
from tilewright.codegen.llvm import jit
from tilewright.codegen.llvm.emit import emit
from tilewright.core.dtype import DType
from tilewright.loop import ir
from tilewright.loop.interpret import run
from tilewright.target import Target, get_target

C_TYPES = {"i64": ctypes.c_int64, "i32": ctypes.c_int32, "i16": ctypes.c_int16, "i8": ctypes.c_int8, "u64": ctypes.c_uint64,
           "u32": ctypes.c_uint32, "u16": ctypes.c_uint16, "u8": ctypes.c_uint8, "f32": ctypes.c_float,
           "f64": ctypes.c_double, "bool": ctypes.c_uint8}


class Context(ctypes.Structure):
    """The first fields of tw_ctx."""
    _fields_ = [("arena", ctypes.c_void_p), ("consts", ctypes.c_void_p), ("flags", ctypes.c_int32),
                ("threads", ctypes.c_int32)]


class Runtime:
    """tw_parallel on two ranges of tasks in two threads, tw_parallel_turn (the same, and notes the turn), tw_worker that
    tells the threads apart, tw_fail that records."""

    def __init__(self) -> None:
        self.failures: list[tuple[int, bytes]] = []
        self.turns: list[int] = []
        self.worker = threading.local()
        body = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)

        def parallel(ctx: int, fn: int, closure: int, tasks: int) -> int:
            call, status = body(fn), [0, 0]

            def half(k: int) -> None:
                self.worker.number = k
                status[k] = call(ctx, closure, tasks * k // 2, tasks * (k + 1) // 2)
            threads = [threading.Thread(target=half, args=(k,)) for k in (0, 1)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            return status[0] or status[1]

        def parallel_turn(ctx: int, fn: int, closure: int, tasks: int, turn: int) -> int:
            self.turns.append(turn)
            return parallel(ctx, fn, closure, tasks)

        def worker(ctx: int) -> int:
            return int(getattr(self.worker, "number", 0))

        def fail(ctx: int, code: int, message: bytes) -> int:
            self.failures.append((code, message))
            return code

        p, i = ctypes.c_void_p, ctypes.c_int64
        self.keep = [ctypes.CFUNCTYPE(ctypes.c_int32, p, p, p, i)(parallel),
                     ctypes.CFUNCTYPE(ctypes.c_int32, p, p, p, i, i)(parallel_turn),
                     ctypes.CFUNCTYPE(ctypes.c_int32, p, ctypes.c_int32, ctypes.c_char_p)(fail),
                     ctypes.CFUNCTYPE(ctypes.c_int32, p)(worker)]
        names = ("tw_parallel", "tw_parallel_turn", "tw_fail", "tw_worker")
        self.symbols = {n: ctypes.cast(f, p).value or 0 for n, f in zip(names, self.keep, strict=True)}


def native(what: ir.Program | ir.Module, args: list[Any], *, target: Target | None = None, runtime: Runtime | None = None,
           arena: Any = None, consts: Any = None, name: str = "") -> int:
    """Emit, compile, load and call the first program; the status it returns."""
    module = what if isinstance(what, ir.Module) else ir.Module((what,))
    target = target or get_target("native")
    obj = llvm_compile.compile_object(emit(module, target), target)
    ctx = Context(None if arena is None else arena.ctypes.data, None if consts is None else consts.ctypes.data, 0, 2)
    p = module.programs[0]
    runtime = runtime or Runtime()
    with jit.load([obj], runtime.symbols) as library:
        types = [C_TYPES[q.dtype.name] if isinstance(q, ir.Var) else ctypes.c_void_p for q in p.params]
        fn = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, *types)(library.address(name or p.name))
        return int(fn(ctypes.addressof(ctx), *[a.ctypes.data if isinstance(a, np.ndarray) else a for a in args]))


def both(what: ir.Program | ir.Module, args: list[Any], **options: Any) -> list[tuple[Any, Any]]:
    """(native, interpreted) arrays after a run of each on copies of the arguments."""
    mine, theirs = ([a.copy() if isinstance(a, np.ndarray) else a for a in args] for _ in range(2))
    assert native(what, mine, **options) == 0
    run(what, theirs)
    return [(a, b) for a, b in zip(mine, theirs, strict=True) if isinstance(a, np.ndarray)]


def same(what: ir.Program | ir.Module, args: list[Any], **options: Any) -> None:
    """Native and interpreted results have the same bits (any NaN equals any NaN)."""
    for a, b in both(what, args, **options):
        assert bits_differ(a, b) == [], (a, b)


def bits_differ(a: Any, b: Any) -> list[int]:
    """Positions where the bits differ, but for NaNs and the unused bits of sub-byte integers."""
    x, y = (v.reshape(-1) for v in (a, b))
    if "int" in x.dtype.name:
        x, y = (v.astype(np.uint64 if v.dtype == np.uint64 else np.int64) for v in (x, y))
    equal = np.array([p.tobytes() == q.tobytes() for p, q in zip(x, y, strict=True)], bool)
    if x.dtype.kind in "fV":
        with np.errstate(invalid="ignore"):
            equal |= np.isnan(x.astype(np.float64)) & np.isnan(y.astype(np.float64))
    return [int(i) for i in np.nonzero(~equal)[0]]


def samples(t: DType, n: int, seed: int = 0) -> Any:
    """Values of a type, the awkward ones first."""
    rng = np.random.default_rng(seed)
    if t.is_bool:
        return rng.integers(0, 2, n).astype(bool)
    if t.is_float:
        v = rng.normal(size=n) * rng.choice([1e-3, 1.0, 30.0], n)
        special = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 0.5, -1.5, 2.5]
        v[:len(special)] = rng.permutation(special)[:n]
        with np.errstate(over="ignore", invalid="ignore"):
            return v.astype(np.float32).astype(t.numpy()) if t.bits < 32 else v.astype(t.numpy())
    low, high = t.range()
    v = rng.integers(low, high, n, dtype=np.uint64 if t.name == "u64" else np.int64, endpoint=True)
    edges = np.array([low, high, 0, 1], v.dtype)
    v[:len(edges)] = rng.permutation(edges)[:n]
    return v.astype(t.numpy())
