"""reverse_compute_at: epilogues in the tiles of their producers, and what is refused."""
from __future__ import annotations

import numpy as np
import pytest

from tests.tensor.schedule.refusals import check, refused
from tests.tensor.schedule.schedule_operators import (
    arguments,
    conv2d,
    matmul_relu,
    max_pool,
    padded,
    relu,
    results,
    softmax,
)
from tilewright.core.dtype import i32
from tilewright.loop.interpret import run
from tilewright.loop.ir import Buffer, Const, Program, as_int, const
from tilewright.loop.lower.pipeline import lower
from tilewright.tensor import compute as te
from tilewright.tensor.compute import compute, create_program, if_then_else, placeholder, reduce_axis
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, find_block, loops_around


def extents(sch: Schedule, ref: BlockRef) -> list[int | None]:
    return [as_int(f.extent) for f in loops_around(sch.program, find_block(sch.program, ref))]


def convolution(channels: int, size: int, offset: int) -> Program:
    """conv + bias + relu, written into the interior of a buffer with a halo of `offset`."""
    x, w = placeholder((1, 3, size, size), "i32", "X"), placeholder((channels, 3, 3, 3), "i32", "W")
    bias = placeholder((channels,), "i32", "bias")
    p = padded(x, 1)
    ic, kh, kw = reduce_axis(3, "ic"), reduce_axis(3, "kh"), reduce_axis(3, "kw")
    c = compute((1, channels, size, size), lambda n, o, i, j: te.sum(
        p[n, ic, i + kh.var, j + kw.var] * w[o, ic, kh, kw], axis=[ic, kh, kw]), name="conv")
    y = compute((1, channels, size, size), lambda n, o, i, j: relu(c[n, o, i, j] + bias[o]), name="Y")
    if not offset:
        return create_program("conv", [x, w, bias], [y])
    out = compute((1, channels, size + 2 * offset, size + 2 * offset), lambda n, o, i, j: if_then_else(
        (i >= offset) & (i < size + offset) & (j >= offset) & (j < size + offset), y[n, o, i - offset, j - offset],
        Const(0, i32)), name="halo")
    return create_program("conv", [x, w, bias], [out])


def tiled(sch: Schedule, oc: int, oh: int, ow: int, *, early: bool) -> tuple[BlockRef, BlockRef]:
    """(n, oc_o, oh_o, ow_o | ic, kh, kw | oh_i, ow_i, oc_v) with the sum in a local tile; the epilogue comes to ow_o."""
    conv = sch.block("conv")
    store = sch.cache_write(conv, 0, "local")
    n, o, h, w, ic, kh, kw = sch.loops(conv)
    oo, ov = sch.split(o, [None, oc])
    ho, hi = sch.split(h, [None, oh])
    wo, wi = sch.split(w, [None, ow])
    sch.reorder(n, oo, ho, wo, ic, kh, kw, hi, wi, ov)
    if early:
        sch.decompose_reduction(conv, ic)
    sch.reverse_compute_at(store, wo)
    sch.reverse_compute_at(sch.block("Y"), wo)
    if not early:
        sch.decompose_reduction(conv, ic)
    return store, sch.block("Y")


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(("oc", "oh", "ow"), [(4, 2, 3), (3, 4, 4), (8, 1, 6)])
def test_epilogue_of_a_tiled_convolution(early: bool, oc: int, oh: int, ow: int) -> None:
    p = convolution(8, 6, 0)
    sch = Schedule(p)
    store, y = tiled(sch, oc, oh, ow, early=early)
    assert extents(sch, store)[4:] == extents(sch, y)[4:] == [1, min(oc, 8), min(oh, 6), min(ow, 6)]
    check(sch, p)


