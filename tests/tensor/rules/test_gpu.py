"""Default schedules of devices: which rule takes which class of operators; threads in adversarial orders compute what the
program says; every barrier is needed, and one that is taken away is found."""
from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from tests.small_models import model, weight
from tests.tensor.rules.gpu_cases import CASES, programs
from tilewright.core.node import Node, walk
from tilewright.loop.interpret import run
from tilewright.loop.ir import Allocate, Buffer, Evaluate, Module, Program, Seq, Stmt, as_int
from tilewright.loop.lower.device_pipeline import device_kernels, lower_for_device
from tilewright.loop.lower.thread_nests import is_barrier
from tilewright.loop.verify import verify
from tilewright.target.presets import get_target
from tilewright.target.target import Target
from tilewright.tensor.rules.dispatch import schedule_program
from tilewright.tensor.rules.gpu import SHARING
from tilewright.tensor.schedule.schedule import Schedule

Arrays = list[np.ndarray[Any, Any]]


def small() -> Target:
    """A device of few threads: the interpreter runs them one by one."""
    return dataclasses.replace(get_target("opencl"), max_threads=64, warp=8, cores=4)


@functools.cache
def scheduled(name: str) -> list[tuple[Program, Schedule, Module]]:
    """The programs of a case's kernels, their schedules and modules."""
    out = []
    for p in programs(CASES[name].model(), small()):
        sch = schedule_program(p, small())
        out.append((p, sch, lower_for_device(sch.program, small())))
    return out


def arrays(p: Program, span: int, seed: int = 0) -> Arrays:
    """Small whole numbers for all parameters, so that sums are exact in any order; larger ones that are
    indices, of which one is the largest."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, span if b.dtype.is_float or b.dtype.is_bool else 1000, [as_int(d) or 0 for d in b.shape]).astype(
        b.dtype.numpy()) for b in p.params if isinstance(b, Buffer)]


@functools.cache
def wanted(name: str, k: int) -> Arrays:
    """What the unscheduled program leaves in its parameters."""
    program = scheduled(name)[k][0]
    out = arrays(program, CASES[name].span)
    run(program, out)
    return out


def differs(name: str, k: int, module: Module, order: str, seed: int = 0) -> bool:
    """Whether a module, run with its threads in some order, leaves anything else in the parameters."""
    program, sch, _ = scheduled(name)[k]
    host = module.programs[0]
    given = arrays(program, CASES[name].span)
    laid_out = [packed(sch, b, x) for b, x in zip(program.params, given, strict=True)]
    count = host.attr("workspaces", 0)
    spaces = [b for b in host.params[len(host.params) - count:] if isinstance(b, Buffer)] if count else []
    scratch = [np.full([as_int(d) or 0 for d in b.shape], 99, b.dtype.numpy()) for b in spaces]
    run(module, [*laid_out, *scratch], order=order, seed=seed, entry=host.name)  # type: ignore[arg-type]
    same = [np.allclose(got, want, rtol=1e-5, atol=1e-5, equal_nan=True)
            for b, got, want in zip(program.params, laid_out, wanted(name, k), strict=True)
            if isinstance(b, Buffer) and b.name not in sch.prepacks]
    return not all(same)


def packed(sch: Schedule, b: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A parameter as the kernel wants it."""
    if b.name not in sch.prepacks:
        return x
    pack = sch.prepacks[b.name]
    made = pack.params[-1]
    assert isinstance(made, Buffer)
    out = np.zeros([as_int(d) or 0 for d in made.shape], x.dtype)
    run(pack, [x, out])
    return out


@pytest.mark.parametrize("name", CASES)
def test_each_class_has_its_rule(name: str) -> None:
    """None falls back to a simpler one unsaid: `fallback` is empty, and a thread per result is where it belongs."""
    schedules = [sch for _, sch, _ in scheduled(name)]
    assert tuple(rule.split()[0] for sch in schedules for rule in sch.rules) == CASES[name].rules
    assert not any(sch.fallback for sch in schedules)
    real = [schedule_program(p, get_target("sm_80")) for p in programs(CASES[name].model(), get_target("sm_80"))]
    assert tuple(rule.split()[0] for sch in real for rule in sch.rules) == CASES[name].rules
    assert not any(sch.fallback for sch in real)


