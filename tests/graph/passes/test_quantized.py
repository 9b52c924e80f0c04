"""Quantized graphs: what integer_products and dequantized_operands make of them, and which numbers are stored between
kernels. Scales are powers of two here, so that f32 is exact and results are compared bit by bit."""
from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest

import tilewright
from tests.graph.passes.passcheck import Net, counts, same
from tests.small_models import inputs, model
from tilewright.core.dtype import DType, i8, i16, i32, u8
from tilewright.frontend.onnx.importer import import_onnx
from tilewright.graph import interpret
from tilewright.graph.ir import Graph, Value
from tilewright.graph.passes.dequantized import dequantized_operands
from tilewright.graph.passes.fold import fold_constants
from tilewright.graph.passes.fuse import fuse
from tilewright.graph.passes.integer_products import integer_products
from tilewright.graph.pipeline import graph_pipeline
from tilewright.target import Target, get_target

X86, ARM = get_target("x86-64-v4"), get_target("aarch64-neon")
VNNI = dataclasses.replace(X86, intrinsics=(*X86.intrinsics, "vnni"))


class Codes(Net):
    def codes(self, *shape: int, low: int = -127, high: int = 127) -> Value:
        return self.constant(self.rng.integers(low, high + 1, shape).astype(np.int32), "w")

    def less(self, x: Value, point: int | Value | None) -> Value:
        wide = self.op("cast", x, to=i32)
        if point is None:
            return wide
        return self.op("sub", wide, self.constant(np.int32(point)) if isinstance(point, int) else point)


def product_of(graph: Graph) -> tuple[DType, DType]:
    """The types of the operands of the only product."""
    (op,) = (o for o in graph.operations if o.op in ("conv", "matmul"))
    a, b = op.inputs
    assert a is not None and b is not None
    return a.dtype, b.dtype


def bytes_of(graph: Graph, seed: int = 0) -> list[Any]:
    """Codes of the whole range."""
    rng = np.random.default_rng(seed)
    return [rng.integers(*v.dtype.range(), v.type.sizes(), endpoint=True).astype(v.dtype.numpy()) for v in graph.inputs]


