"""reindex: an operand gathered over the block's own variables; a convolution as a product."""
from __future__ import annotations

from tests.tensor.schedule.refusals import body, check, refused
from tests.tensor.schedule.schedule_operators import conv2d, matmul
from tilewright.tensor.schedule.schedule import Schedule


def test_a_convolution_as_a_product() -> None:
    sch = Schedule(conv2d())
    conv = sch.block("conv")
    gather = sch.reindex(conv, "pad", [0, 4, 2, 5, 6, 3])
    assert "pad_at[i0_3, ic_1, k2_3, kh_1, kw_1, l3_3] = pad[i0_3, ic_1, k2_3 + kh_1, l3_3 + kw_1]" in body(sch)
    check(sch, conv2d())
    sch.compute_inline(sch.block("pad"))  # borders are written while gathering
    check(sch, conv2d())
    n, o, h, w, ic, kh, kw = sch.loops(conv)
    w0, w1 = sch.split(w, [None, 4])
    sch.reorder(n, h, w0, kh, kw, o, w1, ic)
    sch.compute_at(gather, kw)
    check(sch, conv2d())


def test_a_transposed_copy() -> None:
    sch = Schedule(matmul(5, 7, 6))
    sch.reindex(sch.block("C"), "B", [1, 2])
    assert "B_at[j1_1, k_1] = B[k_1, j1_1]" in body(sch)
    check(sch, matmul(5, 7, 6))


def test_refusals() -> None:
    sch = Schedule(conv2d())
    with refused(sch, "is indexed in terms of the variables", "block conv"):
        sch.reindex(sch.block("conv"), "W", [1, 4])
    with refused(sch, "reads X under a condition", "block pad"):
        sch.reindex(sch.block("pad"), "X", [0, 1, 2, 3])
    sch = Schedule(matmul(5, 7, 6))
    sch.blockize(sch.loops(sch.block("C"))[1])
    with refused(sch, "gather before blockize", "block C"):
        sch.reindex(sch.block("C"), "A", [0])
