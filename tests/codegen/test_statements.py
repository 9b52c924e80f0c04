"""Memory, control flow and calls between programs, against the interpreter where it runs them."""
from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tests.codegen.native import Context, Runtime, native, same, samples
from tilewright.codegen.llvm import compile as llvm_compile
from tilewright.codegen.llvm import jit
from tilewright.codegen.llvm.emit import emit
from tilewright.core import dtype as d
from tilewright.core.dtype import f32, i64
from tilewright.core.errors import InternalError
from tilewright.loop import ir
from tilewright.target import get_target


def c(n: int) -> ir.Expr:
    return ir.Const(n, i64)


def buffer(name: str, *shape: int | ir.Expr, t: d.DType = f32, **more: object) -> ir.Buffer:
    return ir.Buffer(name, t, tuple([ir.expr(n) for n in shape]), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", (1, 2, -1, -3, 0))
def test_vector_loads_and_stores_at_a_stride(step: int) -> None:
    a, o, i = buffer("A", 64), buffer("O", 64), ir.Var("i")
    first = c(0) if step >= 0 else c(-7 * step)
    load = a[ir.Ramp(i + first, c(step), 8)]
    p = ir.Program("f", (a, o), ir.For(i, c(0), c(8), ir.Store(o, (ir.Ramp(i * 8, c(1), 8),), load)))
    same(p, [samples(f32, 64), np.zeros(64, np.float32)])
    if step:
        p = ir.Program("f", (a, o), ir.Store(o, (ir.Ramp(first, c(step), 8),), a[ir.Ramp(c(3), c(1), 8)]))
        same(p, [samples(f32, 64), np.zeros(64, np.float32)])


def test_gather_through_indices_in_two_dimensions() -> None:
    a, x, o = buffer("A", 8, 16), buffer("X", 8, t=d.i32), buffer("O", 8)
    lanes = ir.Ramp(c(0), c(1), 8)
    p = ir.Program("f", (a, x, o), ir.Store(o, (lanes,), a[x[lanes].cast(i64), lanes * 2]))
    same(p, [samples(f32, 128).reshape(8, 16), np.array([3, 0, 7, 1, 1, 5, 2, 6], np.int32), np.zeros(8, np.float32)])


def test_indices_that_are_not_affine_and_symbolic_shapes() -> None:
    n, m, i, j = ir.Var("n"), ir.Var("m"), ir.Var("i"), ir.Var("j")
    a, o = buffer("A", n, m), buffer("O", m, n)
    body = ir.Store(o, (j, n - 1 - i), a[(i * 3 + j) % n, (j - i + m * 2) // 2 % m])
    p = ir.Program("f", (n, m, a, o), ir.For(i, c(0), n, ir.For(j, c(0), m, body)))
    same(p, [7, 5, samples(f32, 35).reshape(7, 5), np.zeros((5, 7), np.float32)])


@pytest.mark.parametrize("t", (d.i4, d.u4, d.i2, d.u2), ids=str)
@pytest.mark.parametrize("lanes", (1, 8))
def test_packed_elements(t: d.DType, lanes: int) -> None:
    k = 8 // t.bits
    a, o = buffer("A", 32, t=t, packing=k), buffer("O", 32, t=t, packing=k)
    i = ir.Var("i")
    at = ir.Ramp(i * lanes, c(1), lanes) if lanes > 1 else i
    body = ir.Store(o, (at,), a[at] + ir.const(1, t.with_lanes(lanes)))
    p = ir.Program("f", (a, o), ir.For(i, c(0), c(32 // lanes), body))
    raw = np.random.default_rng(0).integers(0, 256, 32 // k).astype(np.uint8)
    got = np.zeros_like(raw)
    assert native(p, [raw, got]) == 0
    mask = (1 << t.bits) - 1
    want = [sum((((int(b) >> (s * t.bits)) + 1) & mask) << (s * t.bits) for s in range(k)) for b in raw]
    assert got.tolist() == want


def test_loops_of_every_extent_and_start() -> None:
    n, o, i, j = ir.Var("n"), buffer("O", 8, 8, t=d.i32), ir.Var("i"), ir.Var("j")
    for extent, start in ((c(8), c(0)), (n, c(0)), (c(1), n - 1), (c(0), c(0)), (n - 3, c(3))):
        inner = ir.For(j, start, extent, ir.Store(o, (i, j), (i * 8 + j).cast(d.i32)))
        p = ir.Program("f", (n, o), ir.For(i, c(0), c(8), inner))
        same(p, [5, np.full((8, 8), -1, np.int32)])


def test_let_if_while_and_guard() -> None:
    n, a, o, i, v = ir.Var("n"), buffer("A", 8, t=d.i32), buffer("O", 9, t=d.i32), ir.Var("i"), ir.Var("v", d.i32)
    k = buffer("k", 1, t=i64, scope="local")
    guarded = ir.Guard(ir.Lt(i, n), a[i], ir.Const(-1, d.i32))
    branch = ir.If(ir.Lt(ir.Const(3, d.i32), v), ir.Store(o, (i,), v * 2), ir.Store(o, (i,), v))
    loop = ir.For(i, c(0), c(8), ir.Let(v, guarded, branch))
    count = ir.Allocate(k, ir.seq(ir.Store(k, (c(0),), c(0)), ir.While(
        ir.Lt(k[0] * k[0], c(50)), ir.Store(k, (c(0),), k[0] + 1)), ir.Store(o, (c(8),), k[0].cast(d.i32))))
    p = ir.Program("f", (n, a, o), ir.seq(loop, count))
    same(p, [5, np.arange(8, dtype=np.int32), np.zeros(9, np.int32)])


def test_sizes_read_between_statements() -> None:
    """Addresses that leave a loop may use what was loaded just before it, in every kind of inner scope."""
    x, o, i, j, n = buffer("X", 4, t=i64), buffer("O", 64, t=i64), ir.Var("i"), ir.Var("j"), ir.Var("n")

    def use(k: int) -> ir.Stmt:
        write = ir.For(j, c(0), c(2), ir.Store(o, (i * n + j + c(k) * n,), ir.FloorDiv(i * n + n * 4, c(3)) + j))
        branch = ir.If(ir.Lt(n, c(100)), ir.For(i, c(0), c(2), ir.If(ir.Lt(i, n), write, ir.Store(o, (n * 2,), n * 3))),
                       ir.Store(o, (n * 2,), n * 3))
        return ir.Let(n, x[k] + 1, branch)
    kept = ir.Guard(ir.Lt(x[0], x[1]), o[x[2] * x[1]], x[2] * x[1])
    p = ir.Program("f", (x, o), ir.seq(ir.Store(o, (c(0),), c(9)), use(0), ir.Store(x, (c(1),), x[0] + 2), use(1),
                                       ir.Store(o, (x[2] * x[1] + 1,), kept)))
    same(p, [np.array([2, 3, 4, 5]), np.zeros(64, np.int64)])


def test_a_guard_does_not_touch_the_other_side() -> None:
    a, o, i = buffer("A", 1 << 60), buffer("O", 4), ir.Var("i")
    far = ir.Guard(ir.Lt(i, c(2)), a[i], ir.Guard(ir.Lt(i, c(100)), ir.Const(-1.0, f32), a[i * (1 << 40)]))
    p = ir.Program("f", (a, o), ir.For(i, c(0), c(4), ir.Store(o, (i,), far)))
    got = np.zeros(4, np.float32)
    assert native(p, [np.array([4, 5], np.float32), got]) == 0
    assert got.tolist() == [4, 5, -1, -1]


def test_memory_of_every_kind() -> None:
    o, w, t, i = buffer("O", 4), buffer("W", 4, scope="const"), buffer("T", 4, scope="arena"), ir.Var("i")
    table = buffer("D", 4, data=(1.0, 2.0, 3.0, float("inf")))
    body = ir.seq(ir.For(i, c(0), c(4), ir.Store(t, (i,), w[i] * table[i])),
                  ir.For(i, c(0), c(4), ir.Store(o, (i,), t[3 - i])))
    p = ir.Program("f", (o,), ir.Allocate(w, ir.Allocate(t, body, c(128)), c(64)))
    arena, consts, got = np.zeros(64, np.float32), np.arange(64, dtype=np.float32), np.zeros(4, np.float32)
    assert native(p, [got], arena=arena, consts=consts) == 0
    assert got.tolist() == [np.inf, 18 * 3, 17 * 2, 16] and arena[32:35].tolist() == [16, 34, 54]


def test_large_or_unplanned_memory_is_refused() -> None:
    o = buffer("O", 4)
    for b in (buffer("T", 1 << 20, scope="local"), buffer("T", ir.Var("n"), scope="local"), buffer("T", 4)):
        p = ir.Program("f", (o,), ir.Allocate(b, ir.Store(b, (c(0),), ir.Const(0.0, f32))))
        with pytest.raises(InternalError, match="T"):
            emit(ir.Module((p,)), get_target("native"))


def launching(tasks: ir.Expr | None, ranged: bool = False) -> ir.Module:
    """main(n, A, O): kernel(A + 2, O, n, flag) once per task: O[t] = A[t + 2] + n, a failure at t = 90."""
    n, a, o, t, m, flag = ir.Var("n"), buffer("A", 128), buffer("O", 128), ir.Var("t"), ir.Var("m"), ir.Var("b", d.boolean)
    ka, ko = buffer("A", 126), buffer("O", 128)
    work: ir.Stmt = ir.seq(ir.Assert(ir.Ne(t, c(90)), 3, 'no "ninety"\n'),
                           ir.If(flag, ir.Store(ko, (t,), ka[t] + m.cast(f32))))
    first: tuple[ir.Var, ...] = (t,)
    args: tuple[ir.Expr, ...] = (ir.Address(a, (c(2),)), ir.Address(o, (c(0),)), n, ir.Lt(c(0), n))
    if ranged:
        begin, end = ir.Var("begin"), ir.Var("end")
        work, first = ir.For(t, begin, end - begin, work), (begin, end)
    if tasks is None:
        args = (c(7), *args)
    kernel = ir.Program("kernel", (*first, ka, ko, m, flag), work, (("internal", True),))
    return ir.Module((ir.Program("main", (n, a, o), ir.seq(
        ir.Launch("kernel", args, tasks), ir.Store(o, (c(127),), ir.Const(5.0, f32)))), kernel))


@pytest.mark.parametrize("ranged", (False, True))
def test_parallel_regions(ranged: bool) -> None:
    a, o = np.arange(128, dtype=np.float32), np.zeros(128, np.float32)
    assert native(launching(c(50), ranged), [3, a, o]) == 0
    want = np.zeros(128, np.float32)
    want[:50], want[127] = np.arange(50) + 5, 5
    assert np.array_equal(o, want)


def test_regions_in_a_loop_know_its_turn() -> None:
    module, t = launching(c(50), False), ir.Var("t")
    main = module.programs[0]
    runtime = Runtime()
    a, o = np.arange(128, dtype=np.float32), np.zeros(128, np.float32)
    looped = main.replace(body=ir.For(t, c(4), c(3), main.body))
    assert native(ir.Module((looped, *module.programs[1:])), [3, a, o], runtime=runtime) == 0
    assert runtime.turns == [4, 5, 6] and o[49] == 54


def test_a_direct_launch() -> None:
    a, o = np.arange(128, dtype=np.float32), np.zeros(128, np.float32)
    assert native(launching(None), [3, a, o]) == 0
    assert o[7] == 12 and o[127] == 5 and o.sum() == 17


@pytest.mark.parametrize("ranged", (False, True))
def test_failures_reach_the_caller(ranged: bool) -> None:
    runtime = Runtime()
    a, o = np.arange(128, dtype=np.float32), np.zeros(128, np.float32)
    assert native(launching(c(100), ranged), [3, a, o], runtime=runtime) == 3
    assert runtime.failures == [(3, b'no "ninety"\n')]
    assert o[127] == 0  # nothing runs after the failed launch


def test_entry_unpacks_the_arrays_of_pointers() -> None:
    n, a, o, i = ir.Var("n"), buffer("A", ir.Var("n")), buffer("O", 4), ir.Var("i")
    a = buffer("A", n)
    p = ir.Program("net", (a, n, o), ir.For(i, c(0), n, ir.Store(o, (i,), a[i] * 2.0)), (
        ("entry", "net_entry"), ("args", (("in", 0), ("dim", 1, 0), ("out", 0)))))
    target = get_target("native")
    obj = llvm_compile.compile_object(emit(ir.Module((p,)), target), target)
    x, y, shape = np.arange(3, dtype=np.float32), np.zeros(4, np.float32), np.array([3])
    pointers = ctypes.c_void_p * 2
    with jit.load([obj]) as library:
        fn = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3)(library.address("net_entry"))
        ctx = Context()
        assert fn(ctypes.addressof(ctx), pointers(x.ctypes.data, shape.ctypes.data), pointers(y.ctypes.data, None)) == 0
    assert y.tolist() == [0, 2, 4, 0]


def test_what_no_lowering_should_leave() -> None:
    o, i = buffer("O", 4), ir.Var("i")
    store = ir.Store(o, (i,), ir.Const(0.0, f32))
    for s in (ir.For(i, c(0), c(4), store, "parallel"), ir.Block("b", (), (), ir.TRUE, store), store):
        with pytest.raises(InternalError):
            emit(ir.Module((ir.Program("f", (o,), s),)), get_target("native"))
