"""The default rule for tensor cores: which products it takes, that warps in any order compute them, that NVRTC makes cubins
of them without spills. No test here runs anything on a GPU."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import tilewright
from tests.codegen.clike.test_cuda import needs_nvrtc
from tests.small_models import model, weight
from tests.tensor.rules.gpu_cases import programs
from tests.tensor.rules.test_gpu import packed
from tilewright.codegen.clike import nvrtc
from tilewright.codegen.clike.cubin import resource_usage
from tilewright.codegen.clike.languages import CUDA
from tilewright.codegen.clike.printer import print_kernels
from tilewright.loop.interpret import run
from tilewright.loop.ir import Buffer, Program, as_int
from tilewright.loop.lower.device_pipeline import device_kernels, lower_for_device
from tilewright.loop.verify import verify
from tilewright.target.presets import get_target
from tilewright.tensor.rules.dispatch import schedule_program
from tilewright.tensor.schedule.schedule import Schedule, replay


def half(*shape: int) -> np.ndarray[Any, Any]:
    return weight(*shape).astype(np.float16)


def perceptron(dtype: str = "float16") -> onnx.ModelProto:
    """Two layers, one with its weights transposed, rows that are no multiple of a tile's."""
    made = {"float16": half, "float": weight}[dtype]
    return model(f"""f ({dtype}[18,32] x) => ({dtype}[18,24] y) {{
        a = MatMul(x, w)  b = Add(a, c)  r = Relu(b)  y = Gemm<transB=1>(r, v, d) }}""",
                 w=made(32, 24), c=made(24), v=made(24, 24), d=made(24))


ATTENTION = """f (float16[1,2,16,16] q, float16[1,2,24,16] k, float16[1,2,24,16] v) => (float16[1,2,16,16] y) {
    t = Transpose<perm=[0,1,3,2]>(k)  s = MatMul(q, t)  p = Softmax(s)  y = MatMul(p, v) }"""
CASES: dict[str, tuple[onnx.ModelProto, tuple[str, ...]]] = {
    "layers": (perceptron(), ("tensor_cores",) * 2),
    "bf16": (model("f (bfloat16[20,32] x, bfloat16[32,24] w) => (bfloat16[20,24] y) { y = MatMul(x, w) }"),
             ("tensor_cores",)),
    "a transposed input": (model("f (float16[32,24] x) => (float16[24,16] y) { y = Gemm<transA=1>(x, w) }", w=half(32, 16)),
                           ("tensor_cores",)),
    "the products of attention": (model(ATTENTION), ("tensor_cores", "results", "results", "tensor_cores")),
    "rows at odd places": (model("f (float16[17,33] x) => (float16[17,25] y) { y = MatMul(x, w) }", w=half(33, 25)),
                           ("tensor_cores",)),
    "heads behind a product": (model("""f (float16[24,32] x) => (float16[2,24,16] y) {
        a = MatMul(x, w)  h = Reshape(a, s)  y = Transpose<perm=[1,0,2]>(h) }""", w=half(32, 32), s=np.array([24, 2, 16])),
        ("tensor_cores", "results")),
    "a matrix times itself": (model("""f (float16[32,48] x) => (float16[32,32] y) {
        t = Transpose<perm=[1,0]>(x)  y = MatMul(x, t) }"""), ("tiles",)),
    "a few rows": (model("f (float16[3,64] x) => (float16[3,96] y) { y = MatMul(x, w) }", w=half(64, 96)), ("tiles",)),
    "a convolution": (model("""f (float16[1,16,2,9] x) => (float16[1,16,2,9] y) {
        a = Conv<pads=[1,1,1,1]>(x, w, b)  y = Relu(a) }""", w=half(16, 16, 3, 3), b=half(16)), ("tensor_cores",)),
    "strides": (model("f (float16[1,16,5,17] x) => (float16[1,12,3,9] y) { y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w) }",
                      w=half(12, 16, 3, 3)), ("tensor_cores",)),
    "a window of one place": (model("f (float16[1,16,6,16] x) => (float16[1,24,6,16] y) { y = Conv(x, w) }",
                                    w=half(24, 16, 1, 1)), ("tensor_cores",)),
    "weights that are no constants": (model("""f (float16[1,16,2,8] x, float16[16,16,3,3] w) => (float16[1,16,2,8] y) {
        y = Conv<pads=[1,1,1,1]>(x, w) }"""), ("tensor_cores",)),
    "groups": (model("f (float16[1,32,6,8] x) => (float16[1,32,6,8] y) { y = Conv<pads=[1,1,1,1], group=2>(x, w) }",
                     w=half(32, 16, 3, 3)), ("tiles",)),
}


