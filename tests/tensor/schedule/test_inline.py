"""compute_inline, reverse_compute_inline: what they make, that it computes the same, what they refuse."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.tensor.schedule.refusals import body, check, check_sizes, refused
from tests.tensor.schedule.schedule_operators import (
    ZERO32,
    broadcasts,
    conv2d,
    loads_of,
    matmul_relu,
    max_pool,
    padded,
    reshapes,
    softmax,
)
from tilewright.core.dtype import i32
from tilewright.loop.ir import Program, Var, as_int, const
from tilewright.tensor import compute as te
from tilewright.tensor.compute import compute, create_program, if_then_else, placeholder, reduce_axis, select
from tilewright.tensor.schedule.schedule import Schedule


def two(first: Callable[..., Any], second: Callable[[Any], Callable[..., Any]], shape: tuple[int, ...] = (6, 4),
        middle: tuple[int, ...] | None = None, out: tuple[int, ...] | None = None) -> Program:
    """C from B from A: `first(A)(indices)` and `second(B)(indices)`."""
    a = placeholder(shape, "i32", "A")
    b = compute(middle or shape, first(a), name="B")
    c = compute(out or shape, second(b), name="C")
    return create_program("two", [a], [c])


def plus_one(a: Any) -> Any:
    return lambda i, j: a[i, j] + const(1, i32)


def doubled(b: Any) -> Any:
    return lambda i, j: b[i, j] * const(2, i32)


def inlined(program: Program, block: str = "B") -> Schedule:
    sch = Schedule(program)
    sch.compute_inline(sch.block(block))
    return sch


# ---- compute_inline ----------------------------------------------------------------------------------------------------
def test_compute_inline() -> None:
    program = two(plus_one, doubled)
    assert body(Schedule(program)) == """
alloc B: i32[6, 4]
for i0 in 0..6:
    for j1 in 0..4:
        block B(i0_1: spatial 6 = i0, j1_1: spatial 4 = j1):
            B[i0_1, j1_1] = A[i0_1, j1_1] + 1:i32
for i0_2 in 0..6:
    for j1_2 in 0..4:
        block C(i0_3: spatial 6 = i0_2, j1_3: spatial 4 = j1_2):
            C[i0_3, j1_3] = B[i0_3, j1_3] * 2:i32""".strip("\n")
    sch = inlined(program)
    assert body(sch) == """
