"""Counterexamples: a refusal names an instance and an element that show what would go wrong; no legal edit has one."""
from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.tensor.schedule.random_traces import CALLS, CUTTING, forced, is_wrong, known_handles, quiet
from tests.tensor.schedule.schedule_operators import OPERATORS, results
from tilewright import te
from tilewright.core.dtype import i64
from tilewright.core.errors import TilewrightError
from tilewright.loop.ir import Program, Span, Var
from tilewright.tensor.schedule.counterexamples import counterexample
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import ScheduleError, explaining
from tilewright.tensor.schedule.trace import PRIMITIVES


def turned(n: int | Var = 8) -> Schedule:
    """C reads B from the other end."""
    a = te.placeholder((n,), name="A")
    b = te.compute((n,), lambda i: a[i] * 2.0, "B")
    return Schedule(te.create_program("turned", [a], [te.compute((n,), lambda i: b[i] + b[n - 1 - i], "C")]))


def product(n: int = 8) -> Schedule:
    """D follows a product C."""
    a, b, k = te.placeholder((n, n), name="A"), te.placeholder((n, n), name="B"), te.reduce_axis(n, "k")
    c = te.compute((n, n), lambda i, j: te.sum(a[i, k] * b[k, j], axis=[k]), "C")
    return Schedule(te.create_program("product", [a, b], [te.compute((n, n), lambda i, j: c[i, j] + 1.0, "D")]))


def two_readers() -> Schedule:
    a = te.placeholder((4, 4), name="A")
    b = te.compute((4, 4), lambda i, j: a[i, j] * 2.0, "B")
    c = te.compute((4, 4), lambda i, j: b[j, i], "C")
    return Schedule(te.create_program("readers", [a], [c, te.compute((4, 4), lambda i, j: b[i, j] + c[i, j], "D")]))


