"""ONNX's operators on strings, vocabularies and image files.

Strings are numbers in the graph, so looking them up in a vocabulary (LabelEncoder, TfIdfVectorizer) is compiled; what looks
into their characters becomes a host operator.
"""
from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from tilewright.core import strings
from tilewright.core.dtype import DType, dtype, f32, i64
from tilewright.frontend.onnx.structure import STRING
from tilewright.frontend.onnx.table import Array, Context, Result, onnx_op
from tilewright.graph.ir import Value
from tilewright.loop.ir import as_int


def _declared(c: Context, k: int, rank: int) -> Any:
    """The shape that the model declares for output `k`, if it says so and the rank fits."""
    shape = c.declared.get(c.outputs[k])
    return shape if shape is not None and len(shape) == rank else None


@onnx_op("StringConcat", host="string_concat")
def concat(c: Context) -> Result:
    return c.add("string_concat", c.x(0), c.x(1))


@onnx_op("RegexFullMatch", host="regex_full_match")
def match(c: Context) -> Result:
    return c.add("regex_full_match", c.x(), pattern=c.a("pattern", ""))


@onnx_op("StringSplit", host="string_split")
def split(c: Context) -> Result:
    return c.add_all("string_split", c.x(), delimiter=c.a("delimiter", ""), **_given(c, "maxsplit"),
                     **_promise(c, c.x().rank + 1))


@onnx_op("StringNormalizer", host="string_normalize")
def normalize(c: Context) -> Result:
    return c.add("string_normalize", c.x(), case=c.a("case_change_action", "NONE"),
                 case_sensitive=bool(c.a("is_case_sensitive", 0)), stopwords=c.a("stopwords", ()), **_promise(c, c.x().rank))


@onnx_op("ImageDecoder", host="image_decode")
def image(c: Context) -> Result:
    return c.add("image_decode", c.x(), format=c.a("pixel_format", "RGB"), **_promise(c, 3))


def _given(c: Context, name: str) -> dict[str, Any]:
    return {} if c.a(name) is None else {name: c.a(name)}


def _promise(c: Context, rank: int) -> dict[str, Any]:
    shape = _declared(c, 0, rank)
    return {} if shape is None else {"shape": shape}


# ---- vocabularies ----------------------------------------------------------------------------------------------------
_KINDS: dict[str, DType] = {"int64s": i64, "floats": f32, "strings": i64}


def _column(c: Context, which: str) -> tuple[Array, bool] | None:
    """The keys or values of a LabelEncoder and whether they are strings; None if it has none."""
    for kind, element in _KINDS.items():
        given = c.a(f"{which}_{kind}")
        if given:
            text = kind == "strings"
            return (strings.encode(np.array(given, object)) if text else np.array(given, element.numpy())), text
    proto = c.a(f"{which}_tensor")
    return None if proto is None else (c.tensor(proto), proto.data_type == STRING)


@onnx_op("LabelEncoder", domain="ai.onnx.ml")
def classes(c: Context) -> Result:
    """Version 1: strings to their places among `classes_strings`, and back."""
    known = strings.encode(np.array(c.a("classes_strings", ()), object))
    places = np.arange(len(known), dtype=np.int64)
    if c.is_text(c.x()):
        return _looked_up(c, known, places, np.int64(c.a("default_int64", -1)))
    default = strings.encode(np.array(c.a("default_string", "_Unused"), object))
    return c.text(_looked_up(c, places, known, default))


@onnx_op("LabelEncoder", since=2, domain="ai.onnx.ml")
def labels(c: Context) -> Result:
    keys, values = _column(c, "keys"), _column(c, "values")
    if keys is None or values is None or keys[0].size != values[0].size:
        raise c.error("onnx-invalid-graph", "LabelEncoder: as many keys as values are needed")
    if keys[1] != c.is_text(c.x()):
        raise c.error("onnx-invalid-graph", "LabelEncoder: the input and the keys are of different types")
    table, text = values
    default: Any = None
    if c.a("default_tensor") is not None:
        default = c.tensor(c.a("default_tensor")).reshape(-1)[0]
    elif text:
        default = strings.encode(np.array(c.a("default_string", "_Unused"), object))
    elif dtype(table.dtype).is_float:
        default = c.a("default_float", -0.0)
    else:
        default = c.a("default_int64", -1)
    out = _looked_up(c, keys[0].reshape(-1), table.reshape(-1), np.asarray(default, table.dtype))
    return c.text(out) if text else out


def _looked_up(c: Context, keys: Array, values: Array, default: Any) -> Value:
    """values[k] where the input is keys[k] (the first such k; NaN is equal to itself), else the default."""
    x = c.x()
    if not keys.size:
        return c.add("expand", c.const(default, dtype(values.dtype)), shape=x.shape)
    row = c.const(keys.reshape((1,) * x.rank + (-1,)), x.dtype)
    wide = c.b.unsqueeze(x, [x.rank])
    same = c.add("equal", wide, row)
    if x.dtype.is_float:
        same = c.add("logical_or", same, c.add("logical_and", c.add("isnan", wide), c.add("isnan", row)))
    found = c.add("reduce_any", same, axes=(x.rank,), keepdims=False)
    place = c.add("argmax", c.cast(same, dtype("i32")), axis=x.rank, keepdims=False)
    taken = c.add("gather", c.const(values, dtype(values.dtype)), place, axis=0)
    return c.add("where", found, taken, c.const(default, dtype(values.dtype)))


