"""Reductions over the threads of a warp: rfactor, partial results in the warp, and shuffles for what adds them up."""
from __future__ import annotations

import numpy as np
import pytest

from tests.codegen.clike.test_cuda import needs_nvrtc
from tests.tensor.schedule.refusals import check, refused
from tilewright.codegen.clike import nvrtc
from tilewright.codegen.clike.languages import CUDA, HIP
from tilewright.codegen.clike.printer import print_kernels
from tilewright.core.errors import UserError
from tilewright.core.node import walk
from tilewright.loop.instructions import shuffles
from tilewright.loop.interpret import run
from tilewright.loop.ir import Allocate, Program
from tilewright.loop.lower.device_pipeline import device_kernels, lower_for_device
from tilewright.loop.tensor_intrinsics import TensorIntrinsic
from tilewright.target.presets import get_target
from tilewright.tensor import compute as te
from tilewright.tensor.schedule.schedule import Schedule

REDUCERS = {"sum": te.sum, "max": te.max, "min": te.min}


def rows(what: str, t: str, m: int = 4, n: int = 96) -> Program:
    x, k = te.placeholder((m, n), t, "X"), te.reduce_axis(n, "k")
    y = te.compute((m,), lambda i: REDUCERS[what](x[i, k], axis=[k]), name="Y")
    return te.create_program("rows", [x], [y])


def by_warps(program: Program, intrinsic: TensorIntrinsic, warps: int = 2) -> Schedule:
    """A warp per row: each thread reduces every 32nd element, shuffles do the rest."""
    sch = Schedule(program)
    total = sch.block("Y")
    i, k = sch.loops(total)
    i0, i1 = sch.split(i, [None, warps])
    step, lane = sch.split(k, [None, 32])
    part = sch.rfactor(total, lane)
    sch.set_scope(part, 0, "warp")
    sch.reorder(lane, step)
    sch.bind(i0, "blockIdx.x")
    sch.bind(i1, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
    last = sch.loops(total)[-1]
    sch.decompose_reduction(total, last)
    sch.tensorize(last, intrinsic)
    return sch


@pytest.mark.parametrize("what", REDUCERS)
def test_rows_in_every_order(what: str) -> None:
    program = rows(what, "i32")
    sch = by_warps(program, getattr(shuffles, f"WARP_{what.upper()}_I32"))
    check(sch, program)
    module = lower_for_device(sch.program, get_target("sm_80"))
    (kernel,) = device_kernels(module)
    assert not any(isinstance(s, Allocate) and s.buffer.scope == "shared" for s in walk(kernel))
    x = np.random.default_rng(0).integers(-99, 99, (4, 96)).astype(np.int32)
    for order in ("forward", "reverse", "random"):
        y = np.zeros(4, np.int32)
        run(module, [x, y], order=order, entry="rows")  # type: ignore[arg-type]
        np.testing.assert_array_equal(y, getattr(np, what)(x, axis=1))


@needs_nvrtc
@pytest.mark.parametrize("what", REDUCERS)
@pytest.mark.parametrize("t", ["f32", "i32"])
def test_sources_become_cubins(what: str, t: str) -> None:
    sch = by_warps(rows(what, t), getattr(shuffles, f"WARP_{what.upper()}_{t.upper()}"))
    source = print_kernels(device_kernels(lower_for_device(sch.program, get_target("sm_75"))), CUDA)
    assert source.count("__shfl_xor_sync") == 1 and source.count("__syncthreads") == 1  # after the sums were started
    assert nvrtc.compile_cubin(CUDA.prelude + source, "sm_75")[:4] == b"\x7fELF"


def test_hip_has_its_own_words() -> None:
    sch = by_warps(rows("sum", "f32"), shuffles.WARP_SUM_F32)
    source = print_kernels(device_kernels(lower_for_device(sch.program, get_target("gfx90a"))), HIP)
    assert "__shfl_xor(v, d, 32)" in source and "_sync" not in source.replace("__syncthreads", "")


def test_refusals() -> None:
    program = rows("sum", "f32")
    sch = by_warps(program, shuffles.WARP_SUM_F32)
    with pytest.raises(UserError, match=r"intrinsic-target.*opencl has no shuffle"):
        lower_for_device(sch.program, get_target("opencl"))
    sch = Schedule(program)
    total = sch.block("Y")
    _, lane = sch.split(sch.loops(total)[1], [None, 32])
    part = sch.rfactor(total, lane)
    last = sch.loops(total)[-1]
    sch.decompose_reduction(total, last)
    with refused(sch, "Y_rf lies in global memory, the operand p in warp"):
        sch.tensorize(last, shuffles.WARP_SUM_F32)
    sch.set_scope(part, 0, "warp")
    with refused(sch, "stands where it has max(o[0], p[k])"):
        sch.tensorize(last, shuffles.WARP_MAX_F32)


def test_a_warp_has_no_memory_of_one_thread() -> None:
    """The sum of a row would be in the registers of one thread alone."""
    x, k = te.placeholder((4, 32), "f32", "X"), te.reduce_axis(32, "k")
    s = te.compute((4,), lambda i: te.sum(x[i, k], axis=[k]), name="S")
    sch = Schedule(te.create_program("f", [x], [te.compute((4,), lambda i: s[i] * 2.0, name="Y")]))
    sch.set_scope(sch.block("S"), 0, "local")
    sch.cache_read(sch.block("S"), "X", "warp")
    last = sch.loops(sch.block("S"))[-1]
    sch.decompose_reduction(sch.block("S"), last)
    with refused(sch, "S lies in local memory, the operand o in global"):
        sch.tensorize(last, shuffles.WARP_SUM_F32)