@pytest.mark.parametrize("name", CASES)
def test_threads_in_any_order_compute_what_the_program_says(name: str) -> None:
    for k, (_, _, module) in enumerate(scheduled(name)):
        verify(module, "emitted")
        for order in ("reverse", "random"):
            assert not differs(name, k, module, order), (k, order)


def without(module: Module, kernel: int, barrier: int) -> Module:
    """The module, one barrier of a kernel left out."""
    seen = iter(range(1 << 20))

    def visit(n: Node) -> Node:
        if isinstance(n, Evaluate) and is_barrier(n):
            return Seq(()) if next(seen) == barrier else n
        return n.map(visit) if isinstance(n, Stmt) else n

    p = device_kernels(module)[kernel]
    return Module(tuple([q.replace(body=visit(q.body)) if q is p else q for q in module.programs]))


@pytest.mark.parametrize("name", CASES)
def test_no_barrier_is_needless_and_a_missing_one_is_found(name: str) -> None:
    for k, (_, _, module) in enumerate(scheduled(name)):
        for j, kernel in enumerate(device_kernels(module)):
            count = sum(1 for n in walk(kernel.body) if isinstance(n, Evaluate) and is_barrier(n))
            for gone in range(count):
                broken = without(module, j, gone)
                found = any(differs(name, k, broken, order, seed) for order, seed in
                            [("reverse", 0), ("forward", 0), *[("random", s) for s in range(6)]])
                assert found, f"barrier {gone} of {kernel.name} may go:\n{kernel}"


def test_classes_that_share_have_barriers() -> None:
    """The test above would pass on kernels without any."""
    with_barriers = {name for name in CASES for _, _, m in scheduled(name) for p in device_kernels(m)
                     if any(isinstance(n, Evaluate) and is_barrier(n) for n in walk(p.body))}
    assert {name for name, case in CASES.items() if SHARING & set(case.rules)} == with_barriers
    here = SHARING - {"tensor_cores"}  # those of CUDA: test_gpu_tensor_cores.py
    assert {rule for case in CASES.values() for rule in case.rules} == here | {"chains", "updates", "results"}


def test_sums_of_a_tile_are_in_registers() -> None:
    """Local arrays are indexed by constants alone: a compiler keeps their elements in registers."""
    for name in ("matmul", "convolution", "depthwise convolution"):
        for _, _, module in scheduled(name):
            for p in device_kernels(module):
                local = {n.buffer for n in walk(p.body) if isinstance(n, Allocate) and n.buffer.scope == "local"}
                touched = [i for n in walk(p.body) if getattr(n, "buffer", None) in local
                           for i in getattr(n, "indices", ())]
                assert touched and all(as_int(i) is not None for i in touched)


def test_windows_take_fewer_results_where_shared_memory_is_short() -> None:
    """Tiles of four results of a thread along y are 65² numbers here: more than WebGPU's 16 KiB."""
    m = model("f (float[1,64,112,112] x) => (float[1,64,56,56] y) { y = MaxPool<kernel_shape=[3,3], strides=[2,2], "
              "pads=[1,1,1,1]>(x) }")
    for target in ("webgpu", "opencl"):
        (sch,) = [schedule_program(p, get_target(target)) for p in programs(m, get_target(target))]
        assert sch.rules == ("windows max_pool",) and not sch.fallback


@pytest.mark.parametrize("inputs, conv, weights", [
    ("2,96,13,13", "strides=[3,3], pads=[1,1,1,1]", (255, 96, 3, 3)), ("4,64,171", "pads=[3,3]", (64, 64, 7)),
    ("4,96,28,28", "strides=[2,2], pads=[3,3,3,3]", (255, 96, 7, 7)), ("1,3,224,224", "strides=[16,16]", (768, 3, 16, 16)),
    ("1,3,224,224", "strides=[4,4], pads=[2,2,2,2]", (64, 3, 11, 11))])
def test_convolutions_find_tiles_that_fit(inputs: str, conv: str, weights: tuple[int, ...]) -> None:
    """Several images, sums in parts, wide windows, little shared memory: none is left to a thread per result."""
    m = model(f"f (float[{inputs}] x) => (y) {{ y = Conv<{conv}>(x, w) }}", w=weight(*weights))
    for target in ("webgpu", "sm_75", "sm_80"):
        for p in programs(m, get_target(target)):
            sch = schedule_program(p, get_target(target))
            assert sch.rules == ("tiles conv",) and not sch.fallback, (target, sch.rules, sch.fallback)