def scheduled(m: onnx.ModelProto, target: str = "sm_80", numerics: str = "default") -> list[tuple[Program, Schedule]]:
    return [(p, schedule_program(p, get_target(target), numerics)) for p in programs(m, get_target(target))]


def rules(found: list[tuple[Program, Schedule]]) -> tuple[str, ...]:
    assert not any(sch.fallback for _, sch in found)
    return tuple(rule.split()[0] for _, sch in found for rule in sch.rules)


def arrays(p: Program) -> list[np.ndarray[Any, Any]]:
    """Small whole numbers: sums are exact."""
    rng = np.random.default_rng(0)
    return [rng.integers(-3, 4, [as_int(d) or 0 for d in b.shape]).astype(b.dtype.numpy()) for b in p.params
            if isinstance(b, Buffer)]


def check(program: Program, sch: Schedule) -> None:
    module = lower_for_device(sch.program, get_target("sm_80"))
    verify(module, "emitted")
    want = arrays(program)
    run(program, want)
    for order in ("reverse", "random"):
        got = [packed(sch, b, x) for b, x in zip(program.params, arrays(program), strict=True)]
        run(module, got, order=order, entry=program.name)  # type: ignore[arg-type]
        for b, x, y in zip(program.params, got, want, strict=True):
            assert b.name in sch.prepacks or np.array_equal(x, y)


@pytest.mark.parametrize("name", CASES)
def test_what_tensor_cores_take_they_compute(name: str) -> None:
    m, expected = CASES[name]
    found = scheduled(m)
    assert rules(found) == expected
    for program, sch in found:
        if any(rule.startswith("tensor_cores") for rule in sch.rules):
            assert str(replay(sch.trace, program).program) == str(sch.program)
            check(program, sch)


def test_f32_is_rounded_only_where_that_is_asked_for() -> None:
    """Whole numbers this small are TF32 as they are."""
    m = perceptron("float")
    assert rules(scheduled(m)) == ("tiles",) * 2
    assert rules(scheduled(m, "sm_75", "tf32")) == ("tiles",) * 2
    assert rules(scheduled(m, "opencl", "tf32")) == ("tiles",) * 2
    found = scheduled(m, numerics="tf32")
    assert rules(found) == ("tensor_cores",) * 2
    for program, sch in found:
        check(program, sch)
        module = lower_for_device(sch.program, get_target("sm_80"))
        assert "tf32.tf32" in print_kernels(device_kernels(module), CUDA)


def test_where_there_are_none() -> None:
    assert rules(scheduled(perceptron(), "sm_75")) == ("tiles",) * 2
    assert rules(scheduled(perceptron(), "opencl")) == ("tiles",) * 2
    assert rules(scheduled(perceptron(), numerics="strict")) == ("tiles",) * 2, "they do not round each sum to the nearest"


def test_decisions_may_be_others() -> None:
    (program, sch), *_ = scheduled(model("f (float16[16,96] x) => (float16[16,16] y) { y = MatMul(x, w) }", w=half(96, 16)))
    decided = sch.trace.decisions()
    names = [sch.trace.instructions[k].args for k in decided]
    assert len(names) == 6, "warps and fragments along both axes, depth, stages"
    *_, depth, stages = decided
    for k, value in ((depth, 1), (stages, 4)):
        other = replay(sch.trace.with_decision(k, value), program)
        assert str(other.program) != str(sch.program)
        check(program, other)