def equal(before: Graph, after: Graph) -> None:
    for got, want in zip(interpret.run(after, bytes_of(before)), interpret.run(before, bytes_of(before)), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", ("u8", "i8"))
@pytest.mark.parametrize("point", (None, 0, 77))
@pytest.mark.parametrize("transpose", (False, True))
def test_zero_points_leave_products(kind: str, point: int | None, transpose: bool) -> None:
    n = Codes()
    y = n.op("matmul", n.less(n.x(3, 7, type=kind), point), n.codes(*(5, 7)[::1 if transpose else -1]), out=i32,
             transpose_b=transpose)
    graph = n.finish([n.op("add", y, n.codes(5))])
    after = integer_products(graph, X86)
    equal(graph, after)
    same(graph, after)
    assert product_of(after) == (u8, i16)  # this level has no instruction for bytes alone
    assert counts(after)["add"] <= (1 if kind == "u8" else 2)  # the bias takes the zero point's part


@pytest.mark.parametrize("kind", ("u8", "i8"))
@pytest.mark.parametrize("group", (1, 2, 4))
def test_borders_hold_the_zero_point(kind: str, group: int) -> None:
    n = Codes()
    y = n.op("conv", n.less(n.x(1, 4, 5, 6, type=kind), 9), n.codes(8, 4 // group, 3, 2), out=i32, pads=(1, 0, 2, 1),
             strides=(2, 1), dilations=(1, 2), group=group)
    graph = n.finish([y])
    after = integer_products(graph, X86)
    equal(graph, after)
    (conv,) = (o for o in after.operations if o.op == "conv")
    assert conv.attrs["fill"] == (9 if kind == "u8" else 137)


@pytest.mark.parametrize("shape, pads", [((), (0, 0, 0, 0)), ((), (1, 1, 1, 1))])
def test_zero_points_of_the_run(shape: tuple[int, ...], pads: tuple[int, ...]) -> None:
    n = Codes()
    x, z = n.x(1, 4, 5, 6, type="i8"), n.x(*shape, type="i8")
    graph = n.finish([n.op("conv", n.less(x, n.op("cast", z, to=i32)), n.codes(6, 4, 3, 3), out=i32, pads=pads)])
    after = integer_products(graph, X86)
    equal(graph, after)
    assert product_of(after) == (u8, i16)


def test_a_zero_point_per_row() -> None:
    n = Codes()
    x, z = n.x(3, 7, type="u8"), n.x(3, 1, type="u8")
    graph = n.finish([n.op("matmul", n.less(x, n.op("cast", z, to=i32)), n.codes(7, 5), out=i32)])
    after = integer_products(graph, X86)
    equal(graph, after)
    assert product_of(after) == (u8, i16)


def test_other_readers_take_the_shift_back() -> None:
    """A value that is pooled into i8 for a product and for another reader is made once, in u8."""
    n = Codes()
    x = n.op("max_pool", n.x(1, 4, 6, 6, type="i8"), kernel=(2, 2), strides=(2, 2))
    y = n.op("conv", n.less(x, -3), n.codes(4, 4, 1, 1), out=i32)
    graph = n.finish([n.op("add", y, n.less(x, None))])
    after = integer_products(graph, X86)
    equal(graph, after)
    assert product_of(after) == (u8, i16)


def test_wide_or_unknown_weights_stay() -> None:
    n = Codes()
    x = n.less(n.x(3, 7, type="u8"), 5)
    graph = n.finish([n.op("matmul", x, n.codes(7, 5, low=-40000, high=40000), out=i32)])
    assert integer_products(graph, X86) is graph


def test_small_weights_are_bytes_where_no_instruction_decides() -> None:
    n = Codes()
    graph = n.finish([n.op("matmul", n.less(n.x(3, 7, type="i8"), 5), n.codes(7, 5), out=i32)])
    after = integer_products(graph, ARM)
    equal(graph, after)
    assert product_of(after) == (i8, i8)


# ---- dequantize → operator → quantize -------------------------------------------------------------------------------
def qdq(opset: int = 17) -> onnx.ModelProto:
    """Convolutions, a pooling, a residual and a dense end, as static quantizers write them."""
    rng = np.random.default_rng(0)

    def codes(*shape: int) -> Any:
        return rng.integers(-9, 10, shape).astype(np.int8)

    def both(value: str, scale: str, zero: str) -> str:
        return f"{value}q = QuantizeLinear({value}, {scale}, {zero}) {value}d = DequantizeLinear({value}q, {scale}, {zero})"
    return model(f"""net (float[1,16,8,8] x) => (float[1,5] y) {{
        {both("x", "s", "z")}
        ud = DequantizeLinear<axis = 0>(u, su, zu) vd = DequantizeLinear<axis = 0>(v, su, zu) bd = DequantizeLinear(b, sb)
        a = Conv<pads = [1,1,1,1]>(xd, ud, bd)
        {both("a", "s", "z")}
        p = MaxPool<kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]>(ad)
        {both("p", "s", "z")}
        c = Conv<pads = [1,1,1,1]>(pd, vd)
        {both("c", "t", "z")}
        e = Add(cd, pd) r = Relu(e)
        {both("r", "t", "z")}
        f = Flatten(rd)
        wd = DequantizeLinear<axis = 0>(w, sw, zw)
        y = Gemm<transB = 1>(f, wd) }}""", opset, s=np.float32(1 / 16), t=np.float32(1 / 8), z=np.uint8(100),
                 su=(2.0 ** rng.integers(-7, -4, 16)).astype(np.float32), zu=np.zeros(16, np.int8),
                 sb=np.float32(2.0 ** -11), b=rng.integers(-900, 900, 16).astype(np.int32), u=codes(16, 16, 3, 3),
                 v=codes(16, 16, 3, 3), w=codes(5, 256), sw=(2.0 ** -rng.integers(5, 7, 5)).astype(np.float32),
                 zw=np.arange(5).astype(np.int8))


def test_products_of_dequantized_operands_are_products_of_codes() -> None:
    graph = import_onnx(qdq())
    after = fold_constants(dequantized_operands(graph, VNNI))
    same(graph, after)
    assert [op.output.dtype for op in after.operations if op.op in ("conv", "matmul")] == [i32] * 3
    (pool,) = (op for op in after.operations if op.op == "max_pool")
    assert pool.output.dtype is u8
    assert counts(after)["round"] == 4  # not behind the pooling, which changes no code


@pytest.mark.parametrize("target, exact", [(VNNI, True), (X86, False)])
def test_sums_of_floats_stay_in_strict_numerics_and_where_they_are_as_fast(target: Target, exact: bool) -> None:
    after = fold_constants(dequantized_operands(import_onnx(qdq()), target, exact))
    assert all(op.output.dtype.name == "f32" for op in after.operations if op.op in ("conv", "matmul"))


def test_devices_keep_floats() -> None:
    graph = import_onnx(qdq())
    assert dequantized_operands(graph, get_target("opencl")) is graph


def test_codes_are_what_is_stored() -> None:
    graph = graph_pipeline(VNNI, "default").run(import_onnx(qdq()))
    groups = [g for g in fuse(graph) if g.kind == "kernel"]
    stored = [v.dtype for g in groups for v in g.outputs if v not in graph.outputs]
    assert stored and set(stored) == {u8}
    assert i8 not in stored


@pytest.mark.parametrize("numerics", ("default", "strict"))
@pytest.mark.parametrize("target", ("native", "x86-64-v3"))
def test_dequantized_models_compiled(target: str, numerics: str) -> None:
    proto = qdq()
    feeds = {"x": 3 * inputs(proto)["x"]}
    (want,) = interpret.run(import_onnx(proto), list(feeds.values()))
    with tilewright.compile(proto, target=target, numerics=numerics) as made:
        assert not [k.label for k in made.kernels if "schedule_fallback" in k.record]
        np.testing.assert_array_equal(made(feeds), want)


def test_branches_read_products_and_turned_codes_of_outside() -> None:
    """The then branch gives what is computed outside, too, and the else branch reads it."""
    m = model("""g (float[5,8] y, bool c) => (z, t) { x = QuantizeLinear(y, s, p) before = MatMulInteger(x, w, p)
                 t = Transpose(x) z = If (c) <
                   then_branch = a () => (u) { u = MatMulInteger(x, w, p) },
                   else_branch = b () => (v) { v = Add(before, before) }> }""", opset=18,
              w=np.random.default_rng(0).integers(-9, 9, (8, 6)).astype(np.int8), p=np.uint8(3), s=np.float32(0.25))
    graph = import_onnx(m)
    for target in (X86, ARM, VNNI):
        after = graph_pipeline(target, "default").run(graph)
        for c in (True, False):
            feeds = {"y": np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32), "c": np.array(c)}
            for want, got in zip(interpret.run(graph, feeds), interpret.run(after, feeds), strict=True):
                np.testing.assert_array_equal(got, want)
