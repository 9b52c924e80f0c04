"""classify: what blocks compute, read from their index maps."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tilewright.core.dtype import f32
from tilewright.loop.ir import (
    TRUE,
    Block,
    Evaluate,
    Expr,
    If,
    IterVar,
    Load,
    Program,
    Seq,
    Store,
    Var,
    const,
    expr,
    maximum,
    minimum,
)
from tilewright.loop.parser import parse_program
from tilewright.tensor import compute as te
from tilewright.tensor.classify import BlockInfo, classify, linear_coefficients
from tilewright.tensor.compute import Tensor, compute, create_program, if_then_else, placeholder, reduce_axis, select
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, blocks, find_block


def info_of(*outputs: Tensor, block: str | None = None) -> BlockInfo:
    """The classification of the last block (or a named one) of the program that computes the outputs."""
    inputs: dict[Tensor, None] = {}
    stack = [t.stage for t in outputs]
    while stack:
        for t in stack.pop().inputs:  # type: ignore[union-attr]
            if t.stage is None and t.buffer.data is None:
                inputs[t] = None
            elif t.stage is not None:
                stack.append(t.stage)
    program = create_program("p", list(inputs), outputs)
    return classify(blocks(program)[-1] if block is None else find_block(program, BlockRef(block)))


def place(info: BlockInfo, axes: Sequence[IterVar]) -> list[int]:
    """Positions of axes among the block's iteration variables."""
    return [info.block.iters.index(it) for it in axes]


def tensor(*shape: int, name: str = "X") -> Tensor:
    return placeholder(shape, "f32", name)


def product(a: Callable[..., Expr], b: Callable[..., Expr], batch: int = 0) -> BlockInfo:
    """C[…, i, j] = sum over k of a(…, i, k) * b(…, k, j)."""
    k = reduce_axis(6, "k")
    dims = (3, 4)[:batch]
    return info_of(compute((*dims, 5, 7), lambda *i: te.sum(a(*i[:-1], k.var) * b(*i[:-2], k.var, i[-1]), axis=[k])))


# ---- products ----------------------------------------------------------------------------------------------------------
def test_matmul_plain_and_transposed() -> None:
    a, at, b, bt = tensor(5, 6), tensor(6, 5), tensor(6, 7, name="B"), tensor(7, 6, name="B")
    for left in (lambda i, k: a[i, k], lambda i, k: at[k, i]):
        for right in (lambda k, j: b[k, j], lambda k, j: bt[j, k]):
            info = product(left, right)
            assert info.kind == "contraction" and not info.windows and not info.is_depthwise
            assert (place(info, info.m), place(info, info.n), place(info, info.k), info.batch) == ([0], [1], [2], ())
            assert info.a is not None and info.a.buffer.name == "X" and info.b is not None and info.b.buffer.name == "B"
            assert info.extent(info.m) == 5 and info.extent(info.k) == 6 and info.flops == 2 * 5 * 7 * 6


def test_the_order_of_the_factors_does_not_matter() -> None:
    a, b, k = tensor(5, 6), tensor(6, 7, name="B"), reduce_axis(6)
    info = info_of(compute((5, 7), lambda i, j: te.sum(b[k, j] * a[i, k], axis=[k])))
    assert info.a is not None and info.a.buffer.name == "X"
    assert info.b is not None and info.b.buffer.name == "B"


def test_batched_matmul() -> None:
    a, b = tensor(3, 4, 5, 6), tensor(3, 4, 6, 7, name="B")
    info = product(lambda p, q, i, k: a[p, q, i, k], lambda p, q, k, j: b[p, q, k, j], batch=2)
    assert info.kind == "contraction"
    assert [place(info, x) for x in (info.batch, info.m, info.n, info.k)] == [[0, 1], [2], [3], [4]]


