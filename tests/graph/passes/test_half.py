"""Arithmetic on half floats in f32: where casts stand, that nothing but the order of sums changes, and what stays half."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graph.passes.passcheck import Net, data, names
from tilewright.graph import interpret
from tilewright.graph.ir import Graph, Value
from tilewright.graph.passes.dce import remove_dead
from tilewright.graph.passes.half import widen_half
from tilewright.graph.pipeline import graph_pipeline
from tilewright.loop.ir import Var
from tilewright.target import get_target


def widened(g: Graph) -> Graph:
    """The graph after the pass gives exactly the same results, where no sum has another order."""
    after = remove_dead(widen_half(g))
    for want, got in zip(interpret.run(g, data(g)), interpret.run(after, data(g)), strict=True):
        assert want.dtype == got.dtype
        np.testing.assert_array_equal(got.view(np.uint16) if got.itemsize == 2 else got,
                                      want.view(np.uint16) if want.itemsize == 2 else want)
    return after


def arithmetic(g: Graph) -> list[tuple[str, str]]:
    return [(op.op, op.output.dtype.name) for op in g.operations if op.op != "cast"]


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_each_operation_rounds(half: str) -> None:
    b = Net()
    x, y = b.x(3, 5, type=half), b.x(3, 5, type=half)
    after = widened(b.finish([b.op("div", b.op("exp", b.op("mul", x, y)), b.op("sub", x, y))]))
    assert arithmetic(after) == [("mul", "f32"), ("exp", "f32"), ("sub", "f32"), ("div", "f32")]
    assert names(after).count("cast") == 2 + 3 * 2 + 1  # of both inputs once, down and up again behind three, the result


def test_choices_and_moves_need_no_rounding() -> None:
    b = Net()
    y = b.op("relu", b.op("add", b.x(3, 4, type="f16"), b.x(3, 4, type="f16")))
    y = b.op("transpose", b.reshape(y, (2, 6)), perm=(1, 0))
    after = widened(b.finish([b.op("add", y, y)]))
    assert names(after) == ["cast", "cast", "add", "cast", "cast", "relu", "reshape", "transpose", "add", "cast"]


def test_what_is_only_moved_stays_half() -> None:
    b = Net()
    past, new = b.x(2, 7, 4, type="f16"), b.x(2, 1, 4, type="f16")
    present = b.op("concat", past, b.op("neg", new), axis=1)
    after = widened(b.finish([present, b.op("reduce_max", present, axes=(1,))]))
    assert arithmetic(after) == [("neg", "f32"), ("concat", "f16"), ("reduce_max", "f32")]


def test_weights_are_widened_and_bits_are_not() -> None:
    b = Net()
    w = b.constant(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float16), "w")
    y = b.op("matmul", b.x(2, 4, type="f16"), w)
    g = b.finish([y, b.op("bit_cast", y, to="u16"), b.op("isnan", y)])
    after = remove_dead(widen_half(g))
    product = next(op for op in after.operations if op.op == "matmul")
    assert [v.dtype.name for v in product.inputs if v is not None] == ["f32", "f32"] and product.inputs[1].is_constant
    assert [v.dtype.name for v in after.outputs] == ["f16", "u16", "bool"]
    for want, got in zip(interpret.run(g, data(g)), interpret.run(after, data(g)), strict=True):
        assert np.abs(got.astype(np.float32) - want.astype(np.float32)).max() <= (2e-3 if got.dtype == np.float16 else 1)


@pytest.mark.parametrize("rows,reader,first", [
    (1, "matmul", "widen_weights"), (Var("n"), "matmul", "widen_weights"), (128, "matmul", "matmul"),
    (1, "gather too", "matmul")])
def test_large_weights_of_products_with_few_rows_stay_half(rows: Any, reader: str, first: str) -> None:
    b = Net()
    w = b.constant(np.random.default_rng(0).standard_normal((256, 300)).astype(np.float16), "w")
    outputs = [b.op("matmul", b.x(rows, 256, type="f16"), w)]
    if reader == "gather too":
        outputs.append(b.op("gather", w, b.x(3, type="i64"), axis=0))
    after = remove_dead(widen_half(b.finish(outputs)))
    assert next(op.op for op in after.operations if op.op in ("widen_weights", "matmul")) == first


def test_quotients_by_constants_round_once() -> None:
    """A reciprocal in f16 would turn codes of quantization; one in f32 does not."""
    b = Net()
    g = b.finish([b.op("div", b.x(4096, type="f16"), b.constant(np.float16(0.07), "scale"))])
    after = graph_pipeline(get_target("x86-64-v3"), "default").run(g)
    assert arithmetic(after) == [("mul", "f32")]
    (want,), (got,) = interpret.run(g, data(g)), interpret.run(after, data(g))
    np.testing.assert_array_equal(got, want)


def test_a_branch_has_casts_of_its_own() -> None:
    def branch(b: Net, op: str, v: Value) -> Any:
        inner = Net()
        return inner.finish([inner.op(op, v, v)])
    b = Net()
    x = b.op("add", b.x(3, type="f16"), b.x(3, type="f16"))
    which = b.x(type="bool")
    y = b.add("if_", [which], regions=[branch(b, "mul", x), branch(b, "sub", x)])
    after = widened(b.finish([y, b.op("add", x, x)]))
    assert {op.output.dtype.name for r in after.operations for region in r.regions for op in region.operations
            if op.op in ("mul", "sub")} == {"f32"}