@pytest.mark.parametrize("layout", [False, True])
def test_interior_of_a_halo(layout: bool) -> None:
    p = convolution(8, 5, 1)
    sch = Schedule(p)
    interior, *fills = sch.decompose_padding(sch.block("halo"))
    assert len(fills) == 4
    sch.reverse_compute_inline(interior)
    if layout:
        sch.transform_layout(sch.block("Y"), "halo", lambda n, c, h, w: [n, c // 4, h, w, c % 4], allow_interface=True)
    _, y = tiled(sch, 4, 2, 3, early=True)
    assert extents(sch, y)[4:] == [1, 4, 2, 3]
    if not layout:
        check(sch, p)
    else:
        assert "halo[0, j1" in str(sch.program) and "% 4" in str(sch.program)


def test_fused_loops_above() -> None:
    """A parallel loop over channel blocks and rows: the bindings are f // E and f % E."""
    p = convolution(8, 6, 0)
    sch = Schedule(p)
    conv = sch.block("conv")
    n, o, h, w, ic, kh, kw = sch.loops(conv)
    oo, ov = sch.split(o, [None, 4])
    sch.reorder(n, oo, h, w, ic, kh, kw, ov)
    f = sch.fuse(n, oo, h)
    sch.reverse_compute_at(sch.block("Y"), f)
    sch.parallel(f)
    assert extents(sch, sch.block("Y")) == [12, 1, 4, 1, 6]
    check(sch, p)


def test_channels_in_a_blocked_buffer() -> None:
    """The sum lies in [C/4, H, W, 4]: the epilogue's channel is found again from its two digits."""
    p = convolution(8, 6, 0)
    sch = Schedule(p)
    sch.transform_layout(sch.block("conv"), "conv", lambda n, c, h, w: [n, c // 4, h, w, c % 4])
    conv = sch.block("conv")
    n, o, h, w, ic, kh, kw = sch.loops(conv)
    oo, ov = sch.split(o, [None, 4])
    sch.reorder(n, oo, h, w, ic, kh, kw, ov)
    sch.reverse_compute_at(sch.block("Y"), w)
    assert extents(sch, sch.block("Y"))[4:] == [1, 4, 1, 1]
    check(sch, p)


def test_reduction_of_whole_rows() -> None:
    p = softmax()
    sch = Schedule(p)
    sch.reverse_compute_at(sch.block("rowsum"), sch.loops(sch.block("e"))[0])
    assert extents(sch, sch.block("rowsum")) == [4, 1, 6]
    check(sch, p)


def test_refused_inside_the_reduction() -> None:
    sch = Schedule(matmul_relu())
    _, _, k = sch.loops(sch.block("C"))
    with refused(sch, "it reduces over loop k", "for k"):
        sch.reverse_compute_at(sch.block("D"), k)


def test_refused_without_a_producer() -> None:
    sch = Schedule(matmul_relu())
    with refused(sch, "produces what it reads", "block C"):
        sch.reverse_compute_at(sch.block("C"), sch.loops(sch.block("D"))[0])


def test_refused_where_a_window_is_not_complete() -> None:
    sch = Schedule(max_pool())
    with refused(sch, "may not have computed all of shift", "block pool"):
        sch.reverse_compute_at(sch.block("pool"), sch.loops(sch.block("shift"))[2])


def test_refused_where_the_rest_would_not_run() -> None:
    """The halo's border reads nothing that the convolution makes."""
    sch = Schedule(convolution(4, 5, 1))
    with refused(sch, "the rest of block halo would not be run", "block halo"):
        sch.reverse_compute_at(sch.block("halo"), sch.loops(sch.block("Y"))[2])


def test_refused_part_of_a_fused_loop() -> None:
    """Steps of 4 through rows of 6 make no boxes."""
    p = conv2d(5, 2, 3, 3, 1, 1, epilogue=True)
    sch = Schedule(p)
    loops = sch.loops(sch.block("conv"))
    f = sch.fuse(loops[2], loops[3])
    fo, _ = sch.split(f, [None, 4])
    with refused(sch, "may not have computed all of conv", "block biased"):
        sch.reverse_compute_at(sch.block("biased"), fo)


def lines(back: int) -> Program:
    """Each row of C is made of the same row of B and of one `back` rows before."""
    a = placeholder((6, 5), "i32", "A")
    b = compute((6, 5), lambda i, j: a[i, j] * const(2, i32), name="B")
    c = compute((6, 5), lambda i, j: b[i, j] + if_then_else(i >= back, b[i - back, 4 - j], const(0, i32)), name="C")
    return create_program("lines", [a], [c])


@pytest.mark.parametrize("back", [1, 2])
def test_rows_of_earlier_steps_are_there(back: int) -> None:
    program = lines(back)
    sch = Schedule(program)
    i, _ = sch.loops(sch.block("B"))
    sch.reverse_compute_at(sch.block("C"), i)
    check(sch, program)
    with refused(sch, "may touch the same elements of B"):
        sch.parallel(i)
    lowered = lower(sch.program).programs[0]
    given = [x.copy() for x in arguments(program)]
    scratch = [np.zeros([as_int(d) or 0 for d in p.shape], np.int32) for p in lowered.params[2:] if isinstance(p, Buffer)]
    run(lowered, [*given, *scratch])
    assert np.array_equal(given[1], results(program)[1])


def test_rows_of_later_steps_are_not() -> None:
    a = placeholder((6,), "i32", "A")
    b = compute((6,), lambda i: a[i] * const(2, i32), name="B")
    c = compute((6,), lambda i: b[i] + if_then_else(i < 5, b[i + 1], const(0, i32)), name="C")
    sch = Schedule(create_program("later", [a], [c]))
    with refused(sch, "block C(i0 = 0) reads B[1], which block B(i0 = 1) writes only later"):
        sch.reverse_compute_at(sch.block("C"), sch.loops(sch.block("B"))[0])


def test_a_row_within_an_inner_loop_is_not_whole() -> None:
    sch = Schedule(lines(1))
    with refused(sch, "may not have computed all of B that block C reads"):
        sch.reverse_compute_at(sch.block("C"), sch.loops(sch.block("B"))[1])


def test_producers_that_run_whole_in_each_step_are_enough() -> None:
    """The border and the inside of P are blocks of their own: each runs whole before the reader, in one step."""
    a = placeholder((3, 6), "i32", "A")
    p = compute((3, 8), lambda i, j: if_then_else((j >= 1) & (j < 7), a[i, j - 1], const(0, i32)), name="P")
    c = compute((3, 6), lambda i, j: p[i, j] + p[i, j + 2], name="C")
    d = compute((3, 6), lambda i, j: c[i, j] * const(3, i32), name="D")
    program = create_program("bordered", [a], [d])
    sch = Schedule(program)
    u = sch.add_unit_loop(sch.block("D"))
    sch.compute_at(sch.block("C"), u)
    sch.compute_at(sch.block("P"), u)
    sch.decompose_padding(sch.block("P"))
    check(sch, program)
    sch.compute_at(sch.block("C"), sch.loops(sch.block("D"))[1])
    check(sch, program)


def test_a_layout_with_free_places_hides_nothing() -> None:
    """C lies in pairs of columns, of which the last has a place that nothing is stored to."""
    a = placeholder((4, 5), "i32", "A")
    c = compute((4, 5), lambda i, j: a[i, j] * const(2, i32), name="C")
    d = compute((4, 5), lambda i, j: c[i, j] + c[i, 4 - j], name="D")
    program = create_program("pairs", [a], [d])
    sch = Schedule(program)
    sch.transform_layout(sch.block("C"), "C", lambda i, j: [i, j // 2, j % 2])
    i, j = sch.loops(sch.block("C"))
    with refused(sch, "block D(i0 = 0, j1 = 0) reads C[0, 2, 0], which block C(i0 = 0, j1 = 4) writes only later"):
        sch.reverse_compute_at(sch.block("D"), j)
    sch.reverse_compute_at(sch.block("D"), i)
    check(sch, program)
