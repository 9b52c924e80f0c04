"""Models whose sizes are known at run time only: one compiled model for all sizes, compared with the graph interpreter."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import tilewright
from tilewright.core.errors import UserError
from tilewright.graph import interpret
from tilewright.graph.ir import Graph
from tilewright.model import Model

RNG = np.random.default_rng(0)
N = helper.make_node


def x(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def model(nodes: Any, inputs: dict[str, Any], outputs: str, weights: dict[str, Any] | None = None) -> onnx.ModelProto:
    """Inputs are f32 of a shape, or (type, shape)."""
    infos = [helper.make_tensor_value_info(n, *(s if isinstance(s, tuple) else (T.FLOAT, s))) for n, s in inputs.items()]
    results = [helper.make_tensor_value_info(n, T.FLOAT, None) for n in outputs.split()]
    stored = [numpy_helper.from_array(w, n) for n, w in (weights or {}).items()]
    graph = helper.make_graph(nodes, "sizes", infos, results, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def parsed(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')


def check(made: Model, feeds: list[dict[str, Any]]) -> None:
    """Each run against the interpreter; arenas begin as NaN."""
    graph = made.graph
    assert isinstance(graph, Graph)
    made.executable.set_poison(True)
    for feed in feeds:
        for got, want in zip(made.run(feed), interpret.run(graph, feed), strict=True):
            assert (got.shape, got.dtype) == (want.shape, want.dtype)
            scale = max(np.abs(want.astype(np.float64)[np.isfinite(want)]).max(initial=0), 1e-9)
            np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=0, atol=2e-5 * scale)


# ---- sizes of the inputs ---------------------------------------------------------------------------------------------
def block() -> onnx.ModelProto:
    """A product, a softmax and a sum over tokens."""
    nodes = [N("MatMul", ["x", "w"], ["a"]), N("Relu", ["a"], ["b"]), N("Softmax", ["b"], ["c"]),
             N("Add", ["c", "z"], ["y"])]
    return model(nodes, {"x": ["batch", "seq", 16], "z": ["batch", "seq", 32]}, "y", {"w": x(16, 32)})


def test_one_model_for_all_sizes() -> None:
    with tilewright.compile(block(), shapes={"batch": "1..8", "seq": "0..~32"}) as made:
        assert [s.shape for s in made.outputs] == [(-1, -1, 32)]
        check(made, [{"x": x(b, s, 16), "z": x(b, s, 32)} for b, s in [(1, 1), (2, 3), (8, 100), (3, 0), (3, 17), (1, 1)]])
        assert made.verify() < 1e-4


@pytest.mark.parametrize("shapes, text", [
    ([(9, 2, 16), (9, 2, 32)], "input 'x': dimension 0 is 9, 'batch' is from 1 to 8"),
    ([(2, 2, 16), (2, 3, 32)], "input 'z': dimension 1 is 3, but 'seq' is 2 in input 'x'"),
    ([(2, 0, 16), (2, 0, 32)], "input 'x': dimension 1 is 0, 'seq' is from 1")])
def test_shapes_are_checked_before_anything_runs(shapes: Any, text: str) -> None:
    with tilewright.compile(block(), shapes={"batch": "1..8", "seq": "1.."}) as made:
        with pytest.raises(UserError, match="input-shape") as error:
            made(*[x(*s) for s in shapes])
        assert text in str(error.value)


def test_symbols_that_meet_must_be_equal() -> None:
    m = model([N("Add", ["a", "b"], ["y"])], {"a": ["n", 2], "b": ["m", 2]}, "y")
    with tilewright.compile(m) as made:
        check(made, [{"a": x(3, 2), "b": x(3, 2)}])
        with pytest.raises(UserError, match="input-shape") as error:
            made(x(3, 2), x(4, 2))
        assert "input 'b': dimension 0 is 4, but 'n' is 3 in input 'a'" in str(error.value)


@pytest.mark.parametrize("op", ["BatchNormalization", "InstanceNormalization", "GroupNormalization"])
def test_parameters_of_channels_beside_rows_of_any_length(op: str) -> None:
    """A parameter's only axis is that of the channels, not the last one."""
    values = "s, b, m, v" if op[0] == "B" else "s, b"
    text = f"""agraph (float[n,c,h,l] x, float[c2] s, float[c2] b, float[c2] m, float[c2] v) => (y) {{
                   y = {op} {"<num_groups = 2>" if op[0] == "G" else ""} (x, {values}) }}"""
    m = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {21 if op[0] == "G" else 18}]> {text}')
    channels = {"c": 4} if op[0] == "G" else {}
    with tilewright.compile(m, shapes=channels) as made:
        feeds = [{"x": x(*s), "s": x(s[1]), "b": x(s[1]), "m": x(s[1]), "v": x(s[1]) ** 2}
                 for s in [(1, 4, 3, 5), (2, 4, 7, 1), (1, 4, 4, 4)]]
        check(made, feeds)
        said = r"input 's'(: dimension 0 is 3, but 'c' is 4 in input 'x'| has the shape \[3\], expected f32\[4\])"
        with pytest.raises(UserError, match=said):
            made(x(1, 4, 2, 3), x(3), x(3), x(3), x(3))


