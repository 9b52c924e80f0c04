"""The rules' schedules as machine code: hot loops of products and convolutions keep their tiles in registers, by target."""
from __future__ import annotations

import re
from typing import Any, NamedTuple

import onnx
import pytest

import tilewright
from tests.small_models import model, weight
from tilewright.target import get_target
from tilewright.target.target import Target
from tilewright.tensor.rules.contraction import UNROLL_K
from tilewright.tools import inspect

TARGETS = ("aarch64-neon", "x86-64-v3", "x86-64-v4")
FMA = {"aarch64": r"\tfmla\tv(\d+)\.4s", "x86_64": r"\tvfmadd\w+ps\t.*%([xyz]mm\d+)$"}
STACK = {"aarch64": r"\bsp\b", "x86_64": r"%rsp"}
STACK_STORE = {"aarch64": r"\tst[rp]\t.*\[sp", "x86_64": r"\tv?mov\w+\t%\w+, -?\d*\(%rsp"}


def product() -> onnx.ModelProto:
    return model("product (float[64,128] x) => (float[64,96] y) { y = MatMul(x, w) }", w=weight(128, 96))


def pointwise() -> onnx.ModelProto:
    return model("pointwise (float[1,32,28,28] x) => (float[1,64,28,28] y) { a = Conv(x, w) b = Relu(a) y = Conv(b, v) }",
                 w=weight(64, 32, 1, 1), v=weight(64, 64, 1, 1))


def direct() -> onnx.ModelProto:
    """Strided, so that Winograd is no choice."""
    return model("direct (float[1,32,28,28] x) => (float[1,64,14,14] y) { a = Conv<strides = [2,2], pads = [1,1,1,1]>(x, w) "
                 "y = Conv(a, v) }", w=weight(32, 32, 3, 3), v=weight(64, 32, 1, 1))


def depthwise() -> onnx.ModelProto:
    """Between others, so that its operands are blocked."""
    return model("depthwise (float[1,32,28,28] x) => (float[1,32,28,28] y) { a = Conv(x, u) "
                 "b = Conv<group = 32, pads = [1,1,1,1]>(a, w) y = Conv(b, v) }",
                 u=weight(32, 32, 1, 1), w=weight(32, 1, 3, 3), v=weight(32, 32, 1, 1, seed=1))


class Hot(NamedTuple):
    """The innermost loop with the most fused multiply-adds: its instructions, these, and the tile's sizes."""
    code: list[str]
    accumulators: list[str]
    tile: dict[str, int]


def innermost_loops(text: str) -> list[list[str]]:
    """Instructions from a label to the jump back to it, where no other loop lies between."""
    lines, labels, found = text.splitlines(), {}, []
    for at, line in enumerate(lines):
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = at
        jump = re.match(r"\t(?:j|b|cb|tb)[\w.]*\t.*?(\.L\w+)\s*$", line)
        if jump and jump[1] in labels and not any(labels[jump[1]] <= start for start, _ in found):
            found.append((labels[jump[1]], at))
    return [[x for x in lines[a:b + 1] if x.startswith("\t") and not x.startswith("\t.")] for a, b in found]


def hot_loop(proto: onnx.ModelProto, target: Target, choose: Any = max) -> Hot:
    """Of the model's product or convolution with the most (or by `min`, the fewest) operations."""
    made = tilewright.compile(proto, target=target)
    contractions = [use for use in made.kernels if use.group.anchor.op in ("matmul", "conv")]
    kernel = inspect.kernel_named(made, choose(contractions, key=lambda use: use.flops).kernel)
    loops = innermost_loops(inspect.assembly_of(kernel, target))
    fmas = [[m[1] for line in code if (m := re.search(FMA[target.arch], line))] for code in loops]
    best = max(range(len(loops)), key=lambda k: len(fmas[k]))
    sizes = re.findall(r"sample_tile\(.*# decided (\d+)", kernel.record["trace"])
    return Hot(loops[best], fmas[best], dict(zip(("vectors", "columns", "rows"), map(int, reversed(sizes)), strict=False)))


def uses(pattern: str, code: list[str]) -> list[str]:
    return [line for line in code if re.search(pattern, line)]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("build", (product, pointwise, direct))
def test_products_and_convolutions(name: str, build: Any) -> None:
    """One multiply-add per accumulator and step of the reduction, all of full width, none of the stack's memory."""
    target = get_target(name)
    hot = hot_loop(build(), target)
    tile = hot.tile["vectors"] * hot.tile["columns"] * hot.tile.get("rows", 1)
    assert len(hot.accumulators) == tile * UNROLL_K
    assert tile >= 4 * target.fma_units, "too few accumulators to hide the latency"
    assert not uses(STACK[target.arch], hot.code), "a spill"
    if target.is_x86:
        register = {256: "ymm", 512: "zmm"}[target.vector_bits]
        assert len(set(hot.accumulators)) == tile and all(r.startswith(register) for r in hot.accumulators)
        assert target.vector_bits == 512 or not uses("zmm", hot.code)
    operands = UNROLL_K * (hot.tile["vectors"] + hot.tile["columns"] * hot.tile.get("rows", 1))
    prefetches = len(uses("prefetch|prfm", hot.code))
    assert len(hot.code) <= len(hot.accumulators) + operands + prefetches + 12, "little but arithmetic and loads"


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("columns", (40, 27, 13))
def test_a_tile_that_is_no_whole_vectors_is_kept_in_registers(name: str, columns: int) -> None:
    """It is summed and stored in the same pieces: an access across two of them would keep the tile in memory."""
    target = get_target(name)
    proto = model(f"narrow (float[64,128] x) => (float[64,{columns}] y) {{ a = MatMul(x, w) y = Relu(a) }}",
                  w=weight(128, columns))
    assert not uses(STACK_STORE[target.arch], hot_loop(proto, target).code)


@pytest.mark.parametrize("name", TARGETS)
def test_depthwise(name: str) -> None:
    """All nine positions of the window in one piece of code; nothing is put aside."""
    target = get_target(name)
    hot = hot_loop(depthwise(), target, min)
    multiplied = len(hot.accumulators) + len(uses(r"\tfmul\t|\tvmulps\t", hot.code))
    assert multiplied % 9 == 0 and multiplied >= 9 * (14 if target.vector_registers == 32 else 7)
    assert not uses(STACK_STORE[target.arch], hot.code)
    assert not target.is_x86 or target.vector_bits == 512 or not uses("zmm", hot.code)


def test_loops_are_found() -> None:
    text = ".La:\n\tone\n.Lb:\n\ttwo\n\tjne\t.Lb\n\tthree\n\tjne\t.La\n.Lc:\n\tb.ne\t.Lc\n"
    assert innermost_loops(text) == [["\ttwo", "\tjne\t.Lb"], ["\tb.ne\t.Lc"]]