for i0 in 0..6:
    for j1 in 0..4:
        block C(i0_1: spatial 6 = i0, j1_1: spatial 4 = j1):
            C[i0_1, j1_1] = (A[i0_1, j1_1] + 1:i32) * 2:i32""".strip("\n")
    check(sch, program)


@pytest.mark.parametrize("second", [
    lambda b: lambda i, j: b[j, i] + b[i % 4, j % 4],
    lambda b: lambda i, j: if_then_else(i > 0, b[i - 1, j], ZERO32) + b[i, 3 - j],
    lambda b: lambda i, j: select((i + j) % 2 > 0, b[i, j], b[0, 0]),
    lambda b: lambda i, j: b[i, j] * b[i, j] - b[(i * 7 + j) % 6, (i + j * 3) % 4]])
def test_inlining_where_readers_read_elsewhere(second: Any) -> None:
    program = two(lambda a: lambda i, j: a[i, j] * a[j, i] + i.cast("i32"), second, (6, 6), (6, 6), (4, 4))
    check(inlined(program), program)


def test_inlining_into_several_readers_and_into_a_reduction() -> None:
    program = max_pool()
    sch = inlined(program, "shift")
    assert loads_of(sch.program, "shift") == 0
    check(sch, program)
    program = broadcasts()
    sch = inlined(program, "s")
    check(sch, program)
    sch.compute_inline(sch.block("p"))
    assert "alloc" not in body(sch)
    check(sch, program)


def test_inlining_a_padding_into_a_convolution_that_is_scheduled() -> None:
    program = conv2d(5, 2, 3)
    sch = Schedule(program)
    loops = sch.loops(sch.block("conv"))
    sch.split(loops[2], [None, 2])
    sch.compute_inline(sch.block("pad"))
    check(sch, program)


def test_inlining_a_producer_that_has_been_moved_and_split() -> None:
    program = two(plus_one, doubled)
    sch = Schedule(program)
    i, _ = sch.loops(sch.block("C"))
    sch.split(sch.loops(sch.block("B"))[1], [None, 3])
    sch.compute_at(sch.block("B"), i)
    sch.compute_inline(sch.block("B"))
    check(sch, program)


def test_inlining_through_reshapes_and_layouts() -> None:
    program = reshapes()
    sch = inlined(program, "transposed")
    sch.compute_inline(sch.block("flat"))
    assert "alloc" not in body(sch)
    check(sch, program)
    program = two(plus_one, doubled)
    sch = Schedule(program)
    sch.transform_layout(sch.block("B"), "B", lambda i, j: [i // 2, j, i % 2])
    sch.compute_inline(sch.block("B"))
    assert body(sch) == body(inlined(program))
    check(sch, program)


@pytest.mark.parametrize("n", [1, 5, 8])
def test_inlining_with_symbolic_sizes(n: int) -> None:
    size = Var("n")
    a = placeholder((size, 4), "i32", "A")
    b = compute((size, 4), lambda i, j: a[size - 1 - i, j] + const(1, i32), name="B")
    c = compute((size,), lambda i: b[i, 3] + b[size - 1 - i, 0], name="C")
    program = create_program("reversed", [a], [c])
    check_sizes(inlined(program), program, {"n": n})


def test_compute_inline_refuses() -> None:
    sch = Schedule(matmul_relu())
    with refused(sch, "block C is not a single store without reduction", "block C("):
        sch.compute_inline(sch.block("C"))
    with refused(sch, "D is a parameter: it must be stored", "block D("):
        sch.compute_inline(sch.block("D"))
    sch = Schedule(conv2d(5, 2, 3))
    interior, *_ = sch.decompose_padding(sch.block("pad"))
    with refused(sch, "another block writes pad, too", "block pad("):
        sch.compute_inline(interior)
    with refused(sch, "the program has no block 'missing'"):
        sch.block("missing")


# ---- reverse_compute_inline --------------------------------------------------------------------------------------------
def merged(program: Program, block: str = "C") -> Schedule:
    sch = Schedule(program)
    sch.reverse_compute_inline(sch.block(block))
    return sch


def test_reverse_compute_inline() -> None:
    program = two(plus_one, doubled)
    sch = merged(program)
    assert body(sch) == """
