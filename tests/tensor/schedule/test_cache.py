"""cache_read, cache_write, set_scope."""
from __future__ import annotations

from tests.tensor.schedule.refusals import check, refused
from tests.tensor.schedule.schedule_operators import conv2d, matmul_relu, softmax
from tilewright.loop.ir import Allocate
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import iterate


def scopes(sch: Schedule) -> dict[str, str]:
    return {s.buffer.name: s.buffer.scope for s in iterate(sch.program.body) if isinstance(s, Allocate)}


def test_cache_read_of_a_parameter_then_a_tile_of_it() -> None:
    p = matmul_relu()
    sch = Schedule(p)
    c = sch.block("C")
    copy = sch.cache_read(c, "B", "shared")
    assert scopes(sch)["B_shared"] == "shared"
    assert "B_shared[k_1, j1_1]" in str(sch.program)
    _, jo, _, _ = (*sch.tile(*sch.loops(c)[:2], 3, 4),)
    sch.compute_at(copy, jo)
    check(sch, p)


def test_cache_read_inside_shared_loops() -> None:
    p = softmax()
    sch = Schedule(p)
    y = sch.block("y")
    sch.compute_at(sch.block("rowsum"), sch.loops(y)[0])
    copy = sch.cache_read(y, "rowsum")
    assert len(sch.loops(copy)) == 2
    check(sch, p)


def test_cache_write() -> None:
    p = conv2d()
    sch = Schedule(p)
    store = sch.cache_write(sch.block("conv"), 0, "local")
    assert store.name == "conv_store" and scopes(sch)["conv_local"] == "local"
    check(sch, p)


def test_set_scope() -> None:
    p = matmul_relu()
    sch = Schedule(p)
    sch.set_scope(sch.block("C"), 0, "local")
    assert scopes(sch) == {"C": "local"}
    check(sch, p)


def test_cache_read_refused() -> None:
    sch = Schedule(matmul_relu())
    c = sch.block("C")
    with refused(sch, "no single buffer 'D'", "block C"):
        sch.cache_read(c, "D")
    with refused(sch, "no single buffer 2", "block C"):
        sch.cache_read(c, 2)
    with refused(sch, "no memory 'registers'", "block C"):
        sch.cache_read(c, 0, "registers")


def test_cache_write_refused() -> None:
    sch = Schedule(matmul_relu())
    c = sch.block("C")
    with refused(sch, "no single buffer 1", "block C"):
        sch.cache_write(c, 1)
    with refused(sch, "no memory ''", "block C"):
        sch.cache_write(c, 0, "")
    sch.decompose_reduction(c, sch.loops(c)[2])
    with refused(sch, "it updates C, which another block initialises", "block C"):
        sch.cache_write(c)


def test_set_scope_refused() -> None:
    sch = Schedule(matmul_relu())
    d = sch.block("D")
    with refused(sch, "D is a parameter", "block D"):
        sch.set_scope(d, 0, "local")
    with refused(sch, "no single buffer 3", "block D"):
        sch.set_scope(d, 3, "local")
    with refused(sch, "no memory 'L1'", "block D"):
        sch.set_scope(d, 0, "L1")


def test_copies_have_names_of_their_own() -> None:
    """Attributes of a program name buffers: storage_align of one copy is not another's."""
    p = softmax()
    sch = Schedule(p)
    for block in ("rowmax", "e"):
        sch.cache_read(sch.block(block), "X", "shared")
    assert {"X_shared", "X_shared_1"} <= set(scopes(sch))
    check(sch, p)
