"""distribute: loops over several statements, taken apart; what is refused because a later statement would miss something."""
from __future__ import annotations

from tests.tensor.schedule.refusals import body, check, refused
from tilewright.loop.ir import Var
from tilewright.tensor import compute as te
from tilewright.tensor.scan import scan
from tilewright.tensor.schedule.schedule import Schedule


def two_stages(n: int = 8) -> Schedule:
    """B = A + 1, C[i] = B[i] + B[i + 1]: B is computed for each i of C, so a part of it twice."""
    a = te.placeholder((n + 1,), name="A")
    b = te.compute((n + 1,), lambda i: a[i] + 1.0, "B")
    return Schedule(te.create_program("f", [a], [te.compute((n,), lambda i: b[i] + b[i + 1], "C")]))


def test_a_sum_and_what_uses_it() -> None:
    a, k = te.placeholder((8, 4), name="A"), te.reduce_axis(4, "k")
    c = te.compute((8,), lambda i: te.sum(a[i, k], axis=[k]), "C")
    original = te.create_program("f", [a], [te.compute((8,), lambda i: c[i] * 2.0, "D")])
    sch = Schedule(original)
    (i,) = sch.loops(sch.block("D"))
    sch.compute_at(sch.block("C"), i)
    sch.decompose_reduction(sch.block("C"), sch.loops(sch.block("C"))[1])
    first, second, last = sch.distribute(i)
    assert last is i and first is not second
    assert sch.loops(sch.block("D")) == [i] and sch.loops(sch.block("C_init"))[0] is first
    check(sch, original)
    assert body(sch).count("in 0..8") == 3


def test_values_that_are_computed_twice_stay() -> None:
    sch = two_stages()
    original = sch.program
    (i,) = sch.loops(sch.block("C"))
    sch.compute_at(sch.block("B"), i)
    sch.distribute(i)
    check(sch, original)


def test_it_refuses() -> None:
    sch = two_stages()
    (i,) = sch.loops(sch.block("C"))
    with refused(sch, "is a single statement", "for i0"):
        sch.distribute(i)

    # a recurrence: the first stage of a step reads what the second one of the step before wrote
    a, start = te.placeholder((8,), name="A"), te.placeholder((1,), name="start")

    def step(t: Var, h: te.Tensor) -> te.Tensor:
        g = te.compute((1,), lambda i: h[i] * 2.0, "g")
        return te.compute((1,), lambda i: g[i] + a[t], "h")  # type: ignore[no-any-return]
    sch = Schedule(te.create_program("f", [a, start], [scan(8, [start], step)]))
    with refused(sch, "block h writes scan, of which other steps"):
        sch.distribute(sch.loops(sch.block("h"))[0])

    # all steps start and update the same sum
    b, k = te.placeholder((8, 4), name="A"), te.reduce_axis(4, "k")
    c = te.compute((), lambda: te.sum(b[0, k], axis=[k]), "C")
    sch = Schedule(te.create_program("f", [b], [te.compute((8,), lambda i: c[()] * 2.0, "D")]))
    (i,) = sch.loops(sch.block("D"))
    sch.compute_at(sch.block("C"), i)
    sch.decompose_reduction(sch.block("C"), sch.loops(sch.block("C"))[-1])
    with refused(sch, "block C writes C, of which other steps"):
        sch.distribute(i)


def test_threads_keep_what_is_their_own() -> None:
    """Each thread has B of its own, of two elements that neighbours have, too: all threads' together are no one's."""
    sch = two_stages()
    (i,) = sch.loops(sch.block("C"))
    sch.compute_at(sch.block("B"), i)
    sch.set_scope(sch.block("B"), 0, "local")
    sch.bind(i, "threadIdx.x")
    with refused(sch, "may touch the same elements of B"):
        sch.distribute(i)
