"""The kernel language: what functions mean, how their blocks are scheduled, and what is said of wrong ones."""
# mypy: ignore-errors
# ruff: noqa: E741, F821, F841, UP037 (sizes are names in quotes)
from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tilewright.core.errors import UserError
from tilewright.loop.interpret import run
from tilewright.loop.ir import Program, Var
from tilewright.loop.parser import parse_program
from tilewright.loop.printer import print_program
from tilewright.loop.verify import verify
from tilewright.target.presets import get_target
from tilewright.tensor.classify import classify
from tilewright.tensor.compute import compute, create_program, placeholder
from tilewright.tensor.rules.dispatch import schedule_program
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import ScheduleError, blocks
from tilewright.tensor.script import Kernel, f32, i32, i64, kernel

RNG = np.random.default_rng(5)
WIDTH = 5
float_max = 3e38


def evaluate(program: Program, **given: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Run a program on arrays and scalars by name; sizes follow from the arrays."""
    assert verify(program) == []
    assert print_program(parse_program(print_program(program))) == print_program(program)
    run(program, given)
    return given


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


@kernel
def product(a: f32["m", "k"], b: f32["k", "n"], c: f32["m", "n"]):
    """A matrix product with a ReLU."""
    total = local(f32, m, n)
    for i, j in grid(m, n):
        total[i, j] = 0.0
        for l in range(k):
            total[i, j] += a[i, l] * b[l, j]
    for i, j in grid(m, n):
        c[i, j] = max(total[i, j], 0.0)


@kernel
def running_sum(x: f32["rows", "n"], y: f32["rows", "n"]):
    for i in parallel(rows):
        for j in range(n):
            y[i, j] = x[i, j] + (y[i, j - 1] if j > 0 else 0.0)


@kernel
def clipped(a: f32, x: f32["n"], y: f32["n"]):
    low = -a
    for i in range(n):
        v = x[i] * math.pi
        if v > a:
            y[i] = a
        elif v < low:
            y[i] = low
        else:
            y[i] = v


@kernel
def histogram(x: i64["n"], bins: i32[WIDTH]):
    for b in range(WIDTH):
        bins[b] = 0
    for i in range(n):
        bins[min(max(x[i], 0), WIDTH - 1)] += 1


@kernel
def normalized(x: f32["rows", "n"], y: f32["rows", "n"]):
    for i in range(rows):
        top = local(f32, 1)
        total = local(f32, 1)
        top[0] = -float_max
        for j in range(n):
            top[0] = max(top[0], x[i, j])
        total[0] = 0.0
        for j in range(n):
            total[0] += exp(x[i, j] - top[0])
        for j in range(n):
            y[i, j] = exp(x[i, j] - top[0]) / total[0]


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# ---- meaning -----------------------------------------------------------------------------------------------------------
def test_a_product() -> None:
    a, b = floats(3, 4), floats(4, 5)
    got = evaluate(product.program, a=a, b=b, c=np.empty((3, 5), np.float32))["c"]
    np.testing.assert_allclose(got, np.maximum(a @ b, 0), rtol=1e-5, atol=1e-6)
    assert product.__doc__ == "A matrix product with a ReLU." and product.name == "product"
    assert [type(p) for p in product.parameters.values()][3:] == [Var] * 3  # the sizes follow


def test_a_reduction_knows_its_initial_value() -> None:
    first, second = blocks(product.program)
    assert first.init is not None and [it.kind for it in first.iters] == ["spatial", "spatial", "reduce"]
    assert classify(first).kind == "contraction" and classify(second).kind == "elementwise"
    sch = schedule_program(product.program, get_target("x86-64-v3"))
    assert not sch.fallback and "vectorize" in str(sch.trace)


def test_a_recurrence_keeps_its_order() -> None:
    x = floats(3, 6)
    got = evaluate(running_sum.program, x=x, y=np.empty_like(x))["y"]
    np.testing.assert_allclose(got, np.cumsum(x, 1), rtol=1e-5)
    sch = running_sum.schedule()
    (loop,) = [v for v in sch.loops(sch.block("y")) if v.name == "j"]
    with pytest.raises(ScheduleError):
        sch.parallel(loop)


def test_conditions_and_names() -> None:
    x = floats(40)
    got = evaluate(clipped.program, a=0.7, x=x, y=np.empty_like(x))["y"]
    np.testing.assert_allclose(got, np.clip(x * np.float32(math.pi), -0.7, 0.7), rtol=1e-6)


def test_stores_at_places_that_are_data() -> None:
    x = np.array([0, 3, 3, 9, -2, 3])
    got = evaluate(histogram.program, x=x, bins=np.empty(WIDTH, np.int32))["bins"]
    assert got.tolist() == [2, 0, 0, 3, 1]
    assert dict(blocks(histogram.program)[1].attrs)["ordered"]


def test_memory_of_its_own() -> None:
    x = floats(3, 7)
    got = evaluate(normalized.program, x=x, y=np.empty_like(x))["y"]
    np.testing.assert_allclose(got, softmax(x), rtol=1e-5)


@pytest.mark.parametrize("made", (product, running_sum, clipped, histogram, normalized), ids=lambda k: k.name)
def test_default_schedules_compute_the_same(made: Kernel) -> None:
    given = {"a": 0.4 if made is clipped else floats(9, 6), "b": floats(6, 33), "c": np.zeros((9, 33), np.float32),
             "x": RNG.integers(0, 9, 37) if made is histogram else floats(37) if made is clipped else floats(5, 37),
             "y": np.zeros(37 if made is clipped else (5, 37), np.float32), "bins": np.zeros(WIDTH, np.int32)}
    given = {name: given[name] for name, p in made.parameters.items() if name in given}
    want, got = ({k: np.copy(v) for k, v in given.items()} for _ in range(2))
    run(made.program, want)
    run(schedule_program(made.program, get_target("x86-64-v3")).program, got)
    for name in given:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)


def test_primitives_apply() -> None:
    sch: Schedule = product.schedule()
    _, j, l = sch.loops(sch.block("total"))
    outer, inner = sch.split(j, [None, 4])
    sch.reorder(outer, l, inner)
    sch.vectorize(inner)
    assert [f for f in str(sch.program).splitlines() if "vectorized" in f]
    a, b = floats(3, 4), floats(4, 5)
    got = evaluate(sch.program, a=a, b=b, c=np.empty((3, 5), np.float32))["c"]
    np.testing.assert_allclose(got, np.maximum(a @ b, 0), rtol=1e-5, atol=1e-6)


def test_a_kernel_is_a_stage_among_others() -> None:
    x = placeholder((5, 37), "f32", "x")
    scaled = compute(x.shape, lambda i, j: x[i, j] * 2.0, name="scaled")
    sums = running_sum(scaled)
    again = running_sum(sums)
    out = compute(x.shape, lambda i, j: again[i, j] + 1.0, name="out")
    program = create_program("chain", [x], [out])
    a = floats(5, 37)
    want = np.cumsum(np.cumsum(a * 2, 1), 1) + 1
    got = evaluate(program, x=a, out=np.empty_like(a))["out"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    scheduled = schedule_program(program, get_target("x86-64-v3")).program
    got = evaluate(scheduled, x=a, out=np.empty_like(a))["out"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_operands_that_do_not_fit() -> None:
    for operands, word in (((placeholder((3,)),), "rank"), ((), "takes 1 operands"), ((placeholder((3, 4), "i32"),), "i32"),
                           ((2.0,), "is a buffer")):
        with pytest.raises(UserError, match=word) as caught:
            running_sum(*operands)
        assert caught.value.code == "compute-invalid"
    with pytest.raises(UserError, match="has 5"):
        product(placeholder((2, 4)), placeholder((5, 3)))
    with pytest.raises(UserError, match="scalar"):
        clipped(placeholder((2,)), placeholder((5,)))


# ---- what is refused ---------------------------------------------------------------------------------------------------
def refused(function: Any, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        kernel(function)
    text = str(caught.value)
    assert caught.value.code == "kernel-syntax" and "test_script.py:" in text and "^" in text
    for word in words:
        assert word in text, text


def test_an_index_that_may_be_outside() -> None:
    def shifted(x: f32["n"], y: f32["n"]):
        for i in range(n):
            y[i] = x[i + 1]
    refused(shifted, "may reach n", "x[i + 1]")

    def below(x: f32["n"], y: f32["n"]):
        for i in range(n):
            y[i] = x[i - 1]
    refused(below, "may be below 0")

    def gathered(x: f32["n"], at: i64["m"], y: f32["m"]):
        for i in range(m):
            y[i] = x[at[i]]
    refused(gathered, "may be below 0", "unchecked")


def test_an_index_that_is_answered_for() -> None:
    @kernel
    def gather(x: f32["n"], at: i64["m"], y: f32["m"]):
        for i in range(m):
            y[i] = x[unchecked(at[i])]
    x, at = floats(4), np.array([3, 0, 3])
    np.testing.assert_array_equal(evaluate(gather.program, x=x, at=at, y=np.empty(3, np.float32))["y"], x[at])


def test_types_that_do_not_match() -> None:
    def mixed(x: f32["n"], k: i64["n"], y: f32["n"]):
        for i in range(n):
            y[i] = x[i] * k[i]
    refused(mixed, "f32 and i64", "convert")

    def whole(k: i32["n"], y: i32["n"]):
        for i in range(n):
            y[i] = k[i] / 2
    refused(whole, "//")

    def fraction(y: i32["n"]):
        for i in range(n):
            y[i] = 0.5
    refused(fraction, "0.5 is no i32")


def test_names() -> None:
    def unknown(y: f32["n"]):
        for i in range(n):
            y[i] = nothing
    refused(unknown, "nothing is not defined")

    def twice(x: f32["n"], y: f32["n"]):
        for i in range(n):
            v = x[i]
            v = v * 2.0
            y[i] = v
    refused(twice, "one value", "local(f32, 1)")

    def stale(x: f32["n"]):
        for i in range(n):
            v = x[i]
            x[i] = 0.0
            x[i] = v + 1.0
    refused(stale, "v was read from x, which has been stored since")

    def buffer(x: f32["n"], y: f32["n"]):
        for i in range(n):
            y[i] = x
    refused(buffer, "x is a buffer")


def test_statements_and_functions() -> None:
    def forever(y: f32["n"]):
        while True:
            y[0] = 1.0
    refused(forever, "while statements are not of the kernel language")

    def empty(x: f32["n"]):
        for i in range(n):
            v = x[i]
    refused(empty, "stores nothing")

    def sine(x: f32["n"], y: f32["n"]):
        for i in range(n):
            y[i] = frobnicate(x[i])
    refused(sine, "no function frobnicate")

    def stepped(y: f32["n"]):
        for i in range(0, n, 2):
            y[i] = 0.0
    refused(stepped, "no step")

    def untyped(x, y: f32["n"]):
        for i in range(n):
            y[i] = x
    refused(untyped, "has no type")

    def plain(x: f32["n"], y: f32["n"]):
        for i in [1, 2]:
            y[i] = x[i]
    refused(plain, "a loop is over range")


def test_a_parallel_loop_must_be_one() -> None:
    with pytest.raises(ScheduleError, match="parallel"):
        @kernel
        def chained(x: f32["n"], y: f32["n"]):
            for i in parallel(n):
                y[i] = x[i] + (y[i - 1] if i > 0 else 0.0)
