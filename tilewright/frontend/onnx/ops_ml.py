"""The numeric operators of ai.onnx.ml: encoders, scalers, linear models and support vectors (trees are in ops_trees.py).

Where ONNX's text leaves a case open, what ONNX Runtime does is meant.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core import strings
from tilewright.core.dtype import f32, f64, i64
from tilewright.frontend.onnx.table import Context, Result, onnx_op
from tilewright.graph.infer import product
from tilewright.graph.ir import Value
from tilewright.loop.ir import as_int

ML = "ai.onnx.ml"
Array = np.ndarray[Any, Any]


# ---- features --------------------------------------------------------------------------------------------------------
@onnx_op("ArrayFeatureExtractor", domain=ML)
def array_feature_extractor(c: Context) -> Result:
    """Columns by index; a vector counts as one row."""
    x, at = c.x(0), c.x(1)
    flat = c.b.in_bounds(c.b.reshape(at, [product(at.shape)]), [x.shape[-1]])
    return c.add("gather", c.b.unsqueeze(x, [0]) if x.rank == 1 else x, flat, axis=-1)


@onnx_op("Binarizer", domain=ML)
def binarizer(c: Context) -> Result:
    x = c.x()
    return c.cast(c.add("greater", x, c.const(c.a("threshold", 0.0), x.dtype)), x.dtype)


@onnx_op("Imputer", domain=ML)
def imputer(c: Context) -> Result:
    """Elements that are missing (NaN, or a number) replaced by a number, or one for each column."""
    x = c.x()
    kind = "floats" if x.dtype.is_float else "int64s"
    values, missing = c.a(f"imputed_value_{kind}") or (), c.a("replaced_value_float" if x.dtype.is_float else
                                                              "replaced_value_int64", 0)
    if len(values) not in (1, as_int(x.shape[-1])):
        raise c.error("onnx-invalid-graph", f"Imputer: {len(values)} values for {x.type}")
    gone = c.add("isnan", x) if missing != missing else c.add("equal", x, c.const(missing, x.dtype))
    return c.add("where", gone, c.const(values, x.dtype), x)


@onnx_op("Scaler", domain=ML)
def scaler(c: Context) -> Result:
    """(x - offset) * scale in f32, each a number or one per column."""
    y = c.cast(c.x(), f32)
    if c.a("offset"):
        y = c.add("sub", y, c.const(c.a("offset"), f32))
    return c.add("mul", y, c.const(c.a("scale"), f32)) if c.a("scale") else y


@onnx_op("Normalizer", domain=ML)
def normalizer(c: Context) -> Result:
    """Rows divided by their largest element, or the sum of magnitudes, or the Euclidean length; 0 / 0 is left as it is."""
    x, norm = c.cast(c.x(), f32), c.a("norm", "MAX")
    c.expect(norm in ("MAX", "L1", "L2"), f"norm {norm!r}")
    if norm == "MAX":
        size = c.add("reduce_max", x, axes=(-1,))
    elif norm == "L1":
        size = c.add("reduce_sum", c.add("abs", x), axes=(-1,))
    else:
        size = c.add("sqrt", c.add("reduce_sum", c.add("mul", x, x), axes=(-1,)))
    return c.add("div", x, c.add("where", c.add("equal", size, c.const(0, f32)), c.const(1, f32), size))


@onnx_op("OneHotEncoder", domain=ML)
def one_hot_encoder(c: Context) -> Result:
    """A new last axis with 1 at the place of the category; none for what is no category (also where `zeros` is 0, for
    which ONNX would raise an error)."""
    x, known = c.x(), labels_of(c, "cats_int64s", "cats_strings")
    c.expect(known is not None, "a node without categories")
    same = c.add("equal", c.b.unsqueeze(c.cast(x, i64), [x.rank]), c.const(known, i64))
    return c.cast(same, f32)


@onnx_op("FeatureVectorizer", domain=ML)
def feature_vectorizer(c: Context) -> Result:
    """Columns side by side as f32, each operand cut or filled with zeros to its number of columns."""
    sizes = c.a("inputdimensions") or [None] * len(c.inputs)
    out = []
    for v, n in zip(c.all(), sizes, strict=True):
        x = c.cast(c.b.unsqueeze(v, [1]) if v.rank == 1 else v, f32)
        have = as_int(x.shape[1])
        if n is not None and have is not None and n < have:
            x = c.b.slice(x, {1: (0, n, 1)})
        elif n is not None and n != have:
            x = c.add("pad", x, before=[0, 0], after=[0, n - x.shape[1]])
        out.append(x)
    return c.add("concat", *out, axis=1)


# ---- scores ----------------------------------------------------------------------------------------------------------
def transformed(c: Context, y: Value, kind: str) -> Value:
    """Scores [N, classes] after a post_transform."""
    c.expect(kind in ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"), f"post_transform {kind!r}")
    if kind == "NONE":
        return y
    if kind == "SOFTMAX":
        return c.add("softmax", y, axis=1)
    if kind == "LOGISTIC":
        return c.add("sigmoid", y)

    def number(v: float) -> Value:
        return c.const(v, y.dtype)
    if kind == "SOFTMAX_ZERO":  # zeros stay (nearly) zero
        top = c.add("reduce_max", y, axes=(1,))
        small = c.add("less_equal", c.add("abs", y), number(1e-7))
        e = c.add("where", small, c.add("mul", y, c.add("exp", c.add("neg", top))), c.add("exp", c.add("sub", y, top)))
        total = c.add("reduce_sum", e, axes=(1,))
        none = c.add("equal", total, number(0))
        return c.add("where", none, number(0.5), c.add("div", e, c.add("where", none, number(1), total)))
    # the inverse of the normal distribution, by Winitzki's approximation of the error function's inverse (2008)
    z = c.add("sub", c.add("mul", y, number(2)), number(1))
    log = c.add("log", c.add("sub", number(1), c.add("mul", z, z)))
    v = c.add("add", c.add("mul", log, number(0.5)), number(2 / (math.pi * 0.147)))
    root = c.add("sqrt", c.add("sub", c.add("mul", v, v), c.add("mul", log, number(1 / 0.147))))
    size = c.add("sqrt", c.add("sub", root, v))
    return c.add("mul", c.add("mul", c.add("sign", z), size), number(1.41421356))


def both_classes(c: Context, s: Value, kind: str, positive: bool) -> Value:
    """[N, 2] from the one score [N, 1] of a model of two classes: a probability where all weights are `positive`."""
    if positive and kind != "LOGISTIC":
        return c.add("concat", c.add("sub", c.const(1, s.dtype), s), s, axis=1)
    y = c.add("concat", c.add("neg", s), s, axis=1)
    return transformed(c, y, kind) if kind != "PROBIT" else y


def labels_of(c: Context, ints: str, texts: str) -> Sequence[int] | None:
    """The labels of the classes, strings by their numbers; None if there are none."""
    if c.a(ints) or not c.a(texts):
        return c.a(ints) or None
    return [int(n) for n in strings.encode(np.array(c.a(texts), object))]


def as_labels(c: Context, v: Value, texts: str) -> Value:
    """Labels, marked as strings if the node has strings."""
    return c.text(v) if c.a(texts) else v


def class_labels(c: Context, places: Value, labels: Sequence[int] | None, texts: str) -> Value:
    """The labels of classes by their places."""
    c.expect(labels is not None, "a model without labels")
    return as_labels(c, c.add("gather", c.const(labels, i64), places, axis=0), texts)


# ---- linear models ---------------------------------------------------------------------------------------------------
def _rows(c: Context) -> Value:
    """The input as rows of f32 (f64 stays)."""
    x = c.x()
    x = c.b.unsqueeze(x, [0]) if x.rank == 1 else x
    return x if x.dtype is f64 else c.cast(x, f32)


def _linear(c: Context, x: Value, coefficients: Array, shift: Array | None) -> Value:
    y = c.add("matmul", x, c.const(coefficients, x.dtype))
    return y if shift is None or not shift.size else c.add("add", y, c.const(shift, x.dtype))


def _floats(c: Context, name: str) -> Array:
    return np.array(c.a(name) or (), np.float32)


@onnx_op("LinearRegressor", domain=ML)
def linear_regressor(c: Context) -> Result:
    weights = _floats(c, "coefficients").reshape(c.a("targets", 1), -1).T
    return transformed(c, _linear(c, _rows(c), weights, _floats(c, "intercepts")), c.a("post_transform", "NONE"))


@onnx_op("LinearClassifier", domain=ML)
def linear_classifier(c: Context) -> Result:
    """One score for two classes stands for the second: the first one gets what is left to 1, or its opposite before
    LOGISTIC."""
    x, labels, kind = _rows(c), labels_of(c, "classlabels_ints", "classlabels_strings"), c.a("post_transform", "NONE")
    weights = _floats(c, "coefficients").reshape(-1, as_int(x.shape[1]) or 1).T
    y = _linear(c, x, weights, _floats(c, "intercepts"))
    if weights.shape[1] == 1 and labels is not None and len(labels) == 2:
        last, y = y, c.add("concat", c.add("neg", y), y, axis=1)
        scores = transformed(c, y, kind) if kind in ("LOGISTIC", "PROBIT") else both_classes(c, last, kind, True)
    else:
        scores = transformed(c, y, kind)
    if as_int(y.shape[1]) == 1:
        c.expect(not c.a("classlabels_strings"), "one score for one class with a name")
        above = c.add("greater" if kind == "NONE" else "greater_equal", c.b.squeeze(scores, [1]),
                      c.const(0 if kind == "NONE" else 0.5, y.dtype))
        found = c.add("where", above, c.const(labels[0] if labels else 1, i64), c.const(0, i64))
    else:
        found = class_labels(c, c.add("argmax", y, axis=1, keepdims=False), labels, "classlabels_strings")
    return found, c.cast(scores, f32)


# ---- support vectors -------------------------------------------------------------------------------------------------
def _kernel(c: Context, x: Value, vectors: Array) -> Value:
    """[N, vectors]: the kernel of every row with every support vector."""
    gamma, coef, degree = [*(c.a("kernel_params") or ()), 0, 0, 0][:3]
    kind = c.a("kernel_type", "LINEAR")
    dot = c.add("matmul", x, c.const(vectors.T, x.dtype))

    def number(v: float) -> Value:
        return c.const(v, x.dtype)
    match kind:
        case "LINEAR":
            return dot
        case "POLY":
            return c.add("pow", c.add("add", c.add("mul", dot, number(gamma)), number(coef)), number(degree))
        case "SIGMOID":
            return c.add("tanh", c.add("add", c.add("mul", dot, number(gamma)), number(coef)))
        case "RBF":  # the differences themselves: |x|² - 2 x·v + |v|² would cancel
            d = c.add("sub", c.b.unsqueeze(x, [1]), c.const(vectors, x.dtype))
            square = c.add("reduce_sum", c.add("mul", d, d), axes=(2,), keepdims=False)
            return c.add("exp", c.add("mul", square, number(-gamma)))
    raise c.error("onnx-unsupported-variant", f"{c.op}: kernel_type {kind!r} is not supported")


@onnx_op("SVMRegressor", domain=ML)
def svm_regressor(c: Context) -> Result:
    x, n = _rows(c), c.a("n_supports", 0)
    weights = _floats(c, "coefficients").reshape(-1, 1)
    y = _kernel(c, x, _floats(c, "support_vectors").reshape(n, -1)) if n else x
    y = _linear(c, y, weights, _floats(c, "rho")[:1])
    if c.a("one_class"):
        return c.add("where", c.add("greater", y, c.const(0, y.dtype)), c.const(1, y.dtype), c.const(-1, y.dtype))
    return transformed(c, y, c.a("post_transform", "NONE"))


@onnx_op("SVMClassifier", domain=ML)
def svm_classifier(c: Context) -> Result:
    """A score for each pair of classes, in which one of them gets a vote; the most votes win. Probabilities, where they are
    asked for, are those of Platt (1999) of each pair, coupled."""
    x, counts = _rows(c), c.a("vectors_per_class") or ()
    texts = "classlabels_strings"
    labels = labels_of(c, "classlabels_ints", texts)
    c.expect(labels is not None, "a model without labels")
    assert labels is not None
    total, classes, kind = sum(counts), len(labels), c.a("post_transform", "NONE")
    rho = _floats(c, "rho")
    if not total:
        y = _linear(c, x, _floats(c, "coefficients").reshape(classes, -1).T, rho[:1])
        found = class_labels(c, c.add("argmax", y, axis=1, keepdims=False), labels, texts)
        return found, transformed(c, c.cast(y, f32), kind)
    coefficients, starts = _floats(c, "coefficients").reshape(-1, total), np.cumsum([0, *counts])
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    weights, first, second = np.zeros((total, len(pairs))), np.zeros((len(pairs), classes)), np.zeros((len(pairs), classes))
    for p, (i, j) in enumerate(pairs):
        a, b = slice(starts[i], starts[i + 1]), slice(starts[j], starts[j + 1])
        weights[a, p], weights[b, p] = coefficients[j - 1, a], coefficients[i, b]
        first[p, i] = second[p, j] = 1
    y = _linear(c, _kernel(c, x, _floats(c, "support_vectors").reshape(total, -1)), weights, rho[:len(pairs)])
    won = c.cast(c.add("greater", y, c.const(0, y.dtype)), f32)
    votes = _linear(c, won, first - second, second.sum(0))
    if c.a("prob_a"):
        y = c.cast(y, f32)
        steep = c.add("add", c.add("mul", y, c.const(c.a("prob_a"), f32)), c.const(c.a("prob_b"), f32))
        prob = c.add("clip", c.add("sigmoid", c.add("neg", steep)), min=1e-7, max=1 - 1e-7)
        both = c.add("concat", prob, c.add("sub", c.const(1, f32), prob), axis=1)
        place = np.zeros((classes, classes), np.int64)
        for p, (i, j) in enumerate(pairs):
            place[i, j], place[j, i] = p, len(pairs) + p
        scores = transformed(c, c.add("couple", c.add("gather", both, c.const(place, i64), axis=1)), kind)
    else:
        scores = both_classes(c, y, kind, False) if classes == 2 else transformed(c, y, kind)
    winner = c.add("argmax", votes, axis=1, keepdims=False)
    return class_labels(c, winner, labels, texts), c.cast(scores, f32)