for i0 in 0..6:
    for j1 in 0..4:
        block B(i0_1: spatial 6 = i0, j1_1: spatial 4 = j1):
            C[i0_1, j1_1] = (A[i0_1, j1_1] + 1:i32) * 2:i32""".strip("\n")
    check(sch, program)


def test_merging_a_transposition_and_an_offset() -> None:
    program = two(plus_one, lambda b: lambda i, j: b[j, i], (6, 4), None, (4, 6))
    check(merged(program), program)
    program = two(plus_one, lambda b: lambda i, j: b[i + 2, j + 1], (6, 4), None, (3, 2))
    sch = merged(program)
    assert ") if 0 <= i0_1 - 2 and i0_1 - 2 < 3 and 0 <= j1_1 - 1 and j1_1 - 1 < 2:" in body(sch)
    check(sch, program)


def test_merging_a_flattening() -> None:
    program = two(plus_one, lambda b: lambda i: b[i // 4, i % 4] * const(3, i32), (6, 4), None, (24,))
    check(merged(program), program)


def test_merging_into_a_producer_that_is_scheduled() -> None:
    program = two(plus_one, doubled)
    sch = Schedule(program)
    i, j = sch.loops(sch.block("B"))
    sch.split(j, [None, 3])
    sch.parallel(i)
    sch.reverse_compute_inline(sch.block("C"))
    check(sch, program)


def test_merging_keeps_annotations_of_both_blocks() -> None:
    sch = Schedule(two(plus_one, doubled))
    sch.annotate(sch.block("B"), "first", 1)
    sch.annotate(sch.block("C"), "second", 2)
    sch.reverse_compute_inline(sch.block("C"))
    assert 'first=1, second=2' in body(sch)


def test_merging_a_block_that_reads_two_computed_tensors() -> None:
    a, x = placeholder((6,), "i32", "A"), placeholder((6,), "i32", "X")
    p = compute((6,), lambda i: a[i] + const(1, i32), name="P")
    q = compute((6,), lambda i: x[i] * const(3, i32), name="Q")
    y = compute((6,), lambda i: p[5 - i] - q[i], name="Y")
    program = create_program("late", [a, x], [y])
    sch = Schedule(program)
    first, second = ("P", "Q") if body(sch).index("block P") < body(sch).index("block Q") else ("Q", "P")
    sch.reverse_compute_inline(sch.block("Y"))
    assert f"block {first}(" in body(sch) and f"block {second}(" in body(sch)
    check(sch, program)


@pytest.mark.parametrize("n", [1, 6])
def test_merging_with_symbolic_sizes(n: int) -> None:
    size = Var("n")
    a = placeholder((size, 3), "i32", "A")
    b = compute((size, 3), lambda i, j: a[i, j] + const(1, i32), name="B")
    c = compute((3, size), lambda i, j: b[j, i] * const(2, i32), name="C")
    program = create_program("turned", [a], [c])
    check_sizes(merged(program), program, {"n": n})


def test_reverse_compute_inline_refuses() -> None:
    sch = Schedule(matmul_relu())
    with refused(sch, "block C is not a single store without reduction", "block C("):
        sch.reverse_compute_inline(sch.block("D"))
    sch = Schedule(softmax())
    with refused(sch, "block rowmax is not a single store"):
        sch.reverse_compute_inline(sch.block("rowmax"))
    sch = Schedule(two(plus_one, doubled))
    with refused(sch, "it reads nothing that another block computes", "block B("):
        sch.reverse_compute_inline(sch.block("B"))
    sch = Schedule(broadcasts())
    with refused(sch, "has other writers or readers", "block p("):
        sch.reverse_compute_inline(sch.block("p"))
    sch = Schedule(two(plus_one, lambda b: lambda i, j: b[i, j] + b[j, i], (4, 4)))
    with refused(sch, "does not tell which instance of block C reads it", "block C("):
        sch.reverse_compute_inline(sch.block("C"))


def test_merging_refuses_a_broadcast_and_a_border() -> None:
    sch = Schedule(two(plus_one, lambda b: lambda i, j: b[i, 0], (6, 4)))
    with refused(sch, "does not tell which instance of block C reads it"):
        sch.reverse_compute_inline(sch.block("C"))
    a = placeholder((1, 2, 3, 3), "i32", "A")
    b = compute(a.shape, lambda *i: a[i] + const(1, i32), name="B")
    sch = Schedule(create_program("border", [a], [padded(b, 1)]))
    with refused(sch, "block B may not make all of B: the rest of block pad would not be run", "block pad("):
        sch.reverse_compute_inline(sch.block("pad"))


def test_merging_refuses_to_lose_an_output() -> None:
    a = placeholder((6,), "i32", "A")
    b = compute((6,), lambda i: a[i] + const(1, i32), name="B")
    c = compute((6,), lambda i: b[i] * const(2, i32), name="C")
    sch = Schedule(create_program("both", [a], [b, c]))
    with refused(sch, "B is a parameter: it must be stored"):
        sch.reverse_compute_inline(sch.block("C"))
    with refused(sch, "B is a parameter: it must be stored"):
        sch.compute_inline(sch.block("B"))


def test_a_reduction_reads_what_is_merged_into_its_producer() -> None:
    a = placeholder((4, 5), "i32", "A")
    r = reduce_axis(5)
    b = compute((4, 5), lambda i, j: a[i, j] + const(1, i32), name="B")
    c = compute((4, 5), lambda i, j: b[i, j] * const(2, i32), name="C")
    d = compute((4,), lambda i: te.sum(c[i, r], axis=[r]), name="D")
    program = create_program("chain", [a], [d])
    sch = merged(program)
    sch.compute_inline(sch.block("B"))
    assert as_int(c.shape[0]) == 4 and "alloc" not in body(sch)
    check(sch, program)
