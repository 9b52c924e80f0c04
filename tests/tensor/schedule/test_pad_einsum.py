"""pad_einsum: contractions on padded axes give what they gave; padding that would change a result is refused."""
from __future__ import annotations

from tests.tensor.schedule.refusals import body, check, refused
from tests.tensor.schedule.schedule_operators import batched_matmul, conv2d, matmul
from tilewright.loop.ir import Program, as_int
from tilewright.tensor import compute as te
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import blocks


def test_a_product() -> None:
    sch = Schedule(matmul(5, 7, 6))
    copies = sch.pad_einsum(sch.block("C"), [4, 4, 4])
    assert [c.name for c in copies] == ["A_pad", "B_pad", "C_store"]
    (c,) = [b for b in blocks(sch.program) if b.name == "C"]
    assert [as_int(i.extent) for i in c.iters] == [8, 8, 8]
    check(sch, matmul(5, 7, 6))
    sch.tile(*sch.loops(sch.block("C"))[:2], 4, 4)  # no remainders
    sch.compute_inline(copies[0])
    check(sch, matmul(5, 7, 6))
    assert "if" not in body(sch).replace("guard", "")


def test_only_some_axes() -> None:
    sch = Schedule(batched_matmul())
    name = blocks(sch.program)[0].name
    copies = sch.pad_einsum(sch.block(name), [1, 4, 1, 1])
    assert len(copies) == 2, "the operand without that axis is as it was"
    check(sch, batched_matmul())


def largest(n: int = 5, k: int = 6) -> Program:
    a, r = te.placeholder((n, k), "i32", "A"), te.reduce_axis(k, "k")
    return te.create_program("f", [a], [te.compute((n,), lambda i: te.max(a[i, r], axis=[r]), name="M")])


def test_other_reducers_are_padded_with_their_identity() -> None:
    sch = Schedule(largest())
    sch.pad_einsum(sch.block("M"), [2, 4])
    check(sch, largest())
    assert "-2147483648" in body(sch)


def test_rows_are_read_again() -> None:
    """What is beyond the end is the beginning, without a condition; not along the sum, where zeros are wanted."""
    sch = Schedule(matmul(5, 8, 6))
    sch.pad_einsum(sch.block("C"), [12, 3, 4], wrap=True)
    assert "A_pad[v0_1, v1_1] = guard(v1_1 < 6, A[v0_1 % 5, v1_1], 0:i32)" in body(sch)
    check(sch, matmul(5, 8, 6))
    sch = Schedule(matmul(5, 8, 6))
    sch.pad_einsum(sch.block("C"), [12, 3, 1], wrap=True)
    assert "A_pad[v0_1, v1_1] = A[v0_1 % 5, v1_1]" in body(sch) and "guard" not in body(sch)
    check(sch, matmul(5, 8, 6))


def test_zeros_are_zeros_in_any_type() -> None:
    a, b, r = te.placeholder((5, 6), "i8", "A"), te.placeholder((6, 3), "i8", "B"), te.reduce_axis(6, "k")
    program = te.create_program("f", [a, b], [te.compute(
        (5, 3), lambda i, j: te.sum(a[i, r].cast("i32") * b[r, j].cast("i32"), axis=[r]), name="C")])
    sch = Schedule(program)
    sch.pad_einsum(sch.block("C"), [1, 1, 4])
    check(sch, program)


def test_it_refuses() -> None:
    sch = Schedule(matmul(5, 8, 6))
    c = sch.block("C")
    for multiples, why in (([4, 4], "for each of the 3 variables"), ([4, 0, 4], "positive multiple"),
                           ([1, 8, 2], "such multiples already")):
        with refused(sch, why, "block C"):
            sch.pad_einsum(c, multiples)
    i, *_ = sch.loops(c)
    sch.split(i, [None, 2])
    with refused(sch, "pad before they are split", "block C"):
        sch.pad_einsum(c, [4, 1, 1])

    sch = Schedule(conv2d())
    with refused(sch, "a padded variable must be an index by itself", "block conv"):
        sch.pad_einsum(sch.block("conv"), [1, 1, 4, 1, 1, 1, 1])
    with refused(sch, "is no reduction", "block pad"):
        sch.pad_einsum(sch.block("pad"), [1, 1, 4, 1])

    a, r = te.placeholder((5, 6), "i32", "A"), te.reduce_axis(6, "k")
    sch = Schedule(te.create_program("f", [a], [te.compute((5,), lambda i: te.sum(a[i, r] + 1, axis=[r]), name="S")]))
    with refused(sch, "only of products of operands", "block S"):
        sch.pad_einsum(sch.block("S"), [1, 4])
    sch.pad_einsum(sch.block("S"), [2, 1])  # rows beyond the end are not looked at
