"""Quantized products and convolutions, bit for bit as their definitions say: every kind of bytes, odd sizes, zero points and
scales per channel, borders, groups; by the instructions that a target has, on the processor and in the interpreter."""
from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest

import tilewright
from tests.small_models import inputs, model
from tilewright.frontend.onnx.importer import import_onnx
from tilewright.graph import interpret
from tilewright.graph.lower import group_program
from tilewright.graph.passes.fuse import fuse
from tilewright.graph.pipeline import graph_pipeline
from tilewright.kernels import schedule_kernel
from tilewright.target import Target, get_target
from tilewright.tensor.schedule.state import blocks

U8, I8 = np.uint8, np.int8
NAMES = {U8: "uint8", I8: "int8"}
HOST = get_target()
NARROW = dataclasses.replace(HOST, name="vnni-256", vector_bits=256, intrinsics=(*HOST.intrinsics, "avx_vnni"))
"""This processor's instructions for bytes on vectors of half its length, as processors with AVX-VNNI have them."""
ARM = get_target("aarch64-neon")
DOTPROD = dataclasses.replace(ARM, features=("neon", "dotprod"), intrinsics=(*ARM.intrinsics, "dotprod"))
TARGETS = (HOST, *[get_target(name) for name in ("x86-64-v4", "x86-64-v3", "x86-64-v2")], *[NARROW] * HOST.has("vnni"))


def codes(dtype: Any, *shape: int, seed: int = 0) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max + 1, shape).astype(dtype)


def scales(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).uniform(0.004, 0.01, shape).astype(np.float32)


def conv(x: Any, w: Any, shape: tuple[int, ...], weight: tuple[int, ...], point: Any = 0, attrs: str = "",
         bias: bool = True) -> onnx.ModelProto:
    """A QLinearConv of x [shape] over weights with a zero point per channel around `point`, and a scale per channel."""
    o, size = weight[0], int(np.prod(weight[1:]))
    points = np.clip(np.full(o, point) + np.arange(o) % 3 * (point != 0), np.iinfo(w).min, np.iinfo(w).max).astype(w)
    more = {"b": codes(np.int16, o).astype(np.int32)} if bias else {}
    zero = np.array(130 if x is U8 else -3, x)
    return model(f"""net ({NAMES[x]}{list(shape)} x) => ({NAMES[x]}[{', '.join('abcd'[:len(shape)])}] y) {{
        y = QLinearConv{attrs}(x, sx, zx, w, sw, zw, sy, zx{', b' * bias}) }}""",
                 sx=np.float32(0.02), zx=zero, w=codes(w, *weight), sw=scales(o), zw=points,
                 sy=np.float32(0.012 * np.sqrt(size)), **more)


def matmul(x: Any, w: Any, m: int, k: int, n: int, point: int = 0) -> onnx.ModelProto:
    return model(f"""net ({NAMES[x]}[{m}, {k}] x) => ({NAMES[x]}[{m}, {n}] y) {{
        y = QLinearMatMul(x, sx, zx, w, sw, zw, sy, zx) }}""",
                 sx=np.float32(0.02), zx=np.array(120 if x is U8 else 7, x), w=codes(w, k, n), sw=scales(n),
                 zw=np.full(n, point, w), sy=np.float32(0.012 * np.sqrt(k)))


def matmul_integer(zero: str) -> onnx.ModelProto:
    """Zero points that are known when the model runs: one, or one per row."""
    return model(f"""net (uint8[5, 18] x, uint8[{zero}] z) => (int32[5, 20] y) {{ y = MatMulInteger(x, w, z, zw) }}""",
                 w=codes(U8, 18, 20), zw=np.array(128, U8))


def conv_integer(pads: int) -> onnx.ModelProto:
    return model(f"""net (uint8[1, 20, 7, 6] x, uint8 z) => (int32[1, 18, a, b] y) {{
        y = ConvInteger<pads = [{pads}, {pads}, {pads}, {pads}]>(x, w, z, zw) }}""",
                 w=codes(I8, 18, 20, 3, 3), zw=np.array(0, I8))


