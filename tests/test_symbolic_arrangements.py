"""Dimensions that the file names as it likes – alike, differently, not at all – where operators need them to be equal: small
models beside ONNX Runtime, at sizes that fit, at sizes that do not, and where one of two sizes is 1."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state

import tilewright
from tilewright.broadcasts import BroadcastWarning
from tilewright.core.errors import UserError

REFUSALS = (onnxruntime_pybind11_state.InvalidArgument, onnxruntime_pybind11_state.Fail,
            onnxruntime_pybind11_state.RuntimeException)
LENIENT = {("gathered by batch", "x", 0), ("gathered by batch", "i", 0)}
"""Where ONNX Runtime reads on, although the sizes contradict."""

RNG = np.random.default_rng(0)
Array = np.ndarray[Any, Any]
Feed = dict[str, Any]


def x(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def below(high: int, *shape: int) -> Any:
    return RNG.integers(0, high, shape)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def parsed(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g {text}')


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def agree(got: list[Array], want: list[Array], where: object) -> None:
    for g, w in zip(got, want, strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype), where
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5, err_msg=str(where))


EMBEDDED = """(int64[a,b] ids, int64[c,d] mask, float[30,8] e) => (y) {
    h = Gather(e, ids) last = Constant<value_ints=[2]>() m = Unsqueeze(mask, last) f = Cast<to=1>(m) g = Mul(h, f)
    y = Softmax(g) }"""
W = {"w": x(1, 24, 3), "r": x(1, 24, 8)}
CASES: dict[str, tuple[str, list[Feed]]] = {
    "ids and their mask": (EMBEDDED, [{"ids": below(30, b, s), "mask": below(2, b, s), "e": x(30, 8)}
                                      for b, s in ((2, 5), (1, 1))]),
    "a recurrence and its state": (
        """(float[t,n,3] x, float[1,24,3] w, float[1,24,8] r, int32[k] lens, float[1,m,8] h) => (y, z) {
           y, z = GRU<hidden_size=8>(x, w, r, , lens, h) }""",
        [{**W, "x": x(5, 2, 3), "lens": np.array([5, 3], np.int32), "h": x(1, 2, 8)}]),
    "states that are named apart": (
        """(float[t,n,3] x, float[2,32,3] w, float[2,32,8] r, float[2,m,8] h, float[2,q,8] c) => (y, z, v) {
           y, z, v = LSTM<hidden_size=8, direction="bidirectional">(x, w, r, , , h, c) }""",
        [{"x": x(5, b, 3), "w": x(2, 32, 3), "r": x(2, 32, 8), "h": x(2, b, 8), "c": x(2, b, 8)} for b in (2, 1)]),
    "a state of a size that data decide": (
        """(float[n,3] x, float[1,8,3] w, float[1,8,8] r, float[1,m,8] h) => (y) {
           one = Constant<value_ints=[1]>() s = ReduceSum<keepdims=0>(x, one) p = NonZero(s)
           first = Constant<value_ints=[0]>() q = Squeeze(p, first) g = Gather(x, q) f = Unsqueeze(g, first)
           y, z = RNN<hidden_size=8>(f, w, r, , , h) }""",
        [{"x": np.array([[1, 0, 2], [0, 0, 0], [1, 1, 1]], np.float32), "w": x(1, 8, 3), "r": x(1, 8, 8), "h": x(1, 2, 8)}]),
    "a recurrence in a branch": (
        """(bool c, float[t,n,3] x, float[1,8,3] w, float[1,8,8] r, float[1,m,8] h) => (z) { z = If(c) <
           then_branch = g () => (u) { u, v = RNN<hidden_size=8>(x, w, r, , , h) },
           else_branch = k () => (e) { f, l = RNN<hidden_size=8>(x, w, r) e = Neg(f) }> }""",
        [{"c": np.array(m == 2), "x": x(5, 2, 3), "w": x(1, 8, 3), "r": x(1, 8, 8), "h": x(1, m, 8)} for m in (2, 7)]),
    "products": ("(float[a,b,c] x, float[d,e,f] y, float[g,h] w, float[i] b) => (z, v) { z = MatMul(x, y) "
                 "s = ReduceSum<keepdims=0>(z, k) v = Gemm(s, w, b) }".replace("s =", "k = Constant<value_ints=[0]>() s ="),
                 [{"x": x(2, 3, 4), "y": x(2, 4, 5), "w": x(5, 6), "b": x(6)}]),
    "a cache and its mask": (
        """(float[b,h,s,8] q, float[b1,h1,s1,8] k, float[b2,h2,s2,8] v, float[b3,h3,p,8] pk, float[b4,h4,p4,8] pv,
            float[b5,1,s5,t] mask) => (y, nk) {
           nk = Concat<axis=2>(pk, k) nv = Concat<axis=2>(pv, v) kt = Transpose<perm=[0,1,3,2]>(nk) sc = MatMul(q, kt)
           sm = Add(sc, mask) pr = Softmax<axis=-1>(sm) y = MatMul(pr, nv) }""",
        [{"q": x(2, 2, s, 8), "k": x(2, 2, s, 8), "v": x(2, 2, s, 8), "pk": x(2, 2, p, 8), "pv": x(2, 2, p, 8),
          "mask": x(2, 1, s, s + p)} for s, p in ((3, 4), (1, 6))]),
    "heads by the shape of another": (
        """(float[a,b,16] x, float[c,d,16] m) => (z) { sh = Shape<start=0,end=2>(x) r = Constant<value_ints=[4,4]>()
           t = Concat<axis=0>(sh, r) y = Reshape(x, t) u = Transpose<perm=[0,2,1,3]>(y) y2 = Reshape(m, t)
           v = Transpose<perm=[0,2,3,1]>(y2) z = MatMul(u, v) }""", [{"x": x(2, 3, 16), "m": x(2, 3, 16)}]),
    "a token in front, and places": (
        """(float[1,1,8] cls, float[b,s,8] x, float[c,t,8] pos) => (z) { sh = Shape<start=0,end=1>(x)
           r = Constant<value_ints=[1,8]>() s = Concat<axis=0>(sh, r) e = Expand(cls, s) y = Concat<axis=1>(e, x)
           z = Add(y, pos) }""", [{"cls": x(1, 1, 8), "x": x(2, 4, 8), "pos": x(2, 5, 8)}]),
    "places as long as the input": (
        """(float[1,64,4] pos, float[a,b,4] x) => (z) { s = Shape<start=1,end=2>(x) zero = Constant<value_ints=[0]>()
           one = Constant<value_ints=[1]>() p = Slice(pos, zero, s, one) z = Add(x, p) }""",
        [{"pos": x(1, 64, 4), "x": x(2, 7, 4)}]),
    "an image, halved, doubled and joined": (
        """(float[n,c,h,w] x, float[4,6,3,3] l, float[o,4,i,j] add) => (z) {
           p = MaxPool<kernel_shape=[2,2],strides=[2,2]>(x) s = Shape<start=2>(x)
           nc = Shape<start=0,end=2>(p) sz = Concat<axis=0>(nc, s)
           u = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(p, , , sz)
           v = Concat<axis=1>(u, x) f = Conv<pads=[1,1,1,1]>(v, l) z = Add(f, add) }""",
        [{"x": x(n, 3, h, w), "l": x(4, 6, 3, 3), "add": x(n, 4, h, w)}
         for n, h, w in ((2, 5, 6), (1, 4, 7))]),
    "channels": ("(float[n,c,h,w] x, float[c1] s, float[c2] b, float[c3] m, float[c4] v, float[c5,1,1] p) => (z) "
                 "{ y = BatchNormalization(x, s, b, m, v) z = PRelu(y, p) }",
                 [{"x": x(2, 3, 4, 5), "s": x(3), "b": x(3), "m": x(3), "v": x(3) ** 2, "p": x(3, 1, 1)}]),
    "a norm": ("(float[a,b,c] x, float[d] s, float[e] b) => (z) { z = LayerNormalization(x, s, b) }",
               [{"x": x(2, 3, 8), "s": x(8), "b": x(8)}]),
    "three of a choice": ("(bool[a,b] c, float[d,e] x, float[f,g] y) => (z) { z = Where(c, x, y) }",
                          [{"c": x(3, 4) > 0, "x": x(3, 4), "y": x(3, 4)}]),
    "scattered elements": ("(float[a,b] x, int64[c,d] i, float[e,f] u) => (z) { z = ScatterElements<axis=1>(x, i, u) }",
                           [{"x": x(3, 4), "i": below(4, n, 1), "u": x(n, 1)} for n in (3, 2)]),
    "scattered rows": ("(float[a,b] x, int64[c,1] i, float[e,f] u) => (z) { z = ScatterND(x, i, u) }",
                       [{"x": x(3, 4), "i": ints(2, 0).reshape(2, 1), "u": x(2, 4)}]),
    "gathered elements": ("(float[a,b] x, int64[c,d] i) => (z) { z = GatherElements<axis=1>(x, i) }",
                          [{"x": x(3, 4), "i": below(4, 3, 2)}, {"x": x(3, 4), "i": below(4, 2, 6)}]),
    "gathered by batch": ("(float[a,b,c] x, int64[d,e,1] i) => (z) { z = GatherND<batch_dims=1>(x, i) }",
                          [{"x": x(3, 4, 2), "i": below(4, 3, 2, 1)}]),
    "a grid": ("(float[n,c,h,w] x, float[m,p,q,2] g) => (z) { z = GridSample(x, g) }",
               [{"x": x(2, 3, 4, 5), "g": x(2, 3, 3, 2) * .5}]),
    "einsum": ('(float[a,b,c] x, float[d,e,f] y) => (z) { z = Einsum<equation="bij,bjk->bik">(x, y) }',
               [{"x": x(2, 3, 4), "y": x(2, 4, 5)}]),
    "a scan of two sequences": (
        """(float[n,a] x, float[m,b] y, float[c] h) => (o, rows) { o, rows = Scan<num_scan_inputs=2, body =
           g (float[p] s, float[q] e, float[r] f) => (u, t) { a = Add(s, e) u = Mul(a, f) t = Tanh(u) }>(h, x, y) }""",
        [{"x": x(4, 3), "y": x(4, 3), "h": x(3)}]),
    "a loop whose state grows": (
        """(int64 n, float[a,b] x, float[c,d] y) => (z, rows) { t = Constant<value = bool {1}>()
           z, rows = Loop(n, t, x) <body = g (int64 i, bool go, float[p,q] v) => (more, w, r) {
           more = Identity(go) w = Concat<axis=0>(v, y)
           r = ReduceSum<keepdims=0>(y) }> }""", [{"n": np.array(n), "x": x(2, 3), "y": x(2, 3)} for n in (3, 0)]),
    "a sum in a branch": (
        """(bool c, float[a] x, float[b] y) => (z) { z = If(c) <then_branch = g () => (t) { t = Add(x, y) },
           else_branch = h () => (e) { e = Relu(x) }> }""",
        [{"c": np.array(n == 3), "x": x(3), "y": x(n)} for n in (3, 5)]),
    "the largest": ("(float[a,b] x, int64[1] k, float[c,d] y) => (z) { v, i = TopK(x, k) z = Add(v, y) }",
                    [{"x": x(3, n), "k": ints(k), "y": x(3, k)} for n, k in ((7, 4), (7, 7))]),
    "parts of data's sizes": ("(float[a,b] x, int64[2] k, float[c,d] y) => (z) { u, v = Split<axis=1>(x, k) z = Add(u, y) }",
                              [{"x": x(2, 6), "k": ints(2, 4), "y": x(2, 2)}]),
    "a slice of data's size": (
        """(float[a,b] x, int64[1] s, int64[1] e, float[c,d] y) => (z) { one = Constant<value_ints=[1]>()
           p = Slice(x, s, e, one) z = Add(p, y) }""",
        [{"x": x(3, 8), "s": ints(s), "e": ints(e), "y": x(3, n)} for s, e, n in ((2, 5, 3), (-2, 100, 2))]),
    "an axis that is left out": (
        "(float[a,b] x, float[c] y) => (z) { first = Constant<value_ints=[0]>() s = Squeeze(x, first) z = Add(s, y) }",
        [{"x": x(1, 4), "y": x(4)}])}


def resized(a: Any, axis: int, n: int) -> Any:
    """The first elements along an axis, or more, from the beginning again."""
    return np.take(a, np.arange(n) % a.shape[axis], axis)


@pytest.mark.parametrize("name", CASES)
def test_sizes_that_must_be_equal(name: str) -> None:
    """Right where they are; where one of them is changed, as ONNX Runtime says: right, or refused by name."""
    text, feeds = CASES[name]
    model = parsed(text)
    reference = session(model)
    with tilewright.compile(model, fallback="error") as made:
        made.executable.set_poison(True)
        for feed in feeds:
            agree(made.run(feed), reference.run(None, feed), {k: np.shape(v) for k, v in feed.items()})
        named = {i.name: [d.dim_param for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
        for key, axis in [(k, axis) for k, dims in named.items() for axis, d in enumerate(dims) if d]:
            for n in (feeds[0][key].shape[axis] + 1, feeds[0][key].shape[axis] - 1):
                if n < 2 or feeds[0][key].shape[axis] == 1:  # as the next test
                    continue
                wrong = {**feeds[0], key: resized(feeds[0][key], axis, n)}
                try:
                    want = reference.run(None, wrong)
                except REFUSALS:
                    want = []
                if want and (name, key, axis) not in LENIENT:
                    agree(made.run(wrong), want, (key, axis, n))
                    continue
                with pytest.raises(UserError, match=r"input-shape|run-shape|run-index"):
                    made.run(wrong)


ONES: dict[str, tuple[str, list[Feed]]] = {
    "a sum": ("(float[a,b] x, float[c,d] y) => (z) { z = Add(x, y) }",
              [{"x": x(*s), "y": x(*t)} for s, t in (((4, 8), (1, 8)), ((1, 8), (4, 1)), ((4, 8), (4, 8)))]),
    "products": ("(float[a,b,c] x, float[d,e,f] y) => (z) { z = MatMul(x, y) }",
                 [{"x": x(m, 3, 4), "y": x(n, 4, 5)} for m, n in ((2, 1), (3, 3))]),
    "a mask for all": (EMBEDDED, [{"ids": below(30, 2, 5), "mask": below(2, 1, 5), "e": x(30, 8)}]),
    "a choice": ("(bool[a,b] c, float[d,e] x, float[f,g] y) => (z) { z = Where(c, x, y) }",
                 [{"c": x(3, 1) > 0, "x": x(1, 4), "y": x(3, 4)}]),
    "a scale": ("(float[a,8] x, float[e] b) => (z) { z = LayerNormalization(x, b) }", [{"x": x(2, 8), "b": x(1)}]),
    "a column beside weights": ("(float[a,b] x, float[4] s) => (z) { z = Add(x, s) }", [{"x": x(2, 1), "s": x(4)}]),
    "to the shape of another": ("(float[a,b] x, float[c,d] y) => (z) { s = Shape(y) z = Expand(x, s) }",
                                [{"x": x(*s), "y": x(*t)} for s, t in (((1, 3), (2, 3)), ((2, 1), (1, 3)))])}


@pytest.mark.parametrize("name", ONES)
def test_sizes_that_are_1_are_broadcast(name: str) -> None:
    """The first run of a kind compiles the model for it, later ones do not."""
    text, feeds = ONES[name]
    model = parsed(text)
    reference = session(model)
    with tilewright.compile(model, fallback="error") as made:
        with pytest.warns(BroadcastWarning, match="`shapes`"):
            for feed in feeds:
                agree(made.run(feed), reference.run(None, feed), {k: np.shape(v) for k, v in feed.items()})
        for feed in feeds:
            agree(made.run(feed), reference.run(None, feed), {k: np.shape(v) for k, v in feed.items()})


def test_expand_to_data() -> None:
    """No size is known before: those that are 1 are repeated, those that the shape calls 1 stay."""
    model = parsed("(float[a,b] x, int64[3] s, float[c,3] y) => (z, w) { z = Expand(x, s) t = Constant<value_ints=[2,3]>() "
                   "w = Expand(y, t) }")
    reference = session(model)
    with tilewright.compile(model, shapes={"c": "1..2"}) as made:
        for s, to in [((2, 3), (1, 2, 3)), ((1, 3), (4, 2, 3)), ((2, 3), (1, 1, 1)), ((2, 1), (2, 1, 3))]:
            feed = {"x": x(*s), "s": ints(*to), "y": x(2, 3)}
            agree(made.run(feed), reference.run(None, feed), (s, to))
        with pytest.raises(UserError, match=r"run-shape(.|\n)*they are 2 and 4"):
            made.run({"x": x(2, 3), "s": ints(1, 4, 3), "y": x(2, 3)})


def test_a_size_of_1_that_must_be_equal_is_refused_without_another_try() -> None:
    text = "(float[a,b] x, float[c,d] y) => (z) { z = Concat<axis=0>(x, y) }"
    said = "input 'y': dimension 1 is 1, but 'b' is 4 in input 'x'"
    with tilewright.compile(parsed(text)) as made, pytest.raises(UserError, match=said):
        made(x(2, 4), x(2, 1))


def test_one_symbol_lies_in_the_ranges_of_all() -> None:
    text = "(float[a,b] x, float[c,d] y) => (z) { z = Concat<axis=0>(x, y) }"
    with tilewright.compile(parsed(text), shapes={"b": "4..64%4", "d": "6..40%6~12"}) as made:
        (s,) = [s for s in made.descriptor.symbols if s.name == "b"]
        assert (s.least, s.most, s.multiple) == (12, 36, 12)
        assert made.random_inputs()["y"].shape == (1, 12)
    with pytest.raises(UserError, match="shape-mismatch") as error:
        tilewright.compile(parsed(text), shapes={"b": "4..8", "d": "9..12"})
    assert "no size is b 4..8, d 9..12 at once" in str(error.value)
    with pytest.raises(UserError, match=r"shape-mismatch(.|\n)*must be 3, and is c 4"):
        tilewright.compile(parsed("(float[n,c,5,5] x, float[2,3,1,1] w) => (z) { z = Conv(x, w) }"), shapes={"c": "4.."})


def test_a_named_dimension_names_those_without_a_name() -> None:
    model = parsed("(float[a,b] x, float[c,batch] y) => (z) { z = MatMul(x, y) }")
    model.graph.input[0].type.tensor_type.shape.dim[1].Clear()
    with tilewright.compile(model) as made:
        assert [s.name for s in made.descriptor.symbols] == ["a", "c", "batch"]


def test_versions_by_any_of_the_names() -> None:
    model = parsed("(float[a,b] x, float[c,d] y) => (z) { z = Add(x, y) }")
    with tilewright.compile(model, versions=[{"c": 2, "b": 3}]) as made:
        for n in (2, 4):
            feed = {"x": x(n, 3), "y": x(n, 3)}
            np.testing.assert_array_equal(made.run(feed)[0], feed["x"] + feed["y"])
    with pytest.raises(UserError, match=r"version-invalid(.|\n)*'c' cannot be 2 and 3 at once"):
        tilewright.compile(model, versions=[{"a": 2, "c": 3}])


def test_the_lengths_of_sequences_are_at_most_the_steps() -> None:
    text, (feed,) = CASES["a recurrence and its state"]
    with tilewright.compile(parsed(text)) as made:
        for wrong, said in (([6, 3], "from 3 to 6"), ([-1, 3], "from -1 to 3")):
            with pytest.raises(UserError, match=f"run-index(.|\n)*{said}"):
                made.run({**feed, "lens": np.array(wrong, np.int32)})