@needs_nvrtc
@pytest.mark.parametrize("generation, numerics", [("sm_80", "default"), ("sm_90", "default"), ("sm_80", "tf32")])
def test_cubins_without_spills(generation: str, numerics: str) -> None:
    """At the sizes of a transformer's layers: rows in whole tiles, and not; a batch of products; a long sum; and of ResNet's
    convolutions, which are gathered element by element."""
    t = {"default": "float16", "tf32": "float"}[numerics]
    made = {"default": half, "tf32": weight}[numerics]
    for text, weights in ((f"f ({t}[128,768] x) => ({t}[128,3072] y) {{ a = MatMul(x, w)  y = Relu(a) }}",
                           {"w": (768, 3072)}),
                          (f"f ({t}[197,3072] x) => ({t}[197,768] y) {{ y = Gemm<transB=1>(x, w, c) }}",
                           {"w": (768, 3072), "c": (768,)}),
                          (f"f ({t}[12,128,64] x, {t}[12,64,128] z) => ({t}[12,128,128] y) {{ y = MatMul(x, z) }}", {}),
                          (f"f ({t}[2048,4096] x, {t}[4096,4096] z) => ({t}[2048,4096] y) {{ y = MatMul(x, z) }}", {}),
                          (f"f ({t}[1,256,14,14] x) => ({t}[1,256,14,14] y) {{ y = Conv<pads=[1,1,1,1]>(x, w, c) }}",
                           {"w": (256, 256, 3, 3), "c": (256,)})):
        found = scheduled(model(text, **{k: made(*shape) for k, shape in weights.items()}), generation, numerics)
        assert rules(found) == ("tensor_cores",)
        source = print_kernels(device_kernels(lower_for_device(found[0][1].program, get_target(generation))), CUDA)
        assert "mma.sync" in source and "cp.async.cg" in source
        assert ("ldmatrix" in source) == (numerics == "default")
        usage = resource_usage(nvrtc.compile_cubin(CUDA.prelude + source, generation))
        assert usage and not any(u.stack for u in usage.values()), usage


def transformer_layer() -> onnx.ModelProto:
    """One layer of 4 heads, 64 wide."""
    return model("""f (float16[1,32,64] x) => (float16[1,32,64] y) {
        q0 = MatMul(x, wq)  q1 = Add(q0, b)  q2 = Reshape(q1, heads)  q = Transpose<perm=[0,2,1,3]>(q2)
        k0 = MatMul(x, wk)  k1 = Add(k0, b)  k2 = Reshape(k1, heads)  k = Transpose<perm=[0,2,3,1]>(k2)
        v0 = MatMul(x, wv)  v1 = Add(v0, b)  v2 = Reshape(v1, heads)  v = Transpose<perm=[0,2,1,3]>(v2)
        s0 = MatMul(q, k)  s1 = Mul(s0, scale)  s = Softmax(s1)  a0 = MatMul(s, v)
        a1 = Transpose<perm=[0,2,1,3]>(a0)  a2 = Reshape(a1, flat)  a3 = MatMul(a2, wo)  a = Add(a3, x)
        n = LayerNormalization(a, b, b)  f0 = MatMul(n, w1)  f1 = Relu(f0)  f2 = MatMul(f1, w2)  y = Add(f2, a) }""",
                 wq=half(64, 64), wk=half(64, 64), wv=half(64, 64), wo=half(64, 64), b=half(64), scale=np.float16(0.25),
                 w1=half(64, 256), w2=half(256, 64), heads=np.array([1, 32, 4, 16]), flat=np.array([1, 32, 64]))


@needs_nvrtc
def test_a_model_of_half_precision() -> None:
    """Its products are kernels on tensor cores, by default (those of queries, keys and values are one), and all of it is a
    cubin."""
    made = tilewright.compile(transformer_layer(), target="sm_80")
    taken = [k.record["rules"].split()[0] for k in made.kernels]
    assert taken.count("tensor_cores") == 6 and "tiles" not in taken
    assert not [k.label for k in made.kernels if "schedule_fallback" in k.record]
    usage = resource_usage(made.descriptor.image)
    assert len(usage) == len(made.kernels) and not any(u.stack for u in usage.values())