CASES = {
    **{f"conv {NAMES[x]} {NAMES[w]} {p}": conv(x, w, (1, 20, 6, 7), (18, 20, 3, 3), p, "<pads = [1, 1, 1, 1]>")
       for x in (U8, I8) for w, p in ((I8, 0), (I8, 5), (U8, 128), (U8, 0))},
    "few channels": conv(U8, I8, (1, 3, 9, 9), (16, 3, 3, 3), 0, "<pads = [1, 1, 1, 1], strides = [2, 2]>"),
    "no border, batch": conv(I8, I8, (2, 33, 5, 5), (17, 33, 1, 1), bias=False),
    "uneven border": conv(U8, I8, (1, 16, 6, 5), (16, 16, 3, 2), 0, "<pads = [0, 1, 2, 0], dilations = [2, 1]>"),
    "groups": conv(U8, I8, (1, 32, 5, 5), (32, 16, 3, 3), 0, "<group = 2, pads = [1, 1, 1, 1]>"),
    "small groups": conv(I8, I8, (1, 12, 5, 5), (18, 2, 3, 3), 0, "<group = 6, pads = [1, 1, 1, 1]>"),
    "depthwise": conv(U8, I8, (1, 20, 6, 6), (20, 1, 3, 3), 3, "<group = 20, pads = [1, 1, 1, 1], strides = [2, 1]>"),
    "a row": conv(I8, I8, (1, 24, 30), (20, 24, 5), 0, "<pads = [2, 2]>"),
    **{f"matmul {NAMES[x]} {NAMES[w]} {p}": matmul(x, w, 5, 30, 41, p)
       for x in (U8, I8) for w, p in ((I8, 0), (I8, 3), (U8, 128), (U8, 7))},
    "whole tiles": matmul(U8, I8, 32, 64, 64), "one column": matmul(U8, I8, 9, 12, 1), "one row": matmul(I8, I8, 1, 40, 40),
    "a zero point of the run": matmul_integer("1"), "zero points of rows": matmul_integer("5"),
    "a convolution's zero point of the run": conv_integer(0), "the same with a border": conv_integer(1),
}


def feeds_of(proto: onnx.ModelProto) -> dict[str, Any]:
    """Codes of the whole range, normal numbers."""
    return {i.name: codes(U8 if i.type.tensor_type.elem_type == onnx.TensorProto.UINT8 else I8, *v.shape, seed=5)
            if v.dtype in (U8, I8) else v for i, v in zip(proto.graph.input, inputs(proto).values(), strict=True)}


FEW = ("conv int8 uint8 128", "depthwise", "groups", "matmul uint8 uint8 7", "whole tiles")


@pytest.mark.parametrize("name, target", [(name, t) for t in TARGETS for name in (
    CASES if t.name in ("native", "x86-64-v3") else FEW)], ids=lambda x: getattr(x, "name", x))
def test_results(name: str, target: Target) -> None:
    feeds = feeds_of(CASES[name])
    (want,) = interpret.run(import_onnx(CASES[name]), list(feeds.values()))
    with tilewright.compile(CASES[name], target=target, threads=2) as made:
        assert not [k.label for k in made.kernels if "schedule_fallback" in k.record]
        np.testing.assert_array_equal(made(feeds), want)


def instructions(proto: onnx.ModelProto, target: Target) -> list[str]:
    """The tensor intrinsics in a model's kernels."""
    graph = graph_pipeline(target, "default").run(import_onnx(proto))
    programs = [group_program(g, "k").program for g in fuse(graph) if g.kind == "kernel"]
    scheduled = [schedule_kernel(p, target, "default") for p in programs]
    assert not [s.fallback for s in scheduled if s.fallback]
    return [str(dict(b.attrs)["intrinsic"]) for s in scheduled for b in blocks(s.program) if "intrinsic" in dict(b.attrs)]


VNNI = dataclasses.replace(get_target("x86-64-v4"), intrinsics=(*get_target("x86-64-v4").intrinsics, "vnni"))
WIDE = ("conv uint8 int8 5", "conv int8 int8 5", "conv uint8 uint8 128", "conv uint8 uint8 0", "matmul int8 int8 3",
        "matmul uint8 uint8 7")
"""Weights that less their zero points are no bytes."""
NARROW_WEIGHTS = ("conv uint8 int8 0", "conv int8 int8 0", "matmul uint8 uint8 128", "matmul int8 int8 0", "few channels",
                  "a row", "a zero point of the run", "zero points of rows", "the same with a border")


@pytest.mark.parametrize("name", (*WIDE, *NARROW_WEIGHTS))
def test_every_kind_of_bytes_has_an_instruction(name: str) -> None:
    assert instructions(CASES[name], VNNI) == ["pmaddwd_512" if name in WIDE else "vpdpbusd"]
    assert instructions(CASES[name], get_target("x86-64-v4")) == ["pmaddwd_512"]
    assert instructions(CASES[name], get_target("x86-64-v3")) == ["pmaddwd_256"]


@pytest.mark.parametrize("name", ["conv uint8 int8 0", "matmul uint8 uint8 128"])
def test_dot_products_on_arm(name: str) -> None:
    assert instructions(CASES[name], DOTPROD) == ["sdot"]
    assert instructions(CASES[name], ARM) == []
