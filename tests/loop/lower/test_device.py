"""Lowering for devices: threads in adversarial orders compute what the schedule says; barriers are where they must be, and
nowhere else; limits are those of the target."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tilewright.core.errors import InternalError, UserError
from tilewright.core.node import Node, walk
from tilewright.core.passes import Observer, Step
from tilewright.loop.interpret import run
from tilewright.loop.ir import Allocate, Call, Evaluate, For, If, Launch, Load, Module, Program, Seq, Stmt, Store, const
from tilewright.loop.lower.barriers import explain_barriers, place_barriers
from tilewright.loop.lower.device_pipeline import device_kernels, lower_for_device
from tilewright.loop.verify import verify
from tilewright.target.presets import get_target
from tilewright.target.target import Target
from tilewright.tensor import compute as te
from tilewright.tensor.schedule.schedule import Schedule

ORDERS = ("forward", "reverse", "random")


def device() -> Target:
    return get_target("opencl")


def barriers(p: Program) -> list[Stmt]:
    return [s for s in walk(p.body) if isinstance(s, Evaluate) and isinstance(s.value, Call) and s.value.name == "barrier"]


def product(n: int = 16, vthread: bool = False) -> Schedule:
    """A product in tiles: shared operands, results in registers, strided along x."""
    a, b, k = te.placeholder((n, n), name="A"), te.placeholder((n, n), name="B"), te.reduce_axis(n, "k")
    c = te.compute((n, n), lambda i, j: te.sum(a[i, k] * b[k, j], axis=[k]), name="C")
    sch = Schedule(te.create_program("product", [a, b], [c]))
    block = sch.block("C")
    i, j, k_ = sch.loops(block)
    store = sch.cache_write(block, 0, "local")
    (i0, i1, i2), (j0, j1, j2) = sch.split(i, [None, 4, 2]), sch.split(j, [None, 2, 4])
    k0, k1 = sch.split(k_, [None, 4])
    sch.reorder(i0, j0, k0, i1, j2, k1, i2, j1)
    sch.reverse_compute_at(store, j0)
    init = sch.decompose_reduction(block, k0)
    copies = [sch.cache_read(block, name, "shared") for name in "AB"]
    for copy in copies:
        sch.compute_at(copy, k0)
    sch.bind(i0, "blockIdx.y")
    sch.bind(j0, "blockIdx.x")
    for copy in copies:
        step, y, x = sch.split(sch.fuse(*sch.loops(copy)[3:]), [None, 4, 4])
        sch.reorder(y, x, step)
        sch.bind(y, "threadIdx.y")
        sch.bind(x, "threadIdx.x")
    sch.storage_align(copies[0], 0, 0, 4, 1)
    for y, x in ((i1, j2), sch.loops(init)[2:4]):
        sch.bind(y, "threadIdx.y")
        sch.bind(x, "threadIdx.x")
    if vthread:
        sch.bind(j1, "vthread")
    _, _, ri, rj = sch.loops(store)
    (y, y2), (x1, x) = sch.split(ri, [None, 2]), sch.split(rj, [None, 4])
    sch.reorder(y, x, y2, x1)
    sch.bind(y, "threadIdx.y")
    sch.bind(x, "threadIdx.x")
    return sch


def agrees(module: Module, order: str, n: int = 16, seed: int = 0) -> bool:
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-8, 8, (n, n)).astype(np.float32) for _ in range(2))
    c = np.full((n, n), np.nan, np.float32)
    run(module, [a, b, c], order=order, seed=seed, entry="product")  # type: ignore[arg-type]
    return np.array_equal(c, a @ b)


@pytest.mark.parametrize("vthread", [False, True])
def test_a_tiled_product_in_every_order(vthread: bool) -> None:
    module = lower_for_device(product(vthread=vthread).program, device())
    verify(module, "emitted")
    (kernel,) = device_kernels(module)
    launch = module.programs[0].body
    assert isinstance(launch, Launch) and [int(e.value) for e in launch.grid] == [2, 2, 1, 4, 4, 1]  # type: ignore[attr-defined]
    assert all(agrees(module, order) for order in ORDERS)
    local = next(s.buffer for s in walk(kernel.body) if isinstance(s, Allocate) and s.buffer.scope == "local")
    assert [e.value for e in local.shape] == [2, 2]  # type: ignore[attr-defined]
    strides = {s.buffer.name: s.buffer.strides for s in walk(kernel.body) if isinstance(s, Allocate)}
    assert [e.value for e in strides["A_shared"] or ()] == [5, 1]  # type: ignore[attr-defined]


def test_every_barrier_is_needed_and_a_missing_one_is_found() -> None:
    module = lower_for_device(product().program, device())
    host, kernel = module.programs
    found = barriers(kernel)
    assert len(found) == 2  # before the tiles are overwritten, and before they are read
    for gone in range(2):
        left = iter(range(2))

        def visit(n: Node, left=left, gone=gone) -> Node:  # type: ignore[no-untyped-def]
            if isinstance(n, Evaluate) and isinstance(n.value, Call) and n.value.name == "barrier":
                return Seq(()) if next(left) == gone else n
            return n.map(visit) if isinstance(n, Stmt) else n

        broken = Module((host, kernel.replace(body=visit(kernel.body))))
        assert not all(agrees(broken, order, seed=s) for order in ORDERS for s in range(3))


def test_threads_that_part_ways_are_found() -> None:
    module = lower_for_device(product().program, device())
    host, kernel = module.programs

    def visit(n: Node) -> Node:
        if isinstance(n, For) and n.kind == "threadIdx.x":
            return n.replace(body=If(n.var < 2, n.body))
        return n.map(visit) if isinstance(n, Stmt) else n

    with pytest.raises(InternalError, match="part ways"):
        agrees(Module((host, kernel.replace(body=visit(kernel.body)))), "forward")


def pointwise(threads: int) -> Schedule:
    """Two stages in one block of threads, the second reading what the same thread wrote."""
    a = te.placeholder((4, threads), name="A")
    b = te.compute((4, threads), lambda i, j: a[i, j] + 1.0, name="B")
    sch = Schedule(te.create_program("f", [a], [te.compute((4, threads), lambda i, j: b[i, j] * 2.0, name="C")]))
    i, j = sch.loops(sch.block("C"))
    sch.compute_at(sch.block("B"), i)
    sch.bind(i, "blockIdx.x")
    sch.bind(j, "threadIdx.x")
    sch.bind(sch.loops(sch.block("B"))[-1], "threadIdx.x")
    return sch


@pytest.mark.parametrize("scope", ["shared", "local"])
def test_no_barrier_where_each_thread_reads_its_own(scope: str) -> None:
    sch = pointwise(8)
    sch.set_scope(sch.block("B"), 0, scope)
    module = lower_for_device(sch.program, device())
    (kernel,) = device_kernels(module)
    assert not barriers(kernel)
    a, c = np.arange(32, dtype=np.float32).reshape(4, 8), np.zeros((4, 8), np.float32)
    run(module, [a, c], order="reverse", entry="f")
    np.testing.assert_array_equal(c, (a + 1) * 2)


def reversed_rows(scope: str) -> Schedule:
    """A row written by its threads and read by others."""
    a = te.placeholder((4, 8), name="A")
    b = te.compute((4, 8), lambda i, j: a[i, j] + 1.0, name="B")
    sch = Schedule(te.create_program("f", [a], [te.compute((4, 8), lambda i, j: b[i, 7 - j], name="C")]))
    i, j = sch.loops(sch.block("C"))
    sch.compute_at(sch.block("B"), i)
    sch.set_scope(sch.block("B"), 0, scope)
    sch.bind(i, "blockIdx.x")
    sch.bind(j, "threadIdx.x")
    sch.bind(sch.loops(sch.block("B"))[-1], "threadIdx.x")
    return sch


def test_threads_share_only_what_is_shared() -> None:
    (kernel,) = device_kernels(lower_for_device(reversed_rows("shared").program, device()))
    assert len(barriers(kernel)) == 1
    with pytest.raises(UserError, match="kernel-local"):
        lower_for_device(reversed_rows("local").program, device())


def test_nests_become_kernels() -> None:
    a = te.placeholder((64,), name="A")
    b = te.compute((64,), lambda i: a[i] + 1.0, name="B")
    sch = Schedule(te.create_program("f", [a], [te.compute((64,), lambda i: b[63 - i], name="C")]))
    module = lower_for_device(sch.program, device())
    host, first, second = module.programs
    assert host.attr("workspaces") == 1 and len(host.params) == 3
    assert [s.callee for s in walk(host.body) if isinstance(s, Launch)] == [first.name, second.name]
    out, work = np.zeros(64, np.float32), np.zeros(64, np.float32)
    run(module, [np.arange(64, dtype=np.float32), out, work], entry="f")
    np.testing.assert_array_equal(out, np.arange(64)[::-1] + 1)


@pytest.mark.parametrize("facts, what, where", [
    ({"max_threads": 8}, "16 threads in a block; opencl has 8, 8 less", "loops ty, tx"),
    ({"max_block": (2, 256, 64)}, "4 threads along x; opencl has 2, 2 less", "loop tx"),
    ({"max_grid": (1, 65535, 65535)}, "2 blocks along x; opencl has 1, 1 less", "loop j1_0"),
    ({"shared_memory": 100}, "284 bytes of shared memory; opencl has 100, 184 less", "buffers A_shared 156, B_shared 128"),
    ({"local_memory": 12}, "16 bytes of a thread's own memory; opencl has 12, 4 less", "buffers C_local 16")])
def test_limits_name_what_is_too_large(facts: dict[str, object], what: str, where: str) -> None:
    with pytest.raises(UserError, match="kernel-limit") as error:
        lower_for_device(product().program, dataclasses.replace(device(), **facts))  # type: ignore[arg-type]
    assert error.value.message == f"product_0 wants {what}" and error.value.where == where


def single_threads(threads: int) -> Schedule:
    """A value that thread 0 makes, one that is made of it by a loop over one thread, and threads that read that."""
    a = te.placeholder((4, 8), name="A")
    b = te.compute((4,), lambda i: a[i, 0] + 1.0, name="B")
    c = te.compute((4,), lambda i: b[i] * 2.0, name="C")
    sch = Schedule(te.create_program("f", [a], [te.compute((4, 8), lambda i, j: a[i, j] * c[i], name="D")]))
    i, j = sch.loops(sch.block("D"))
    for name in "CB":
        sch.compute_at(sch.block(name), i)
        sch.set_scope(sch.block(name), 0, "shared")
    sch.bind(i, "blockIdx.x")
    sch.bind(sch.split(j, [None, threads])[1], "threadIdx.x")
    sch.bind(sch.split(sch.loops(sch.block("C"))[-1], [None, 1])[1], "threadIdx.x")
    return sch


def test_one_thread_waits_for_nobody() -> None:
    module = lower_for_device(single_threads(8).program, device())
    assert len(barriers(device_kernels(module)[0])) == 1  # before the others read
    a, d = np.arange(32, dtype=np.float32).reshape(4, 8), np.zeros((4, 8), np.float32)
    for order in ORDERS:
        run(module, [a, d], order=order, entry="f")  # type: ignore[arg-type]
        np.testing.assert_array_equal(d, a * (a[:, :1] + 1) * 2)


class _BeforeBarriers(Observer):
    def before(self, step: Step, ir: Program) -> None:
        if step.name == "place_barriers":
            self.program = ir


def test_barriers_say_what_asked_for_them() -> None:
    seen = _BeforeBarriers()
    lower_for_device(product().program, device(), [seen])
    placed, needs = explain_barriers(seen.program)
    assert len(barriers(placed)) == len(needs) == 2 and placed == place_barriers(seen.program)
    before, after = ([(type(n.earlier), type(n.later), n.later.buffer.name, [v.name for v in n.turns]) for n in found]
                     for found in needs)
    assert before == [(Load, Store, "A_shared", ["k_0"])]  # B's tile is written behind the same barrier
    assert sorted(after, key=str) == [(Store, Load, "A_shared", []), (Store, Load, "B_shared", [])]


def window() -> Module:
    """A window in shared memory, loaded by its elements' numbers: row number // 34, column number % 34."""
    a = te.placeholder((34, 34), name="A")
    b = te.compute((34, 34), lambda i, j: a[33 - i, j] * 2.0, name="B")
    sch = Schedule(te.create_program("f", [a], [te.compute((32, 32), lambda i, j: b[i, j + 2] + b[i + 2, j], name="C")]))
    sch.set_scope(sch.block("B"), 0, "shared")
    for name in "BC":
        _, y, x = sch.split(sch.fuse(*sch.loops(sch.block(name))), [None, 4, 32])
        sch.bind(y, "threadIdx.y")
        sch.bind(x, "threadIdx.x")
    one = For(te.Var("one"), te.ZERO, const(1), sch.program.body, "blockIdx.x")  # around both: one kernel
    return lower_for_device(sch.program.replace(body=one), device())


def test_threads_that_load_a_window_do_not_meet() -> None:
    module = window()
    (kernel,) = device_kernels(module)
    assert len(barriers(kernel)) == 1
    x, y = np.arange(34 * 34, dtype=np.float32).reshape(34, 34), np.zeros((32, 32), np.float32)
    for order in ORDERS:
        run(module, [x, y], order=order, entry="f")  # type: ignore[arg-type]
        np.testing.assert_array_equal(y, 2 * (x[::-1][:32, 2:] + x[::-1][2:, :32]))