def test_a_batch_that_only_one_side_has_belongs_to_m() -> None:
    a, b = tensor(3, 5, 6), tensor(6, 7, name="B")
    info = product(lambda p, i, k: a[p, i, k], lambda p, k, j: b[k, j], batch=1)
    assert [place(info, x) for x in (info.batch, info.m, info.n, info.k)] == [[], [0, 1], [2], [3]]


def test_matrix_vector() -> None:
    a, x, k = tensor(5, 6, name="A"), tensor(6), reduce_axis(6)
    info = info_of(compute((5,), lambda i: te.sum(a[i, k] * x[k], axis=[k])))
    assert info.kind == "contraction"
    assert (place(info, info.n), place(info, info.m), place(info, info.k)) == ([0], [], [1])
    assert info.b is not None and info.b.buffer.name == "A"


def test_mixed_precision_and_guarded_operands() -> None:
    a, b, k = placeholder((5, 6), "i8", "A"), placeholder((6, 7), "i8", "B"), reduce_axis(8)
    zero = const(0, a.dtype)
    for guard in (select, if_then_else):
        info = info_of(compute((5, 7), lambda i, j, guard=guard: te.sum(  # type: ignore[misc]
            guard(k.var < 6, a[i, minimum(k.var, 5)], zero).cast("i32")
            * guard(k.var < 6, b[k, j], zero).cast("i32"), axis=[k])))
        assert info.kind == "contraction"
        assert [place(info, x) for x in (info.m, info.n, info.k)] == [[0], [1], [2]]


def test_a_guard_that_gives_something_else_than_zero_is_no_contraction() -> None:
    a, b, k = tensor(5, 6), tensor(6, 7, name="B"), reduce_axis(6)
    info = info_of(compute((5, 7), lambda i, j: te.sum(if_then_else(i > 2, a[i, k], 1.0) * b[k, j], axis=[k])))
    assert info.kind == "reduction"


def test_a_mask_of_data_is_no_guard() -> None:
    a, b, k = tensor(5, 6), tensor(6, 7, name="B"), reduce_axis(6)
    info = info_of(compute((5, 7), lambda i, j: te.sum(select(a[i, k] > 0.0, a[i, k], 0.0) * b[k, j], axis=[k])))
    assert info.kind == "reduction"


def test_an_einsum_with_several_axes_of_each_role() -> None:
    """Y[p, m0, m1, n0, n1] = sum over k0, k1 of A[p, m0, k0, m1, k1] B[k1, p, n0, k0, n1]."""
    a, b = tensor(2, 3, 4, 5, 6, name="A"), tensor(6, 2, 7, 4, 8, name="B")
    k0, k1 = reduce_axis(4, "k0"), reduce_axis(6, "k1")
    info = info_of(compute((2, 3, 5, 7, 8), lambda p, m0, m1, n0, n1: te.sum(
        a[p, m0, k0, m1, k1] * b[k1, p, n0, k0, n1], axis=[k0, k1])))
    assert info.kind == "contraction"
    assert [place(info, x) for x in (info.batch, info.m, info.n, info.k)] == [[0], [1, 2], [3, 4], [5, 6]]
    assert info.flops == 2 * 2 * 3 * 5 * 7 * 8 * 4 * 6