# ---- n-grams ---------------------------------------------------------------------------------------------------------
@onnx_op("TfIdfVectorizer")
def tf_idf(c: Context) -> Result:
    """How often each n-gram of the pool stands in a row, its elements 0 … max_skip_count places apart."""
    x = c.x()
    if x.rank not in (1, 2):
        raise c.error("rank-mismatch", f"TfIdfVectorizer: the input is {x.type}")
    length = as_int(x.shape[-1])
    if length is None:
        raise c.error("onnx-dynamic-value", "TfIdfVectorizer: the length of the input must be known",
                      "set the symbolic sizes")
    text = c.is_text(x)
    pool = strings.encode(np.array(c.a("pool_strings", ()), object)) if text else np.array(c.a("pool_int64s", ()), np.int64)
    starts, places = list(c.a("ngram_counts")), list(c.a("ngram_indexes"))
    low, high, skips = c.a("min_gram_length"), c.a("max_gram_length"), c.a("max_skip_count")
    rows = x if x.rank == 2 else c.b.unsqueeze(x, [0])
    rows = c.cast(rows, i64)
    counts, first = [], 0
    for n, (start, end) in enumerate(zip(starts, [*starts[1:], pool.size], strict=True), start=1):
        if not 0 <= start <= end <= pool.size or (end - start) % n:
            raise c.error("onnx-invalid-graph", f"TfIdfVectorizer: ngram_counts {starts} do not cut the pool into n-grams")
        grams = pool[start:end].reshape(-1, n)
        where = np.array(places[first:first + len(grams)], np.int64)
        first += len(grams)
        if len(where) != len(grams) or where.size and where.min() < 0:
            raise c.error("onnx-invalid-graph", f"TfIdfVectorizer: {len(places)} ngram_indexes")
        if low <= n <= high and len(grams):
            counts.append((where, _gram_counts(c, rows, grams, skips if n > 1 else 0, length)))
    size = max(places, default=-1) + 1
    total = _laid_out(c, counts, size, rows)
    weights = c.const(np.array(c.a("weights", ()) or [1.0] * len(places)), f32)
    total = _weighted(c, total, weights, np.array(places, np.int64), size)
    return total if x.rank == 2 else c.b.squeeze(total, [0])


def _gram_counts(c: Context, rows: Value, grams: Array, skips: int, length: int) -> Value:
    """[rows, grams]: the number of places where a gram's elements stand `skip + 1` apart, over all skips."""
    found = []
    for skip in range(skips + 1):
        n, step = grams.shape[1], skip + 1
        places = length - (n - 1) * step
        if places < 1:
            break
        hits = []
        for k in range(n):
            part = c.b.unsqueeze(c.b.slice(rows, {1: (k * step, k * step + places, 1)}), [2])
            hits.append(c.add("equal", part, c.const(grams[:, k].reshape(1, 1, -1), i64)))
        both = reduce(lambda a, b: c.add("logical_and", a, b), hits)
        found.append(c.add("reduce_sum", c.cast(both, f32), axes=(1,), keepdims=False))
    if not found:
        return c.add("expand", c.const(0.0, f32), shape=(rows.shape[0], len(grams)))
    return reduce(lambda a, b: c.add("add", a, b), found)


def _laid_out(c: Context, counts: list[tuple[Array, Value]], size: int, rows: Value) -> Value:
    """[rows, size]: the counts of the n-grams at their places, 0 elsewhere."""
    zero = c.add("expand", c.const(0.0, f32), shape=(rows.shape[0], 1))
    columns = c.add("concat", *[v for _, v in counts], zero, axis=1)
    source = np.full(size, sum(len(where) for where, _ in counts), np.int64)
    at = 0
    for where, _ in counts:
        source[where] = np.arange(at, at + len(where))
        at += len(where)
    return c.add("gather", columns, c.const(source, i64), axis=1)


def _weighted(c: Context, total: Value, weights: Value, places: Array, size: int) -> Value:
    mode = c.a("mode")
    if mode not in ("TF", "IDF", "TFIDF"):
        raise c.error("onnx-invalid-graph", f"TfIdfVectorizer: the mode {mode!r} is none of TF, IDF, TFIDF")
    if mode == "TF":
        return total
    by_place = np.ones(size, np.float32)
    assert weights.data is not None
    if weights.data.size != places.size:
        raise c.error("onnx-invalid-graph", f"TfIdfVectorizer: {weights.data.size} weights for {places.size} n-grams")
    by_place[places] = weights.data
    factor = c.const(by_place.reshape(1, -1), f32)
    if mode == "TFIDF":
        return c.add("mul", total, factor)
    return c.add("where", c.add("greater", total, c.const(0.0, f32)), factor, c.const(0.0, f32))
