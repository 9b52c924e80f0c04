"""double_buffer, software_pipeline: what they do to programs and barriers, and what they refuse."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.codegen.clike.test_cuda import needs_nvrtc
from tests.codegen.native import same
from tests.loop.lower.test_device import ORDERS, agrees, barriers, device, product
from tests.tensor.schedule.refusals import body, check, refused
from tests.tensor.schedule.schedule_operators import conv2d, matmul
from tests.tensor.schedule.test_mma import F16, on_tensor_cores
from tests.tensor.schedule.test_mma import product as half_product
from tilewright.codegen.clike import nvrtc
from tilewright.codegen.clike.languages import CUDA
from tilewright.codegen.clike.printer import print_kernels
from tilewright.core.errors import UserError
from tilewright.core.node import Node, walk
from tilewright.loop.instructions import nvidia
from tilewright.loop.interpret import run
from tilewright.loop.ir import Call, Evaluate, For, Module, Program, Seq, Stmt, Var, as_int
from tilewright.loop.lower.device_pipeline import device_kernels, lower_for_device
from tilewright.loop.lower.pipeline import lower
from tilewright.target import get_target
from tilewright.tensor import compute as te
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef


def tiled(program: Program, names: str = "AB", k: int = 2) -> tuple[Schedule, Var, list[BlockRef]]:
    """A product whose operands are copied for each step of its reduction."""
    sch = Schedule(program)
    block = sch.block("C")
    i, j, r = sch.loops(block)
    k0, k1 = sch.split(r, [None, k])
    sch.reorder(k0, i, j, k1)
    sch.decompose_reduction(block, k0)
    copies = [sch.cache_read(block, name, "local") for name in names]
    for copy in copies:
        sch.compute_at(copy, k0)
    return sch, k0, copies


def test_two_places_in_turn() -> None:
    program = matmul(4, 4, 8)
    sch, k0, (a, b) = tiled(program)
    sch.double_buffer(a, k0)
    check(sch, program)
    assert "A_local[v1_1 // 2 % 2, v0_1, v1_1 % 2] = A[v0_1, v1_1]" in body(sch)
    sch.double_buffer(b)
    assert "B_local[v0_3 // 2 % 2" in body(sch)
    check(sch, program)


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("k", [8, 7])
def test_a_pipeline_on_the_cpu(stages: int, k: int) -> None:
    program = matmul(4, 4, k)
    sch, k0, _ = tiled(program)
    sch.software_pipeline(k0, stages)
    check(sch, program)
    rng = np.random.default_rng(0)
    args = [rng.integers(-4, 5, (m, n)).astype(np.int32) for m, n in ((4, k), (k, 4), (4, 4))]
    same(lower(sch.program, get_target()), args)


def test_only_what_is_loaded_moves_ahead() -> None:
    """The borders of a convolution are written ahead; its operand W is not copied and is read late."""
    program = conv2d(4, 6, 2, 3, 1, 1)
    sch = Schedule(program)
    block = sch.block("conv")
    n, o, h, w, ic, kh, kw = sch.loops(block)
    sch.reorder(n, ic, o, h, w, kh, kw)
    sch.decompose_reduction(block, ic)
    sch.compute_at(sch.block("pad"), ic)
    sch.software_pipeline(ic, 3)
    check(sch, program)


# ---- on a device ---------------------------------------------------------------------------------------------------------
def reduction(sch: Schedule) -> Var:
    return sch.loops(sch.block("C"))[2]


def steady(kernel: Program) -> list[Stmt]:
    """The barriers in loops."""
    return [s for f in walk(kernel.body) if isinstance(f, For) and f.kind == "serial" for s in barriers(
        kernel.replace(body=f.body))]


def test_one_barrier_per_step() -> None:
    for pipelined in (False, True):
        sch = product()
        if pipelined:
            sch.software_pipeline(reduction(sch), 2)
        else:
            for name in ("A_shared", "B_shared"):
                sch.double_buffer(sch.block(name), reduction(sch))
        module = lower_for_device(sch.program, device())
        assert all(agrees(module, order, seed=s) for order in ORDERS for s in range(2)), module
        (kernel,) = device_kernels(module)
        assert len(steady(kernel)) == 1, kernel


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_missing_barrier_is_found(pipelined: bool) -> None:
    sch = product()
    if pipelined:
        sch.software_pipeline(reduction(sch), 2)
    else:
        for name in ("A_shared", "B_shared"):
            sch.double_buffer(sch.block(name), reduction(sch))
    module = lower_for_device(sch.program, device())
    host, kernel = module.programs
    for gone in range(len(barriers(kernel))):
        left = iter(range(100))

        def visit(n: Node, left: Any = left, gone: int = gone) -> Node:
            if isinstance(n, Evaluate) and isinstance(n.value, Call) and n.value.name == "barrier":
                return Seq(()) if next(left) == gone else n
            return n.map(visit) if isinstance(n, Stmt) else n

        broken = Module((host, kernel.replace(body=visit(kernel.body))))
        assert not all(agrees(broken, order, seed=s) for order in ORDERS for s in range(3))


@pytest.mark.parametrize("stages", [2, 3])
def test_tensor_cores_behind_loads(stages: int) -> None:
    """Tiles for the next step are loaded before this one's are multiplied."""
    program = half_product(16, 16, 64, "f16")
    sch = on_tensor_cores(program, F16, (1, 2), (1, 1), 1, stages)
    module = lower_for_device(sch.program, get_target("sm_80"))
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, s).astype(np.float16) for s in ((16, 64), (64, 16)))
    for order in ORDERS:
        c = np.full((16, 16), np.nan, np.float32)
        run(module, [a, b, c], order=order, entry="product")  # type: ignore[arg-type]
        np.testing.assert_array_equal(c, a.astype(np.float32) @ b.astype(np.float32))