@pytest.mark.parametrize("text, right, wrong", [
    ("(float[n,c] x, float[d] s) => (y) { y = LayerNormalization(x, s) }", [(2, 6), (6,)], [(2, 6), (3,)]),
    ("(float[n,c,l] x, float[4,3,3] w) => (y) { y = Conv(x, w) }", [(2, 3, 8), (4, 3, 3)], [(2, 2, 8), (4, 3, 3)]),
    ("(float[n,c,l] x, float[4,3,3] w) => (y) { y = ConvTranspose(x, w) }", [(2, 4, 8), (4, 3, 3)], [(2, 2, 8), (4, 3, 3)]),
    ("(float[t,n,3] x, float[1,8,3] w, float[1,8,8] r, int32[m] lengths) => (y) "
     "{ y = RNN <hidden_size = 8> (x, w, r, , lengths) }", [(5, 2, 3), (1, 8, 3), (1, 8, 8), (2,)],
     [(5, 4, 3), (1, 8, 3), (1, 8, 8), (2,)])])
def test_operands_that_are_too_small_are_refused_before_they_are_read(text: str, right: Any, wrong: Any) -> None:
    with tilewright.compile(parsed(f"agraph {text}")) as made:
        def feed(shapes: Any) -> dict[str, Any]:
            return {i.name: x(*s) if i.dtype.is_float else np.ones(s, np.int32)
                    for i, s in zip(made.inputs, shapes, strict=True)}
        check(made, [feed(right)])
        with pytest.raises(UserError, match="input-shape"):
            made.run(feed(wrong))


