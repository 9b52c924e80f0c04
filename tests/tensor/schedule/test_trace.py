"""Traces: what they record, how they print, that they replay on an equal program and refuse another one."""
from __future__ import annotations

import pytest

from tests.tensor.schedule.refusals import check, refused
from tests.tensor.schedule.schedule_operators import conv2d, matmul, matmul_relu
from tilewright.core.dtype import i32
from tilewright.core.errors import UserError
from tilewright.core.node import alpha_equal
from tilewright.loop.ir import Program, Var, const
from tilewright.tensor.compute import compute, create_program, placeholder
from tilewright.tensor.schedule.schedule import Schedule, replay
from tilewright.tensor.schedule.state import BlockRef, ScheduleError


def scheduled() -> Schedule:
    """A convolution with many primitives."""
    sch = Schedule(conv2d(4, 3, 4, 3, 1, 1, epilogue=True))
    conv, relu = sch.block("conv"), sch.block("relu")
    sch.compute_inline(sch.block("biased"))
    n, o, i, j, ic, kh, kw = sch.loops(conv)
    o0, o1 = sch.split(o, [None, 2])
    i0, i1 = sch.split(i, [None, 3])
    sch.reorder(n, o0, i0, ic, kh, kw, i1, j, o1)
    sch.reverse_compute_at(relu, i0)
    sch.decompose_reduction(conv, ic)
    sch.cache_read(conv, "W", "local")
    sch.vectorize(o1)
    sch.parallel(sch.fuse(n, o0))
    sch.annotate(conv, "note", "x")
    return sch


def symbolic() -> Program:
    m, n = Var("m"), Var("n")
    a = placeholder((m, n), "i32", "A")
    return create_program("symbolic", [a], [compute((m, n), lambda i, j: a[i, j] + const(1, i32), name="C")])


def test_a_trace_replays_on_a_freshly_built_program() -> None:
    sch = scheduled()
    check(sch, conv2d(4, 3, 4, 3, 1, 1, epilogue=True))
    fresh = conv2d(4, 3, 4, 3, 1, 1, epilogue=True)
    again = replay(sch.trace, fresh)
    assert alpha_equal(again.program, sch.program)
    assert again.program.params[0] is fresh.params[0]  # no buffer of the old program
    assert str(again.program) == str(sch.program)
    assert str(again.trace) == str(sch.trace)
    assert again.trace.instructions == sch.trace.instructions


def test_a_trace_reads_like_the_calls() -> None:
    lines = str(scheduled().trace).split("\n")
    assert lines[:6] == ["h0 = block('conv')", "h1 = block('relu')", "h2 = block('biased')", "compute_inline(h2)",
                         "h3, h4, h5, h6, h7, h8, h9 = loops(h0)", "h10, h11 = split(h4, [None, 2])"]
    assert lines[-1] == "annotate(h0, 'note', 'x')"
    assert "cache_read(h0, 'W', 'local')" in str(lines)


def test_only_the_outermost_primitive_is_recorded() -> None:
    sch = Schedule(matmul(5, 7, 6))
    i, j, _ = sch.loops(sch.block("C"))
    sch.tile(i, j, 2, 2)
    assert [s.name for s in sch.trace.instructions] == ["block", "loops", "tile"]
    check(sch, matmul(5, 7, 6))


def test_symbolic_sizes_in_arguments_become_those_of_the_new_program() -> None:
    program = symbolic()
    sch = Schedule(program)
    m = program.params[2]
    assert isinstance(m, Var) and m.name == "m"
    i, _ = sch.loops(sch.block("C"))
    sch.split(i, [None, m // 2 + 1])
    assert str(sch.trace).split("\n")[-1] == "h3, h4 = split(h1, [None, m // 2 + 1])"
    fresh = symbolic()
    again = replay(sch.trace, fresh)
    assert alpha_equal(again.program, replay(sch.trace, program).program) or again.program.params[2] is fresh.params[2]
    assert str(again.program) == str(sch.program)
    with pytest.raises(UserError, match="2 symbolic sizes; matmul has 0"):
        replay(sch.trace, matmul())


def test_a_block_may_be_named_without_asking_for_it() -> None:
    sch = Schedule(matmul_relu())
    sch.annotate(BlockRef("C"), "note", 1)
    assert str(sch.trace) == "annotate('C', 'note', 1)"
    check(sch, matmul_relu())


def test_replay_refuses_what_is_not_legal_there() -> None:
    sch = Schedule(matmul(4, 4, 4))
    i, *_ = sch.loops(sch.block("C"))
    sch.split(i, [2, 2])
    with pytest.raises(ScheduleError, match="factors of 4 in all do not cover the extent 5"):
        replay(sch.trace, matmul(5, 4, 4))
    with pytest.raises(ScheduleError, match="no block 'C'"):
        replay(sch.trace, conv2d())


def test_a_wrong_name_of_a_primitive_says_what_there_is() -> None:
    sch = Schedule(matmul())
    with pytest.raises(UserError):
        sch.apply("splitt", 1)
    assert not sch.trace.instructions


def test_handles_of_another_schedule_are_refused() -> None:
    sch, other = Schedule(matmul()), Schedule(matmul())
    (i, *_) = other.loops(other.block("C"))
    with refused(sch, "is no handle that this schedule has returned"):
        sch.unroll(i)


def test_an_interrupted_primitive_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sch = Schedule(matmul())
    i, j, _ = sch.loops(sch.block("C"))
    before, count = sch.program, len(sch.trace.instructions)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sch, "reorder", stop)
    with pytest.raises(KeyboardInterrupt):
        sch.tile(i, j, 2, 2)  # both splits are done when it comes
    assert sch.program is before and len(sch.trace.instructions) == count
    monkeypatch.undo()
    sch.tile(i, j, 2, 2)
    check(sch, matmul())