# ---- refusals ------------------------------------------------------------------------------------------------------------
def test_refusals() -> None:
    sch, k0, (a, _) = tiled(matmul(4, 4, 8))
    with refused(sch, "has no output 1"):
        sch.double_buffer(a, k0, 1)
    with refused(sch, "is no serial loop around block"):
        sch.double_buffer(a, sch.loops(sch.block("C"))[-1])
    with refused(sch, "C is a parameter"):
        sch.double_buffer(sch.block("C"), k0)
    with refused(sch, "9 stages are not between 2 and 8"):
        sch.software_pipeline(k0, 9)
    sch.software_pipeline(k0)
    with refused(sch, "is pipelined already"):
        sch.software_pipeline(k0)
    with refused(sch, "is pipelined: split before"):
        sch.split(k0, [None, 2])
    with refused(sch, "uses a buffer whose places are used in turn"):
        sch.reorder(*sch.loops(sch.block("C"))[:0:-1])
    with refused(sch, "uses a buffer whose places are used in turn"):
        sch.compute_at(a, sch.loops(sch.block("C"))[1])

    sch = Schedule(matmul(4, 4, 8))
    i, _, k = sch.loops(sch.block("C"))
    with refused(sch, "loads nothing that it uses alone"):
        sch.software_pipeline(k)
    copy = sch.cache_read(sch.block("C"), "A", "local")
    with refused(sch, "no serial loop holds all users of A_local"):
        sch.double_buffer(copy)
    with refused(sch, "loads nothing that it uses alone"):
        sch.software_pipeline(sch.loops(copy)[0])
    sch.compute_at(copy, i)
    sch.parallel(i)
    with refused(sch, "is parallel already"):
        sch.software_pipeline(i)


def test_windows_that_overlap_are_no_tiles() -> None:
    program = conv2d(6, 2, 2, 3, 1, 1)
    sch = Schedule(program)
    block = sch.block("conv")
    h = sch.loops(block)[2]
    n, o = sch.loops(block)[:2]
    sch.reorder(n, h, o)
    sch.compute_at(sch.block("pad"), h)
    with refused(sch, "do not use one tile of pad after another"):
        sch.double_buffer(sch.block("pad"), h)


def test_what_a_step_keeps_for_the_next() -> None:
    """A copy made once before the loop is no step's own."""
    sch = Schedule(matmul(4, 4, 8))
    block = sch.block("C")
    i, j, k = sch.loops(block)
    sch.reorder(j, i, k)
    copy = sch.cache_read(block, "B", "local")
    sch.compute_at(copy, j)
    inner = sch.loops(copy)
    with refused(sch, "is no serial loop around"):
        sch.double_buffer(copy, i)
    assert inner[0] is j


# ---- asynchronous copies -------------------------------------------------------------------------------------------------
def asynchronous(stages: int = 2) -> Schedule:
    """The tiles of a product in f16 by cp.async, 16 bytes a thread, while the tensor cores compute."""
    return on_tensor_cores(half_product(16, 16, 32 * stages, "f16"), F16, (1, 2), (1, 1), 1, stages)