def test_images_of_any_size_and_batches_of_any_number() -> None:
    nodes = [N("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]), N("Relu", ["a"], ["b"]),
             N("Conv", ["b", "v"], ["c"], pads=[1, 1, 1, 1]),
             N("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
             N("GlobalAveragePool", ["p"], ["q"])]
    m = model(nodes, {"x": ["n", 3, "h", "w_"]}, "p q", {"w": x(16, 3, 3, 3), "v": x(16, 16, 3, 3)})
    with tilewright.compile(m) as made:
        check(made, [{"x": x(*s)} for s in [(1, 3, 8, 8), (2, 3, 9, 17), (1, 3, 20, 5)]])
    with tilewright.compile(m, shapes={"x": ("n", 3, 24, 24)}) as made:
        check(made, [{"x": x(n, 3, 24, 24)} for n in (1, 2, 5)])


def test_rows_of_any_number_times_columns_that_do_not_fill_the_tiles() -> None:
    nodes = [N("MatMul", ["x", "w"], ["a"]), N("Relu", ["a"], ["y"])]
    m = model(nodes, {"x": ["n", 64]}, "y", {"w": x(64, 1000)})
    for usual in (1, 32):
        with tilewright.compile(m, shapes={"n": f"1..64~{usual}"}) as made:
            check(made, [{"x": x(n, 64)} for n in (1, 2, 7, 31, 64)])


def test_a_symbolic_batch_keeps_the_fast_algorithm() -> None:
    nodes = [N("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]), N("Relu", ["a"], ["b"]),
             N("Conv", ["b", "w"], ["c"], pads=[1, 1, 1, 1]), N("Add", ["c", "x"], ["y"])]
    m = model(nodes, {"x": ["n", 32, 14, 14]}, "y", {"w": x(32, 32, 3, 3)})
    with tilewright.compile(m, shapes={"n": "1..8~1"}) as made:
        assert [op.op for op in made.stages.optimized.operations].count("winograd_conv") == 2
        assert not any("schedule_fallback" in k.record for k in made.stages.kernels.values())
        check(made, [{"x": x(n, 32, 14, 14)} for n in (1, 2, 5, 8)])


# ---- sizes that are data ---------------------------------------------------------------------------------------------
TWO = {"x": ["a", "b"], "s": (T.INT64, [2])}
BY_VALUES = {
    "reshape": (model([N("Reshape", ["x", "s"], ["y"])], {"x": ["a", "b"], "s": (T.INT64, [3])}, "y"),
                [{"x": x(2, 6), "s": ints(3, 2, 2)}, {"x": x(4, 5), "s": ints(0, -1, 1)},
                 {"x": x(4, 6), "s": ints(2, 2, -1)}]),
    "slice": (model([N("Slice", ["x", "s", "e"], ["y"])], {**TWO, "e": (T.INT64, [2])}, "y"),
              [{"x": x(5, 6), "s": ints(1, 2), "e": ints(4, 100)}, {"x": x(4, 5), "s": ints(-2, -3), "e": ints(100, -1)},
               {"x": x(4, 6), "s": ints(3, 0), "e": ints(1, 2)}]),
    "expand": (model([N("Expand", ["x", "s"], ["y"])], {"x": ["a", 1], "s": (T.INT64, [2])}, "y"),
               [{"x": x(5, 1), "s": ints(5, 3)}, {"x": x(4, 1), "s": ints(4, 7)}]),
    "full": (model([N("ConstantOfShape", ["s"], ["y"])], {"s": (T.INT64, [2])}, "y"),
             [{"s": ints(2, 3)}, {"s": ints(0, 4)}]),
    "tile": (model([N("Tile", ["x", "s"], ["y"])], TWO, "y"),
             [{"x": x(2, 3), "s": ints(2, 3)}, {"x": x(1, 2), "s": ints(1, 4)}]),
    "pad": (model([N("Pad", ["x", "s"], ["y"])], {"x": ["a", 3], "s": (T.INT64, [4])}, "y"),
            [{"x": x(2, 3), "s": ints(2, 3, 1, 0)}, {"x": x(2, 3), "s": ints(0, -1, 0, 2)}]),
    "topk": (model([N("TopK", ["x", "k"], ["y", "i"])], {"x": ["a", "b"], "k": (T.INT64, [1])}, "y i"),
             [{"x": x(2, 30), "k": ints(k)} for k in (1, 9)]),
    "split": (model([N("Split", ["x", "k"], ["y", "z"], axis=1)], {"x": ["a", "b"], "k": (T.INT64, [2])}, "y z"),
              [{"x": x(2, 30), "k": ints(k, 30 - k)} for k in (1, 9)]),
    "range": (model([N("Range", ["a", "b", "c"], ["y"])], {"a": [], "b": [], "c": []}, "y"),
              [dict(zip("abc", np.array(v, np.float32), strict=True))
               for v in ((1, 5, 2), (0, 1, .1), (5, 0, -1), (0, 0, 1))]),
    "nonzero": (model([N("NonZero", ["x"], ["y"])], {"x": ["a", "b"]}, "y"),
                [{"x": (x(*s) > .3).astype(np.float32)} for s in [(1, 1), (3, 5), (2, 100)]] + [{"x": 0 * x(3, 3)}]),
    "compress": (model([N("Compress", ["x", "c"], ["y"], axis=1), N("ReduceSum", ["y"], ["z"])],
                       {"x": [3, "n"], "c": (T.BOOL, ["n"])}, "y z"), [{"x": x(3, n), "c": x(n) > 0} for n in (4, 9, 50)]),
    "window": (model([N("HannWindow", ["n"], ["y"])], {"n": (T.INT64, [])}, "y"), [{"n": np.array(n)} for n in (10, 33)])}


@pytest.mark.parametrize("name", BY_VALUES)
def test_sizes_from_values(name: str) -> None:
    m, feeds = BY_VALUES[name]
    with tilewright.compile(m) as made:
        check(made, [{k: np.asarray(v) for k, v in f.items()} for f in feeds])


def test_values_that_are_no_sizes_are_refused() -> None:
    no_size = r"run-shape(.|\n)*s_1 is not in 0.."
    with tilewright.compile(BY_VALUES["full"][0]) as made, pytest.raises(UserError, match=no_size):
        made(ints(3, -1))
    with tilewright.compile(BY_VALUES["reshape"][0]) as made, pytest.raises(UserError, match=r"run-shape(.|\n)*elements"):
        made(x(2, 3), ints(2, 2, 2))


@pytest.mark.parametrize("span", ("0..1", "0..4", "0..100"))
def test_reductions_of_nothing(span: str) -> None:
    """Their initial value, also where the loop never has more than one turn."""
    ops = ("ReduceSum", "ReduceMax", "ReduceLogSumExp", "ReduceL2")
    lines = " ".join([f"y{k} = {op} <keepdims = 0> (x, a) z{k} = {op} <keepdims = 0> (t, a)" for k, op in enumerate(ops)])
    m = parsed(f"g (float[3,n] x, float[n,5] w) => ({', '.join(f'y{k}, z{k}' for k in range(len(ops)))}, p) {{ "
               f"a = Constant <value_ints = [1]> () t = Transpose(w) {lines} p = MatMul(x, w) }}")
    with tilewright.compile(m, shapes={"n": span}) as made:
        check(made, [{"x": x(3, n), "w": x(n, 5)} for n in (1, 0)])


NOTHING_TO_READ = {
    "edge": ("Pad <mode = \"edge\"> (x, p)", "fill its border"),
    "wrap": ("Pad <mode = \"wrap\"> (x, p)", "fill its border"),
    "reflect": ("Pad <mode = \"reflect\"> (x, p)", "fill its border"),
    "resize": ("Resize <mode = \"linear\"> (x, , , s)", "that are resized"),
    "argmax": ("ArgMax <axis = 1> (x)", "no element to choose"),
}


@pytest.mark.parametrize("name", NOTHING_TO_READ)
def test_what_reads_an_element_in_any_case_refuses_axes_without_one(name: str) -> None:
    """A division by a size of 0 would end the process, a clamped place lie outside."""
    call, text = NOTHING_TO_READ[name]
    m = parsed("g (float[3,n] x) => (y) { p = Constant <value_ints = [0, 1, 0, 1]> () s = Constant <value_ints = [3, 4]> () "
               f"y = {call} }}")
    with tilewright.compile(m) as made:
        check(made, [{"x": x(3, n)} for n in (3, 1)])
        with pytest.raises(UserError, match=rf"run-shape(.|\n)*{text}"):
            made(x(3, 0))
    with pytest.raises(UserError, match=rf"shape-mismatch(.|\n)*{text}"):
        tilewright.compile(m, shapes={"n": 0})


def test_a_loop_that_never_runs_asks_nothing_of_sizes() -> None:
    m = parsed("g (float[n,3] x) => (h) { s = Shape <start = 0, end = 1> (x) n0 = Squeeze(s) "
               "t = Constant <value = bool {1}> () h0 = Constant <value_ints = [0, 0, 0]> () h = Loop (n0, t, h0) <body = b "
               "(int64 i, bool go, int64[3] a) => (more, c) { "
               "more = Identity(go) d = ArgMax <axis = 0, keepdims = 0> (x) c = Add(a, d) }> }")
    with tilewright.compile(m) as made:
        check(made, [{"x": x(n, 3)} for n in (4, 0)])


OF_NOTHING = {
    "attention": "(float[2,5,8] q, float[2,n,8] k, float[2,n,8] v) => (y) { t = Transpose <perm = [0, 2, 1]> (k) "
                 "s = MatMul(q, t) a = Softmax(s) y = MatMul(a, v) }",
    "long rows": "(float[8,64,8] q, float[8,n,8] k, float[8,n,8] v) => (y) { t = Transpose <perm = [0, 2, 1]> (k) "
                 "s = MatMul(q, t) a = Softmax(s) y = MatMul(a, v) }",
    "windows": "(float[1,3,n,4] x, float[2,3,3,3] w) => (y, z, u) { y = Conv <pads = [1, 1, 1, 1]> (x, w) z = MaxPool "
               "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x) u = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> "
               "(x) }",
    "batches": "(float[n,4,3] x, float[4] s) => (y, z, u) { y = InstanceNormalization(x, s, s) z = Softmax <axis = 0> (x) "
               "u = LogSoftmax <axis = 0> (x) }",
}


@pytest.mark.parametrize("name", OF_NOTHING)
def test_sizes_of_nothing(name: str) -> None:
    m = parsed(f"g {OF_NOTHING[name]}")
    with tilewright.compile(m) as made:
        shapes = {v.name: [d.dim_param and -1 or d.dim_value for d in v.type.tensor_type.shape.dim] for v in m.graph.input}
        check(made, [{k: x(*(n if d < 0 else d for d in s)) for k, s in shapes.items()} for n in (2, 0)])


# ---- control flow ----------------------------------------------------------------------------------------------------
ROWS = """(int64 n, float[7] x) => (rows) {
            t = Constant<value = bool {1}>()
            rows = Loop (n, t) <body = b (int64 i, bool go) => (more, row) {
                more = Identity(go)
                found = NonZero(x)
                axis = Constant<value = int64[1] {0}>()
                at = Squeeze(found, axis)
                row = Gather(x, at)
            }>
        }"""
CONTROL = {
    "branches of different sizes": ("""g (bool c, float[n,3] x) => (y, w) {
            y = If (c) <then_branch = a () => (t) { t = Relu(x) }, else_branch = b () => (e) { e = Concat<axis=0>(x, x) }>
            axis = Constant<value = int64[1] {1}>()
            w = ReduceSum<keepdims=0>(y, axis)
        }""", [{"c": np.array(c), "x": x(n, 3)} for c, n in ((True, 2), (False, 5), (True, 50))]),
    "a value that grows, and rows": ("""g (int64 n, float[2] x) => (y, rows) {
            t = Constant<value = bool {1}>()
            y, rows = Loop (n, t, x) <body = b (int64 i, bool go, float[q] v) => (more, v2, row) {
                more = Identity(go)
                v2 = Concat<axis=0>(v, x)
                f = Cast<to=1>(i)
                row = Add(x, f)
            }>
        }""", [{"n": np.array(n), "x": x(2)} for n in (1, 3, 0, 40)]),
    "values that change places": ("""g (float[3] x) => (y, z, steps) {
            t = Constant<value = bool {1}>()
            one = Constant<value = int64 {1}>()
            limit = Constant<value = int64 {20}>()
            zero = Constant<value = int64 {0}>()
            y, z, steps = Loop (, t, x, x, zero) <body = b (int64 i, bool go, float[q] v, float[p] u, int64 s) => (
                more, v2, u2, s2) {
                u2 = Concat<axis=0>(u, v)
                v2 = Identity(u)
                s2 = Add(s, one)
                size = Size(u2)
                more = Less(size, limit)
            }>
        }""", [{"x": x(3)}]),
    "rows of an unknown number of turns": ("""g (float limit, float[2] x) => (rows) {
            t = Constant<value = bool {1}>()
            s, rows = Loop (, t, x) <body = b (int64 i, bool go, float[2] v) => (more, v2, row) {
                v2 = Add(v, v)
                row = Identity(v2)
                f = Cast<to=1>(i)
                more = Less(f, limit)
            }>
        }""", [{"limit": np.array(n, np.float32), "x": x(2)} for n in (0, 5, 30)]),
    "a scan over all there is": ("""g (float[n,2] x, float[2] h) => (y, rows) {
            y, rows = Scan <num_scan_inputs=1, body = b (float[2] s, float[2] e) => (s2, o) {
                s2 = Add(s, e)
                o = Tanh(s2)
            }> (h, x)
        }""", [{"x": x(n, 2), "h": x(2)} for n in (1, 5, 17)]),
    "sizes from data in a loop": ("""g (int64 n, float[k] x) => (y) {
            t = Constant<value = bool {1}>()
            y = Loop (n, t, x) <body = b (int64 i, bool go, float[q] v) => (more, v2) {
                more = Identity(go)
                z = Relu(v)
                found = NonZero(z)
                axis = Constant<value = int64[1] {0}>()
                at = Squeeze(found, axis)
                picked = Gather(v, at)
                v2 = Concat<axis=0>(picked, x)
            }>
        }""", [{"n": np.array(n), "x": x(7)} for n in (1, 10, 0)]),
    "rows whose size the data decide": (f"g {ROWS}", [{"n": np.array(n), "x": x(7)} for n in (3, 1, 0)]),
    "a scan along another axis, of rows whose size the data decide": ("""g (float[n,7] x, float[1] h) => (y, rows, z) {
            y, rows = Scan <num_scan_inputs=1, scan_output_axes=[1], body = b (float[1] s, float[7] e) => (s2, o) {
                a = Abs(e)
                found = NonZero(a)
                axis = Constant<value = int64[1] {0}>()
                at = Squeeze(found, axis)
                o = Gather(e, at)
                s2 = Add(s, s)
            }> (h, x)
            z = Relu(rows)
        }""", [{"x": x(n, 7), "h": x(1)} for n in (1, 4)])}


def test_rows_must_have_one_size() -> None:
    """Whose size the data decide; in the first turn 7, then 6."""
    with tilewright.compile(parsed("g " + ROWS.replace("NonZero(x)", "NonZero(less)").replace(
            "found =", "f = Cast<to=1>(i) less = Sub(x, f) found ="))) as made:
        assert isinstance(made.graph, Graph)
        for n in (1, 2):
            feed = {"n": np.array(n), "x": np.arange(1, 8, dtype=np.float32)}
            if n == 1:
                assert made.run(feed)[0].shape == (1, 7)
                continue
            for run in (made.run, lambda feed: interpret.run(made.graph, feed)):  # type: ignore[arg-type]
                with pytest.raises(UserError, match="rows of different shapes are stacked"):
                    run(feed)


@pytest.mark.parametrize("name", CONTROL)
def test_control_flow(name: str) -> None:
    text, feeds = CONTROL[name]
    with tilewright.compile(parsed(text)) as made:
        check(made, feeds)