# ---- convolutions ------------------------------------------------------------------------------------------------------
def conv_nchw(stride: int = 1, dilation: int = 1, groups: int = 1) -> BlockInfo:
    x, w = tensor(2, 8, 11, 12), tensor(16, 8 // groups, 3, 3, name="W")
    ic, kh, kw = reduce_axis(8 // groups, "ic"), reduce_axis(3, "kh"), reduce_axis(3, "kw")
    return info_of(compute((2, 16, 4, 4), lambda n, o, i, j: te.sum(
        x[n, ic.var if groups == 1 else o // (16 // groups) * (8 // groups) + ic.var, i * stride + kh.var * dilation,
          j * stride + kw.var * dilation] * w[o, ic, kh, kw], axis=[ic, kh, kw])))


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_convolution_nchw(stride: int, dilation: int) -> None:
    """The vector axis is a place in the image: the image is the operand B, output channels are M."""
    info = conv_nchw(stride, dilation)
    assert info.kind == "contraction" and not info.is_depthwise
    assert info.a is not None and info.a.buffer.name == "W" and info.b is not None and info.b.buffer.name == "X"
    assert [place(info, x) for x in (info.batch, info.m, info.n, info.k)] == [[], [1], [0, 2, 3], [4, 5, 6]]
    iters = info.block.iters
    assert [(w.spatial, w.reduce, w.stride, w.dilation) for w in info.windows] == [
        (iters[2].var, iters[5].var, stride, dilation), (iters[3].var, iters[6].var, stride, dilation)]


def test_convolution_channels_last() -> None:
    x, w = tensor(2, 10, 10, 8), tensor(3, 3, 8, 16, name="W")
    ic, kh, kw = reduce_axis(8, "ic"), reduce_axis(3, "kh"), reduce_axis(3, "kw")
    info = info_of(compute((2, 8, 8, 16), lambda n, i, j, o: te.sum(
        x[n, i + kh.var, j + kw.var, ic] * w[kh, kw, ic, o], axis=[kh, kw, ic])))
    assert info.kind == "contraction" and not info.is_depthwise
    assert info.a is not None and info.a.buffer.name == "X" and info.b is not None and info.b.buffer.name == "W"
    assert [place(info, x) for x in (info.batch, info.m, info.n, info.k)] == [[], [0, 1, 2], [3], [4, 5, 6]]


def test_convolution_in_blocks() -> None:
    x, w = tensor(1, 2, 10, 10, 16), tensor(4, 2, 3, 3, 16, 16, name="W")
    ic, icb = reduce_axis(2, "ic"), reduce_axis(16, "icb")
    kh, kw = reduce_axis(3, "kh"), reduce_axis(3, "kw")
    info = info_of(compute((1, 4, 8, 8, 16), lambda n, o, i, j, c: te.sum(
        x[n, ic, i + kh.var, j + kw.var, icb] * w[o, ic, kh, kw, icb, c], axis=[ic, kh, kw, icb])))
    assert info.kind == "contraction"
    assert [place(info, x) for x in (info.batch, info.m, info.n, info.k)] == [[], [0, 2, 3], [1, 4], [5, 6, 7, 8]]
    assert len(info.windows) == 2


def test_grouped_convolution() -> None:
    """The output channel is in both operands, as o in the weights and as its group in the image: a batch axis."""
    info = conv_nchw(groups=4)
    assert info.kind == "contraction" and len(info.windows) == 2 and not info.is_depthwise
    assert [place(info, x) for x in (info.batch, info.m, info.n)] == [[1], [], [0, 2, 3]]


def test_depthwise_convolution() -> None:
    x, w = tensor(1, 8, 10, 10), tensor(8, 3, 3, name="W")
    kh, kw = reduce_axis(3, "kh"), reduce_axis(3, "kw")
    info = info_of(compute((1, 8, 8, 8), lambda n, c, i, j: te.sum(
        x[n, c, i + kh.var, j + kw.var] * w[c, kh, kw], axis=[kh, kw])))
    assert info.kind == "contraction" and info.is_depthwise
    assert [place(info, x) for x in (info.batch, info.m, info.n)] == [[1], [], [0, 2, 3]]
    assert info.a is not None and info.a.buffer.name == "W"


def test_depthwise_convolution_channels_last() -> None:
    x, w = tensor(1, 10, 10, 32), tensor(3, 3, 32, name="W")
    kh, kw = reduce_axis(3, "kh"), reduce_axis(3, "kw")
    info = info_of(compute((1, 8, 8, 32), lambda n, i, j, c: te.sum(
        w[kh, kw, c] * x[n, i + kh.var, j + kw.var, c], axis=[kh, kw])))
    assert info.is_depthwise
    assert [place(info, x) for x in (info.batch, info.m, info.n)] == [[3], [0, 1, 2], []]
    assert info.a is not None and info.a.buffer.name == "X" and info.b is not None and info.b.buffer.name == "W"


def test_a_padded_convolution_reads_its_padding_by_a_guard() -> None:
    x, w = tensor(1, 4, 6, 6), tensor(8, 4, 3, 3, name="W")
    ic, kh, kw = reduce_axis(4, "ic"), reduce_axis(3, "kh"), reduce_axis(3, "kw")

    def at(n: Any, c: Any, h: Any, v: Any) -> Expr:
        return if_then_else((h >= 1) & (h < 7) & (v >= 1) & (v < 7), x[n, c, h - 1, v - 1], 0.0)

    info = info_of(compute((1, 8, 6, 6), lambda n, o, i, j: te.sum(
        at(n, ic.var, i + kh.var, j + kw.var) * w[o, ic, kh, kw], axis=[ic, kh, kw])))
    assert info.kind == "contraction" and len(info.windows) == 2


# ---- other reductions --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("reduce", [te.max, te.sum, te.min])
def test_pooling(reduce: Any) -> None:
    x, kh, kw = tensor(1, 8, 10, 10), reduce_axis(2, "kh"), reduce_axis(2, "kw")
    info = info_of(compute((1, 8, 5, 5), lambda n, c, i, j: reduce(
        x[n, c, i * 2 + kh.var, j * 2 + kw.var], axis=[kh, kw])))
    assert info.kind == "window"
    assert [(w.stride, w.dilation) for w in info.windows] == [(2, 1), (2, 1)]


def test_softmax_in_stages() -> None:
    x, r, q = tensor(4, 6), reduce_axis(6), reduce_axis(6)
    m = compute((4,), lambda i: te.max(x[i, r], axis=[r]), name="m")
    e = compute((4, 6), lambda i, j: te.exp(x[i, j] - m[i]), name="e")
    s = compute((4,), lambda i: te.sum(e[i, q], axis=[q]), name="s")
    y = compute((4, 6), lambda i, j: e[i, j] / s[i], name="y")
    kinds = {b: info_of(y, block=b).kind for b in ("m", "e", "s", "y")}
    assert kinds == {"m": "reduction", "e": "elementwise", "s": "reduction", "y": "elementwise"}


def test_a_sum_of_squares_is_a_reduction_of_one_operand() -> None:
    x, r = tensor(4, 6), reduce_axis(6)
    assert info_of(compute((4,), lambda i: te.sum(x[i, r] * x[i, r], axis=[r]))).kind == "reduction"


def test_reductions_of_tuples_are_reductions_without_a_single_output() -> None:
    x, r = tensor(4, 6), reduce_axis(6)
    index, _ = compute((4,), lambda i: te.argmax(x[i, r], axis=[r]), name="best")
    info = info_of(index, block="best")
    assert info.kind == "reduction" and info.out is None


def test_a_global_reduction() -> None:
    x, r, q = tensor(4, 6), reduce_axis(4), reduce_axis(6)
    info = info_of(compute((), lambda: te.sum(x[r, q], axis=[r, q])))
    assert info.kind == "reduction" and info.flops == 24


def test_a_dot_product_has_no_m_and_no_n() -> None:
    x, y, r = tensor(6), tensor(6, name="Y"), reduce_axis(6)
    info = info_of(compute((), lambda: te.sum(x[r] * y[r], axis=[r])))
    assert info.kind == "contraction" and (info.m, info.n, info.batch) == ((), (), ())


# ---- spatial -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "shape", "f"), [
    ("elementwise", (4, 6), lambda x, v: lambda i, j: x[i, j] + 1.0),
    ("elementwise", (4, 6), lambda x, v: lambda i, j: x[i, j] * v[j]),
    ("elementwise", (4, 6), lambda x, v: lambda i, j: select(x[i, j] > 0.0, x[i, j], 0.0)),
    ("elementwise", (4, 6), lambda x, v: lambda i, j: x[0, j]),
    ("elementwise", (4, 6), lambda x, v: lambda i, j: maximum(x[i, j], expr(0.0))),
    ("elementwise", (4, 6), lambda x, v: lambda i, j: (i * 6 + j).cast("f32")),
    ("injective", (6, 4), lambda x, v: lambda i, j: x[j, i]),
    ("injective", (24,), lambda x, v: lambda i: x[i // 6, i % 6]),
    ("injective", (4, 5), lambda x, v: lambda i, j: x[i, j + 1]),
    ("injective", (4, 4), lambda x, v: lambda i, j: x[i, i]),
    ("injective", (4, 8), lambda x, v: lambda i, j: if_then_else(j < 6, x[i, j], 0.0)),
    ("injective", (4, 6), lambda x, v: lambda i, j: x[3 - i, j])])
def test_spatial_blocks(kind: str, shape: tuple[int, ...], f: Any) -> None:
    info = info_of(compute(shape, f(tensor(4, 6), tensor(6, name="V"))))
    assert info.kind == kind


def test_gather_reads_at_data() -> None:
    x, at = tensor(9, 6), placeholder((4,), "i64", "at")
    assert info_of(compute((4, 6), lambda i, j: x[at[i], j])).kind == "injective"


# ---- whatever else -----------------------------------------------------------------------------------------------------
def test_anything_else_is_opaque_and_never_an_error() -> None:
    buffer = placeholder((4,), "f32", "X").buffer
    v = Var("v")
    one = Store(buffer, (v,), const(1.0, f32))
    bodies = [Seq((one, one)), If(v < 2, one), Evaluate(Load(buffer, (v,))), Seq(()), one]
    for body in bodies:
        for kind in ("spatial", "reduce"):
            info = classify(Block("b", (IterVar(v, const(4), kind),), (Var("i"),), TRUE, body))
            assert info.kind in ("opaque", "reduction", "elementwise")
            assert info.flops == 4
    assert classify(Block("empty", (), (), TRUE, Seq(()))).kind == "opaque"


def test_an_update_that_does_not_start_or_does_not_read_itself() -> None:
    program = parse_program("""program odd(A: f32[4, 6], C: f32[4]):
    for i in 0..4:
        for k in 0..6:
            block last(v: spatial 4 = i, r: reduce 6 = k):
                C[v] = A[v, r]
    for i in 0..4:
        for k in 0..6:
            block div(v: spatial 4 = i, r: reduce 6 = k):
                C[v] = C[v] / A[v, r]
    for i in 0..4:
        for k in 0..6:
            block twice(v: spatial 4 = i, r: reduce 6 = k):
                C[v] = C[v] + C[v]
""")
    assert isinstance(program, Program)
    assert [classify(b).kind for b in blocks(program)] == ["reduction", "reduction", "reduction"]


def test_what_a_schedule_leaves_of_a_block_is_classified_alike() -> None:
    a, b, k = tensor(5, 6), tensor(6, 7, name="B"), reduce_axis(6)
    c = compute((5, 7), lambda i, j: te.sum(a[i, k] * b[k, j], axis=[k]), name="C")
    sch = Schedule(create_program("p", [a, b], [c], weights=["B"]))
    ref = sch.block("C")
    i, _, r = sch.loops(ref)
    sch.split(i, [None, 2])
    sch.transform_layout(ref, "B", lambda k, j: [j // 4, k, j % 4])
    sch.decompose_reduction(ref, r)
    info = classify(find_block(sch.program, ref))
    assert info.kind == "contraction"
    assert [place(info, x) for x in (info.m, info.n, info.k)] == [[0], [1], [2]]


def test_linear_coefficients() -> None:
    x, y = Var("x"), Var("y")
    assert linear_coefficients(x * 3 + y - 2) == {x: 3, y: 1, None: -2}
    assert linear_coefficients(const(2) * (x - y) + 4) == {x: 2, y: -2, None: 4}
    assert linear_coefficients(x - x) == {}
    assert linear_coefficients(x * y) is None
    assert linear_coefficients(x // 2) is None