def output(n: int = 8) -> Schedule:
    """B is an output, of which C reads a half."""
    a = te.placeholder((n,), name="A")
    b = te.compute((n,), lambda i: a[i], "B")
    return Schedule(te.create_program("output", [a], [b, te.compute((n // 2,), lambda i: b[i], "C")]))


def half() -> Schedule:
    """B has fewer elements than its reader."""
    a = te.placeholder((8,), name="A")
    b = te.compute((4,), lambda i: a[i * 2], "B")
    read = lambda i: te.if_then_else(i < 4, b[te.minimum(i, 3)], 0.0)  # noqa: E731
    return Schedule(te.create_program("half", [a], [te.compute((8,), read, "C")]))


def bordered() -> Schedule:
    a = te.placeholder((8,), name="A")
    b = te.compute((8,), lambda i: te.if_then_else((i >= 1) & (i < 7), a[i], 0.0), "B")
    s = Schedule(te.create_program("bordered", [a], [te.compute((8,), lambda i: b[i] * 2.0, "C")]))
    s.decompose_padding(s.block("B"))
    return s


def started() -> Schedule:
    s = product()
    s.decompose_reduction(s.block("C"), s.loops(s.block("C"))[2])
    return s


def outer_sum() -> Schedule:
    s = product()
    i, j, k = s.loops(s.block("C"))
    s.reorder(k, i, j)
    return s


def loop(s: Schedule, block: str, k: int) -> Var:
    return s.loops(s.block(block))[k]


CASES: dict[str, tuple[Callable[[], Schedule], Callable[[Schedule], object], str]] = {
    "moved behind its reader": (
        two_readers, lambda s: s.compute_at(s.block("B"), loop(s, "D", 0)),
        "block C(i0 = 0, j1 = 0) reads B[0, 0], which block B(i0 = 0, j1 = 0) writes only later"),
    "an output in part": (output, lambda s: s.compute_at(s.block("B"), loop(s, "C", 0)), "B[4] would not be written"),
    "started again": (
        started, lambda s: s.compute_at(s.block("C_init"), loop(s, "C", 2)),
        "block C(i0 = 0, j1 = 0, k = 1) reads C[0, 0] as block C_init(i0 = 0, j1 = 0) left it, not as "
        "block C(i0 = 0, j1 = 0, k = 0) did"),
    "read before it is made": (
        turned, lambda s: s.reverse_compute_at(s.block("C"), loop(s, "B", 0)),
        "block C(i0 = 0) reads B[7], which block B(i0 = 7) writes only later"),
    "of a symbolic size": (
        lambda: turned(Var("n", i64, Span(1))), lambda s: s.reverse_compute_at(s.block("C"), loop(s, "B", 0)),
        "for n = 5, block C(i0 = 0) reads B[4], which block B(i0 = 4) writes only later"),
    "in the middle of a sum": (
        product, lambda s: s.reverse_compute_at(s.block("D"), loop(s, "C", 2)),
        "block D(i0 = 0, j1 = 0) reads C[0, 0] after 1 of the 8 steps that make it"),
    "of a large program": (
        lambda: product(1024), lambda s: s.reverse_compute_at(s.block("D"), loop(s, "C", 2)),
        "block D(i0 = 0, j1 = 0) reads C[0, 0] after 1 of the 1024 steps that make it"),
    "with the sum outside": (
        outer_sum, lambda s: s.decompose_reduction(s.block("C"), loop(s, "C", 1)),
        "block C(i0 = 0, j1 = 0, k = 1) reads C[0, 0] as block C_init(i0 = 0, j1 = 0) left it, not as "
        "block C(i0 = 0, j1 = 0, k = 0) did"),
    "a part of an input": (
        half, lambda s: s.reverse_compute_at(s.block("C"), loop(s, "B", 0)),
        "block C(i0 = 1) reads B[1], which block B(i0 = 1) writes only later"),
    "inlined in part": (
        bordered, lambda s: s.compute_inline(s.block("B")),
        "block C(i0 = 0) reads B[0], which block B_fill(i0 = 0) wrote last"),
    "by reorder": (
        lambda: Schedule(triangle()), lambda s: s.reorder(loop(s, "y", 1), loop(s, "y", 0)),
        "t = 0, i0 = 1 before t = 1, i0 = 0"),
}


def triangle() -> Program:
    """A recurrence along a diagonal."""
    h0 = te.placeholder((4,), name="h0")
    step = lambda t, h: te.compute((4,), lambda i: te.if_then_else(i < 3, h[te.minimum(i + 1, 3)], 0.0), name="y")  # noqa: E731
    return te.create_program("triangle", [h0], [te.scan(4, [h0], step, "y")])


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_names_what_would_go_wrong(name: str) -> None:
    make, edit, example = CASES[name]
    s = make()
    before = s.program
    with pytest.raises(ScheduleError) as caught:
        edit(s)
    assert caught.value.message.endswith(f": {example}"), caught.value.message
    assert s.program is before


def test_rules_do_without() -> None:
    s = turned()
    with quiet(), pytest.raises(ScheduleError) as caught:
        s.reverse_compute_at(s.block("C"), loop(s, "B", 0))
    assert "writes only later" not in caught.value.message and explaining.get()


def test_what_data_decides_has_none() -> None:
    a, at = te.placeholder((8,), name="A"), te.placeholder((8,), "i64", "at")
    b = te.compute((8,), lambda i: a[i] * 2.0, "B")
    s = Schedule(te.create_program("gather", [a, at], [te.compute((8,), lambda i: b[at[i]], "C")]))
    with pytest.raises(ScheduleError, match="may not have computed all of B that block C reads\n"):
        s.reverse_compute_at(s.block("C"), loop(s, "B", 0))


def test_counterexamples_are_wrong_and_legal_edits_have_none() -> None:
    """Over random traces: where the forced edit has one, it is wrong indeed; what was applied has none."""
    names, calls = list(OPERATORS), {**CALLS, **CUTTING}
    found = legal = 0
    for seed in range(14):
        program = OPERATORS[names[seed % len(names)]]()
        expected, rng, s = results(program), random.Random(seed), Schedule(program)
        for _ in range(12):
            name = rng.choice(["compute_at", "reverse_compute_at", "decompose_reduction", "compute_at", "split", "reorder"])
            args = calls[name][1](rng, s.program)
            if args is None:
                continue
            known_handles(s, args)
            before = s.program
            try:
                with quiet():
                    s.apply(name, *args)
                if name not in ("decompose_reduction", "split", "reorder"):
                    assert counterexample(before, s.program) == "", f"{name}\n{before}\n{s.program}"
                    legal += 1
                continue
            except ScheduleError:
                pass
            wrong = Schedule(before)
            wrong._depth = 1
            try:
                with forced():
                    PRIMITIVES.get(name)(wrong, *args)
            except TilewrightError:
                continue
            example = counterexample(before, wrong.program)
            if example:
                found += 1
                assert is_wrong(wrong.program, name, expected), f"{name}: {example}\n{before}\n{wrong.program}"
    assert found > 8 and legal > 8
