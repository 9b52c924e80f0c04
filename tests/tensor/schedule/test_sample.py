"""sample_tile, sample_choice: defaults, decisions from outside, what they refuse."""
from __future__ import annotations

import pytest

from tests.tensor.schedule.refusals import check, refused
from tests.tensor.schedule.schedule_operators import matmul, matmul_relu
from tilewright.core.errors import UserError
from tilewright.loop.ir import as_int
from tilewright.tensor.schedule.schedule import Schedule, replay


def tiled() -> Schedule:
    """The rule: tile i by a decision, then order by another."""
    sch = Schedule(matmul(5, 7, 6))
    i, j, k = sch.loops(sch.block("C"))
    t = sch.sample_tile(i, [1, 2, 4], default=2)
    _, inner = sch.split(i, [None, t])
    if sch.sample_choice(["inner", "outer", None], default="inner") == "outer":
        sch.reorder(k, inner)
    sch.vectorize(j)
    return sch


def test_the_default_is_taken_and_recorded() -> None:
    sch = tiled()
    assert sch.trace.decisions() == {2: 2, 4: "inner"}
    assert str(sch.trace) == """\
h0 = block('C')
h1, h2, h3 = loops(h0)
h4 = sample_tile(h1, [1, 2, 4], 2)  # decided 2
h5, h6 = split(h1, [None, h4])
sample_choice(['inner', 'outer', None], 'inner')  # decided 'inner'
vectorize(h2)"""
    check(sch, matmul(5, 7, 6))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_was_decided_is_followed_by_what_uses_it(size: int) -> None:
    sch = tiled()
    for again in (replay(sch.trace, matmul(5, 7, 6), {2: size}), replay(sch.trace.with_decision(2, size), matmul(5, 7, 6))):
        inner = again.loops(again.block("C"))[1]
        assert as_int(again.loop(inner).extent) == size
        assert again.trace.decisions()[2] == size
        check(again, matmul(5, 7, 6))
    assert sch.trace.decisions()[2] == 2  # the trace itself stays


def test_decisions_given_to_a_rule_change_what_it_does() -> None:
    sch = Schedule(matmul(5, 7, 6), {0: 3})
    assert sch.sample_choice([1, 2, 3], default=1) == 3
    sch = Schedule(matmul(5, 7, 6), {0: None})
    assert sch.sample_choice([16, None], default=16) is None
    again = replay(sch.trace, matmul(5, 7, 6))
    assert again.trace.decisions() == {0: None}


def test_a_decided_number_is_a_number() -> None:
    sch = Schedule(matmul(5, 7, 6))
    i, j, _ = sch.loops(sch.block("C"))
    t = sch.sample_tile(i, [2, 4], default=4)
    assert t == 4 and isinstance(t, int) and type(t * 2) is int
    sch.tile(i, j, t, t)
    sch.annotate(sch.block("C"), "tile", t)
    again = replay(sch.trace, matmul(5, 7, 6), {2: 2})
    assert "tile=2" in str(again.program) and "tile=4" in str(sch.program)
    check(sch, matmul(5, 7, 6))


def test_sampling_refuses() -> None:
    sch = Schedule(matmul(5, 7, 6))
    i, _, _ = sch.loops(sch.block("C"))
    with refused(sch, "3 is none of the candidates [1, 2]"):
        sch.sample_tile(i, [1, 2], default=3)
    with refused(sch, "[0, 2] is no list of positive sizes", "for i0 in"):
        sch.sample_tile(i, [0, 2], default=2)
    with refused(sch, "[] is no list of positive sizes"):
        sch.sample_tile(i, [], default=2)
    with refused(sch, "'x' is none of the candidates ['y']"):
        sch.sample_choice(["y"], default="x")
    trace = tiled().trace
    with pytest.raises(UserError, match="7 is none of the candidates"):
        replay(trace, matmul(5, 7, 6), {2: 7})
    with pytest.raises(UserError, match="instruction 3 of the trace decides nothing"):
        replay(trace, matmul(5, 7, 6), {3: 4})
    with pytest.raises(UserError, match=r"those that do: 2, 4"):
        trace.with_decision(99, 1)


def test_perfect_tiles() -> None:
    sch = Schedule(matmul(12, 7, 6))
    i, j, _ = sch.loops(sch.block("C"))
    outer, middle, inner = sch.sample_perfect_tile(i, 3, max_innermost=4)
    assert (outer, middle, inner) == (3, 1, 4)
    assert sch.sample_perfect_tile(j, 1) == [7]
    sch.split(i, [outer, middle, inner])
    assert "h4, h5, h6 = sample_perfect_tile(h1, 3, 4)  # decided (3, 1, 4)" in str(sch.trace)
    check(sch, matmul(12, 7, 6))
    again = replay(sch.trace, matmul(12, 7, 6), {2: (2, 3, 2)})
    assert [as_int(again.loop(v).extent) for v in again.loops(again.block("C"))[:3]] == [2, 3, 2]
    check(again, matmul(12, 7, 6))
    with pytest.raises(UserError, match="are not 3 factors of 12"):
        replay(sch.trace, matmul(12, 7, 6), {2: (1, 2, 6)})
    with refused(sch, "both must be positive"):
        sch.sample_perfect_tile(j, 0)
    with refused(sch, "are not 2 factors of 7"):
        sch.sample_perfect_tile(j, 2, default=[2, 4])


def test_compute_locations() -> None:
    program = matmul_relu()
    sch = Schedule(program)
    sch.compute_at(sch.block("C"), sch.sample_compute_location(sch.block("C")))
    check(sch, program)
    text = str(sch.program)
    assert text == str(program) and "# decided -1" in str(sch.trace)
    (place,) = sch.trace.decisions()
    moved = replay(sch.trace, program, {place: 0})
    assert len(moved.loops(moved.block("C"))) == 4 and len(sch.loops(sch.block("C"))) == 3
    check(moved, program)
    with pytest.raises(UserError, match="is none of the 2 loops"):
        replay(sch.trace, program, {place: 2})
    with refused(sch, "none of the 0 loops around"):
        sch.sample_compute_location(sch.block("D"), 0)
    sch = Schedule(matmul_relu())
    c = sch.block("C")
    sch.decompose_reduction(c, sch.loops(c)[0])
    with refused(sch, "C_init would initialise C again in each step of loop k"):
        sch.sample_compute_location(sch.block("C_init"), 2)