@needs_nvrtc
def test_copies_arrive_before_barriers() -> None:
    module = lower_for_device(asynchronous().program, get_target("sm_80"))
    (kernel,) = device_kernels(module)
    source = print_kernels([kernel], CUDA)
    assert source.count("cp.async.cg") == 4 and "__syncthreads" in source  # of the prologue and of the steady state
    assert all("wait_all" in before.rstrip().rsplit("\n", 1)[-1] for before in source.split("__syncthreads();")[:-1])
    assert nvrtc.compile_cubin(CUDA.prelude + source, "sm_80")[:4] == b"\x7fELF"
    with pytest.raises(UserError, match=r"intrinsic-target.*sm_75 has no"):
        lower_for_device(asynchronous().program, get_target("sm_75"))


def product_is_right(module: Module, k: int, order: Any, seed: int = 0) -> bool:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, s).astype(np.float16) for s in ((16, k), (k, 16)))
    c = np.full((16, 16), np.nan, np.float32)
    run(module, [a, b, c], order=order, seed=seed, entry="product")
    return np.array_equal(c, a.astype(np.float32) @ b.astype(np.float32))


@pytest.mark.parametrize("stages", [2, 3])
def test_copies_that_arrive_late(stages: int) -> None:
    """Several steps' copies are on their way where there is room for them. A barrier or a wait that is taken away is found:
    in the last order copies arrive when they are waited for."""
    module = lower_for_device(asynchronous(stages).program, get_target("sm_80"))
    host, kernel = module.programs
    waits = [n.value.args[0] for n in walk(kernel.body) if is_call(n, "wait_copies")]
    assert {as_int(n) for n in waits} == {0, stages - 2}
    assert all(product_is_right(module, 32 * stages, order) for order in ORDERS)
    for name in ("barrier", "wait_copies", "commit_copies"):
        for gone in range(sum(is_call(n, name) for n in walk(kernel.body))):
            left = iter(range(100))

            def visit(n: Node, left: Any = left, gone: int = gone, name: str = name) -> Node:
                if is_call(n, name):
                    return Seq(()) if next(left) == gone else n
                return n.map(visit) if isinstance(n, Stmt) else n

            broken = Module((host, kernel.replace(body=visit(kernel.body))))
            found = any(not product_is_right(broken, 32 * stages, order, seed)
                        for order in ("reverse", "forward", "random") for seed in range(3))
            assert found, f"{name} {gone} may go:\n{kernel}"


def is_call(n: Node, name: str) -> bool:
    return isinstance(n, Evaluate) and isinstance(n.value, Call) and n.value.name == name


def test_a_thread_waits_for_its_own_copies() -> None:
    """Each thread reads just what it copied itself: without asynchronous copies it would not have to wait."""
    a = te.placeholder((8, 32), "f32", "A")
    program = te.create_program("f", [a], [te.compute((8, 32), lambda i, j: a[i, j] * 2.0, name="B")])
    for is_async in (False, True):
        sch = Schedule(program)
        i, j = sch.loops(sch.block("B"))
        copy = sch.cache_read(sch.block("B"), "A", "shared")
        sch.compute_at(copy, i)
        for loop in (sch.loops(copy)[2], j):
            lane, four = sch.split(loop, [8, 4])
            sch.bind(lane, "threadIdx.x")
            if loop is not j:
                sch.tensorize(four, nvidia.CP_ASYNC_F32) if is_async else sch.vectorize(four)
        sch.bind(i, "blockIdx.x")
        (kernel,) = device_kernels(lower_for_device(sch.program, get_target("sm_80")))
        assert len(barriers(kernel)) == is_async


def test_two_places_that_are_all_of_the_buffer() -> None:
    """With two tiles in all, nothing shares a place: others may use the buffer."""
    program = conv2d()  # two channels of the padded input, read by a nest of its own
    sch = Schedule(program)
    loop = sch.loops(sch.block("pad"))[1]
    sch.double_buffer(sch.block("pad"), loop)
    check(sch, program)
    assert "alloc pad: i32[2, 1, 1, 7, 8]" in str(sch.program)
    rows = Schedule(program)
    with refused(rows, "may read elements of pad that it did not write itself"):
        rows.double_buffer(rows.block("pad"), rows.loops(rows.block("pad"))[2])
