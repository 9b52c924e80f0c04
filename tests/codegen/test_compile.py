"""Compilation: the machine code of a GEMM tile, the instructions of each x86-64 level, worker processes, loading."""
from __future__ import annotations

import os
import re
import signal

import numpy as np
import pytest

from tests.codegen.native import native
from tilewright.codegen.llvm import jit
from tilewright.codegen.llvm.compile import CompilePool, assembly, compile_object
from tilewright.codegen.llvm.emit import emit
from tilewright.core.dtype import f32, handle, i64
from tilewright.core.errors import InternalError
from tilewright.loop import ir
from tilewright.target import get_target


def c(n: int) -> ir.Expr:
    return ir.Const(n, i64)


def gemm(m: int, n: int, k: int, rows: int, columns: int, lanes: int, name: str = "gemm") -> ir.Program:
    """C = A @ B with B packed as [n/columns][k][columns], one register tile at a time."""
    a, b = ir.Buffer("A", f32, (c(m), c(k))), ir.Buffer("B", f32, (c(n // columns), c(k), c(columns)))
    out, acc = ir.Buffer("C", f32, (c(m), c(n))), ir.Buffer("acc", f32, (c(rows), c(columns)), "local")
    x, y, z = ir.Var("x"), ir.Var("y"), ir.Var("z")
    tile = [(r, ir.Ramp(c(v), c(1), lanes), v) for r in range(rows) for v in range(0, columns, lanes)]
    zero = [ir.Store(acc, (c(r), w), ir.Broadcast(ir.Const(0.0, f32), lanes)) for r, w, _ in tile]
    fma: list[ir.Stmt] = [ir.Evaluate(ir.Call("prefetch", (ir.Address(b, (x, z + 8, c(0))), c(3)), handle))]
    fma += [ir.Store(acc, (c(r), w), acc[r, w] + ir.Broadcast(a[y * rows + r, z], lanes) * b[x, z, w]) for r, w, _ in tile]
    back = [ir.Store(out, (y * rows + r, ir.Ramp(x * columns + v, c(1), lanes)), acc[r, w]) for r, w, v in tile]
    nest = ir.Allocate(acc, ir.seq(zero, ir.For(z, c(0), c(k), ir.seq(fma)), back))
    return ir.Program(name, (a, b, out), ir.For(x, c(0), c(n // columns), ir.For(y, c(0), c(m // rows), nest)),
                      (("aligned", True),))


def hot_loop(text: str) -> list[str]:
    """The instructions of the loop that has the fused multiply-adds."""
    blocks = re.split(r"^\.L\w+:.*$", text, flags=re.MULTILINE)
    best = max(blocks, key=lambda b: b.count("vfmadd")).partition("\tj")[0]
    return [line.strip() for line in best.splitlines() if line.startswith("\t") and not line.startswith("\t.")]


@pytest.mark.parametrize(("level", "rows", "columns", "lanes"), (
    ("x86-64-v4", 8, 48, 16), ("x86-64-v4", 12, 32, 16), ("x86-64-v4", 14, 32, 16), ("x86-64-v3", 6, 16, 8)))
def test_accumulators_stay_in_registers(level: str, rows: int, columns: int, lanes: int) -> None:
    p = gemm(rows * 2, columns * 2, 64, rows, columns, lanes)
    code = hot_loop(assembly(emit(ir.Module((p,)), get_target(level)), get_target(level)))
    text = "\n".join(code)
    assert text.count("vfmadd") == rows * columns // lanes
    assert "rsp" not in text, "a spill in the hot loop"
    loads = rows + columns // lanes
    assert len(re.findall(r"\((%\w+|,)", text)) <= loads + 1, "rows are loaded once each, and one prefetch"
    assert len(code) <= rows * columns // lanes + loads + 4, "little but arithmetic"


def test_gemm_is_right() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((16, 64), np.float32), rng.random((2, 64, 48), np.float32)
    got = np.zeros((16, 96), np.float32)
    assert native(gemm(16, 96, 64, 8, 48, 16).replace(attrs=()), [a, b, got]) == 0
    np.testing.assert_allclose(got, a @ b.transpose(1, 0, 2).reshape(64, 96), rtol=1e-5)


def test_unrolling_by_request() -> None:
    p, target = gemm(8, 48, 64, 4, 48, 16), get_target("x86-64-v4")

    def hinted(s: ir.Stmt) -> ir.Stmt:
        s = s.map(lambda x: hinted(x) if isinstance(x, ir.Stmt) else x)
        return s.replace(attrs=(("unroll", 4),)) if isinstance(s, ir.For) and s.var.name == "z" else s

    p = p.replace(body=hinted(p.body))
    assert "\n".join(hot_loop(assembly(emit(ir.Module((p,)), target), target))).count("vfmadd") == 4 * 12


FORBIDDEN = {"x86-64": r"%[yz]mm|\bv[a-z]+ps|pshufb|roundps|pminsd", "x86-64-v2": r"%[yz]mm|\bv[a-z]+ps|vfmadd",
             "x86-64-v3": r"%zmm|%k[0-7]"}


@pytest.mark.parametrize("level", FORBIDDEN)
def test_levels_use_only_their_instructions(level: str) -> None:
    a, b, o = (ir.Buffer(n, f32, (c(64),)) for n in "abo")
    i = ir.Var("i")
    at = ir.Ramp(i * 16, c(1), 16)
    value = ir.Max(ir.Call("sqrt", (a[at],), f32.with_lanes(16)) * b[at] + a[at], b[at])
    p = ir.Program("f", (a, b, o), ir.For(i, c(0), c(4), ir.Store(o, (at,), value)))
    text = assembly(emit(ir.Module((p,)), get_target(level)), get_target(level))
    assert re.search(r"%[xyz]mm", text) and not re.search(FORBIDDEN[level], text), text


def test_min_max_are_short() -> None:
    """With a constant one instruction, without three."""
    a, o = ir.Buffer("a", f32, (c(16),)), ir.Buffer("o", f32, (c(16),))
    at, target = ir.Ramp(c(0), c(1), 16), get_target("x86-64-v4")
    relu = ir.Program("f", (a, o), ir.Store(o, (at,), ir.Max(a[at], ir.const(0.0, a[at]))))
    text = assembly(emit(ir.Module((relu,)), target), target)
    assert text.count("vmaxps") == 1 and "vcmp" not in text
    both = ir.Program("f", (a, o), ir.Store(o, (at,), ir.Max(a[at], o[at])))
    text = assembly(emit(ir.Module((both,)), target), target)
    assert text.count("vmaxps") == 1 and text.count("vcmp") == 1


def test_aarch64_is_emitted() -> None:
    target = get_target("aarch64-neon")
    text = assembly(emit(ir.Module((gemm(4, 8, 8, 4, 8, 4),)), target), target)
    assert "fmla" in text and "prfm" in text


def test_workers_give_the_same_objects() -> None:
    target = get_target("native")
    texts = [emit(ir.Module((gemm(4, 16, 8 + k, 4, 16, 16, f"g{k}"),)), target) for k in range(5)]
    with CompilePool(1) as here, CompilePool(2) as pool:
        alone = here.compile((text, target) for text in texts)
        assert pool.compile((text, target) for text in texts) == alone
    assert len(set(alone)) == 5
    with jit.load(alone) as library:
        assert len({library.address(f"g{k}") for k in range(5)}) == 5


def test_a_worker_reports_what_llvm_refuses() -> None:
    target = get_target("native")
    for workers in (1, 2):
        with CompilePool(workers) as pool, pytest.raises(InternalError, match="LLVM refuses"):
            pool.compile([("define i32 @f( {", target)])


def test_a_dead_worker_is_noticed() -> None:
    target = get_target("native")
    text = emit(ir.Module((gemm(4, 16, 8, 4, 16, 16),)), target)
    with CompilePool(2) as pool:
        pids = [process.pid for process, _ in pool._workers]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(InternalError, match="worker ended"):
            pool.compile([(text, target)] * 3)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_interrupt_ends_the_workers() -> None:
    target = get_target("native")
    pool = CompilePool(2)
    pids = [process.pid for process, _ in pool._workers]

    def interrupted() -> object:
        yield emit(ir.Module((gemm(4, 16, 8, 4, 16, 16),)), target), target
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.compile(interrupted())  # type: ignore[arg-type]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_loading_says_what_is_missing() -> None:
    target = get_target("native")
    o = ir.Buffer("o", f32, (c(1),))
    calls = ir.Program("f", (o,), ir.Launch("elsewhere", (ir.Address(o, (c(0),)),)))
    obj = compile_object(emit(ir.Module((calls,)), target), target)
    with pytest.raises(InternalError, match="no function f"), jit.load([obj]) as library:
        library.address("f")
    with jit.load([compile_object(emit(ir.Module((gemm(4, 16, 8, 4, 16, 16),)), target), target)]) as library:
        assert library.address("gemm")
        with pytest.raises(InternalError, match="nothing"):
            library.address("nothing")
    with pytest.raises(InternalError, match="closed"):
        library.address("gemm")
