"""Products of packed weights: expanded in registers for few rows, once per panel for many; beside the graph interpreter."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright
from tests.graph.symbolic import check
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import Graph, tensor_type
from tilewright.graph.ops.packed import packed_codes
from tilewright.loop.ir import IntoExpr, Span, Var
from tilewright.target import get_target
from tilewright.tensor.rules.expanded import MANY_ROWS

ROWS = Var("rows", span=Span(0))
Array = np.ndarray[Any, Any]


def operands(k: int, n: int, block: int, bits: int, points: str, seed: int = 0) -> list[Array]:
    """Codes, scales and zero points of random weights."""
    rng = np.random.default_rng(seed)
    blocks = -(-k // block)
    codes = packed_codes(rng.integers(0, 2**bits, (n, blocks * block)).astype(np.uint8), bits)
    scales = (rng.uniform(0.5, 1.5, (n, blocks)) / 2**bits).astype(np.float32)
    zero = {"u8": rng.integers(0, 2**bits, (n, blocks)).astype(np.uint8),
            "f32": rng.uniform(0, 2**bits, (n, blocks)).astype(np.float32)}
    return [codes, scales, *([zero[points]] if points else [])]


def product(rows: IntoExpr, k: int, n: int, block: int, bits: int = 4, points: str = "") -> Graph:
    """relu(x W + row)."""
    b = GraphBuilder()
    x = b.input("x", tensor_type("f32", (rows, k)))
    w = b.add("unpack_weights", [b.constant(a) for a in operands(k, n, block, bits, points)],
              {"bits": bits, "block": block, "depth": k, "point": float(2**(bits - 1))})
    y = b.add("add", [b.add("matmul", [x, w]), b.constant(np.linspace(-1, 1, n, dtype=np.float32))])
    return b.finish([b.add("relu", [y])])


CASES = [(64, 96, 32, 4, ""), (64, 48, 16, 4, "u8"), (256, 37, 128, 4, "f32"), (100, 33, 32, 4, ""), (50, 20, 16, 2, "u8"),
         (48, 40, 16, 8, ""), (37, 17, 32, 8, "u8"), (64, 16, 64, 2, ""), (96, 130, 256, 4, "f32")]
"""(rows, columns, rows in a block, bits, zero points)"""


@pytest.mark.parametrize("target", ("native", "x86-64-v3"))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_symbolic_rows(case: tuple[int, int, int, int, str], target: str) -> None:
    """One kernel, by the rule, right at both sides of its condition."""
    rows = [(m,) for m in (0, 1, 2, 5, MANY_ROWS - 1, MANY_ROWS, 37)]
    (kernel,) = check(product(ROWS, *case), [ROWS], rows, target=get_target(target))
    assert f"alternative({MANY_ROWS} <= " in str(kernel.schedule.trace)


@pytest.mark.parametrize("rows", (1, 6, 40))
@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_known_rows(case: tuple[int, int, int, int, str], rows: int) -> None:
    (kernel,) = check(product(rows, *case), [], [()])
    trace = str(kernel.schedule.trace)
    assert ("compute_inline('weights')" in trace, "compute_at('weights'" in trace) == (rows < MANY_ROWS, rows >= MANY_ROWS)


@pytest.mark.parametrize("half", ("f16", "bf16"))
@pytest.mark.parametrize("target", ("native", "x86-64-v3"))
def test_half_floats(half: str, target: str) -> None:
    """Weights that stay half floats, inlined for few rows and in panels for many."""
    b = GraphBuilder()
    x = b.input("x", tensor_type("f32", (ROWS, 70)))
    w = b.add("widen_weights", [b.constant(np.random.default_rng(0).standard_normal((70, 45)), "w", half)])
    (kernel,) = check(b.finish([b.add("relu", [b.add("matmul", [x, w])])]), [ROWS],
                      [(m,) for m in (0, 1, 3, MANY_ROWS - 1, MANY_ROWS, 37)], target=get_target(target))
    assert f"alternative({MANY_ROWS} <= " in str(kernel.schedule.trace)


def model(k: int, n: int, block: int) -> onnx.ModelProto:
    """Two MatMulNBits of one operand over symbolic rows, then a sum."""
    constants = []
    for name in "uv":
        codes, scales = operands(k, n, block, 4, "", seed=ord(name))
        constants += [numpy_helper.from_array(codes.reshape(n, -1, block // 2), f"{name}q"),
                      numpy_helper.from_array(scales.reshape(-1), f"{name}s")]
    nodes = [helper.make_node("MatMulNBits", ["x", f"{name}q", f"{name}s"], [name], domain="com.microsoft", K=k, N=n, bits=4,
                              block_size=block) for name in "uv"]
    graph = helper.make_graph([*nodes, helper.make_node("Mul", ["u", "v"], ["y"])], "m",
                              [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "seq", k])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "seq", n])], constants)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17),
                                                                 helper.make_opsetid("com.microsoft", 1)])


def test_a_model_keeps_its_weights_packed() -> None:
    """Parallel products are one, over the packed weights of both; any number of threads computes the same numbers, and what
    the expanded weights give."""
    proto = model(512, 160, 32)
    one, two = (tilewright.compile(proto, threads=t) for t in (1, 2))
    strict = tilewright.compile(proto, threads=1, numerics="strict")
    packed = 2 * 160 * (512 // 2 + 512 // 32 * 4)
    assert one.memory.packed < 1.3 * packed
    assert strict.memory.packed >= 2 * 160 * 512 * 4
    products = [k.group for k in one.kernels if k.group.anchor.op == "matmul"]
    assert len(products) == 1
    for shape in ((1, 1, 512), (2, 3, 512), (2, 40, 512)):
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        np.testing.assert_array_equal(one(x=x), two(x=x))
        np.testing.assert_allclose(one(x=x), strict(x=x), rtol=1e-4, atol=1e-4)
