"""reverse_compute_inline into a reduction: a bias becomes where its sum starts."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.tensor.schedule.refusals import check, refused
from tilewright.core.dtype import i32
from tilewright.loop.ir import Expr, Program, const, maximum, minimum
from tilewright.loop.parser import parse_program
from tilewright.tensor import compute as te
from tilewright.tensor.compute import compute, create_program, placeholder, reduce_axis
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import blocks


def summed(after: Callable[[Any, Any, Any, Any], Expr], reduce: Callable[..., Any] = te.sum) -> Program:
    """D[i, j] = after(C, bias, i, j) with C[i, j] the reduction of A[i, k] * B[k, j]."""
    a, b, bias = placeholder((4, 3), "i32", "A"), placeholder((3, 5), "i32", "B"), placeholder((5,), "i32", "bias")
    k = reduce_axis(3, "k")
    c = compute((4, 5), lambda i, j: reduce(a[i, k] * b[k, j], axis=[k]), name="C")
    d = compute((4, 5), lambda i, j: after(c, bias, i, j), name="D")
    return create_program("biased", [a, b, bias], [d])


@pytest.mark.parametrize("after", [
    lambda c, bias, i, j: c[i, j] + bias[j], lambda c, bias, i, j: bias[j] * const(2, i32) + c[i, j]])
def test_a_sum_starts_at_the_bias(after: Any) -> None:
    program = summed(after)
    sch = Schedule(program)
    sch.reverse_compute_inline(sch.block("D"))
    (block,) = blocks(sch.program)
    assert block.name == "C" and "bias" in repr(block.init) and "bias" not in repr(block.body)
    assert "alloc" not in str(sch.program)
    check(sch, program)


def test_a_maximum_starts_at_a_floor_and_the_result_may_lie_elsewhere() -> None:
    program = summed(lambda c, bias, i, j: maximum(c[i, j], bias[j]), te.max)
    sch = Schedule(program)
    sch.reverse_compute_inline(sch.block("D"))
    check(sch, program)
    a, zero = placeholder((4, 3), "i32", "A"), placeholder((6,), "i32", "start")
    k = reduce_axis(3, "k")
    c = compute((4,), lambda i: te.sum(a[i, k], axis=[k]), name="C")
    d = compute((4, 1), lambda i, j: c[i] + zero[i + 2], name="D")
    program = create_program("column", [a, zero], [d])
    sch = Schedule(program)
    sch.reverse_compute_inline(sch.block("D"))
    check(sch, program)


def test_the_merged_reduction_can_be_scheduled_on() -> None:
    program = summed(lambda c, bias, i, j: c[i, j] + bias[j])
    sch = Schedule(program)
    sch.reverse_compute_inline(sch.block("D"))
    block = sch.block("C")
    _, j, k = sch.loops(block)
    sch.reorder(k, j)
    init = sch.decompose_reduction(block, k)
    sch.vectorize(sch.loops(init)[-1])
    sch.vectorize(j)
    check(sch, program)


@pytest.mark.parametrize("reduce", [te.sum, te.max, te.min, te.prod])
def test_partial_results_of_a_merged_reduction_start_at_the_neutral_element(reduce: Any) -> None:
    step = {te.sum: lambda x, y: x + y, te.prod: lambda x, y: x * y, te.max: maximum, te.min: minimum}[reduce]
    program = summed(lambda c, bias, i, j: step(c[i, j], bias[j]), reduce)
    sch = Schedule(program)
    sch.reverse_compute_inline(sch.block("D"))
    sch.rfactor(sch.block("C"), sch.loops(sch.block("C"))[2], 0)
    check(sch, program)


@pytest.mark.parametrize("after", [
    lambda c, bias, i, j: maximum(c[i, j], bias[j]),  # another operator
    lambda c, bias, i, j: c[i, j] + c[i, j],          # itself
    lambda c, bias, i, j: maximum(c[i, j] + bias[j], const(0, i32))])
def test_other_epilogues_of_a_sum_are_refused(after: Any) -> None:
    sch = Schedule(summed(after))
    with refused(sch, "nor is its result only combined"):
        sch.reverse_compute_inline(sch.block("D"))


def test_an_update_that_has_lost_its_start_is_refused() -> None:
    sch = Schedule(summed(lambda c, bias, i, j: c[i, j] + bias[j]))
    sch.decompose_reduction(sch.block("C"), sch.loops(sch.block("C"))[2])
    with refused(sch, "block C is not a single store without reduction"):
        sch.reverse_compute_inline(sch.block("D"))


def test_a_buffer_whose_address_is_taken_stays() -> None:
    program = parse_program("""program f(A: i32[8], C: i32[8]):
    alloc B: i32[8]
    for i in 0..8:
        block B(v: spatial 8 = i):
            B[v] = A[v] + 1:i32
    for i in 0..8:
        block P(v: spatial 8 = i):
            prefetch:i32(&B[v], 3)
    for i in 0..8:
        block C(v: spatial 8 = i):
            C[v] = B[v] * 2:i32
""")
    for step, name in (("compute_inline", "B"), ("reverse_compute_inline", "C")):
        sch = Schedule(program)
        with refused(sch, "block P takes an address in B", "block P("):
            sch.apply(step, sch.block(name))
