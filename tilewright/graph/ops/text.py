"""Operators on the characters of strings. Strings are i64 numbers (core/strings.py), which other operators move, select and
compare for equality as they do integers; what looks into them, or makes new ones, runs on the host.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import boolean, i64
from tilewright.core.errors import UserError
from tilewright.core.strings import decode, encode
from tilewright.graph.infer import broadcast, expect, expect_dtype, expect_rank, operands
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import Var

_HOST = "it looks into the characters of strings"
_PROMISED = Attr("dims", None, "the result's shape where the model declares it; what is of another shape is an error")


def _each(f: Any, kind: Any, *arrays: Array) -> Array:
    """A function of texts for each element, as an array of `kind`."""
    columns = [decode(a).reshape(-1).tolist() for a in arrays]
    return np.array([f(*row) for row in zip(*columns, strict=True)], kind).reshape(arrays[0].shape)


def promised(name: str, attrs: dict[str, Any], out: Array) -> Array:
    """`out`, which must have the shape that the model declares, if it does."""
    if attrs["shape"] is not None and out.shape != tuple(attrs["shape"]):
        raise UserError("run-shape", f"{name}: the result's shape is {list(out.shape)}, the model declares "
                        f"{list(attrs['shape'])}")
    return out


# ---- concatenation, matching -----------------------------------------------------------------------------------------
def _infer_concat(op: Operation) -> Sequence[TensorType]:
    a, b = operands(op, 2)
    for v in (a, b):
        expect_dtype(op, v, v.dtype is i64, "strings")
    return [TensorType(i64, broadcast(op, a.shape, b.shape))]


def _concat(attrs: dict[str, Any], a: Array, b: Array) -> Array:
    return encode(_each(lambda x, y: x + y, object, *np.broadcast_arrays(a, b)))


def _infer_match(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    try:
        re.compile(op.attrs["pattern"])
    except re.error as e:
        raise UserError("attribute-invalid", f"{op.op}: {op.attrs['pattern']!r} is no regular expression: {e}") from e
    return [TensorType(boolean, x.shape)]


def _match(attrs: dict[str, Any], x: Array) -> Array:
    pattern = re.compile(attrs["pattern"])
    return _each(lambda t: pattern.fullmatch(t) is not None, np.bool_, x)


# ---- splitting -------------------------------------------------------------------------------------------------------
def _infer_split(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    pieces = Var("pieces") if op.attrs["shape"] is None else op.attrs["shape"][-1]
    return [TensorType(i64, (*x.shape, pieces)), TensorType(i64, x.shape)]


def _split(attrs: dict[str, Any], x: Array) -> tuple[Array, Array]:
    most = -1 if attrs["maxsplit"] is None else attrs["maxsplit"]
    parts = [t.split(attrs["delimiter"] or None, most) for t in decode(x).reshape(-1).tolist()]
    counts = np.array([len(p) for p in parts], np.int64).reshape(x.shape)
    width = max([len(p) for p in parts], default=0)
    padded = np.array([p + [""] * (width - len(p)) for p in parts], object).reshape((*x.shape, width))
    return promised("string_split", attrs, encode(padded)), counts


# ---- normalization ---------------------------------------------------------------------------------------------------
def _infer_normalize(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_rank(op, x, 1, 2)
    expect(op.attrs["case"] in ("", "NONE", "LOWER", "UPPER"), "attribute-invalid",
           lambda: f"{op.op}: the case {op.attrs['case']!r} is none of NONE, LOWER, UPPER")
    return [TensorType(i64, op.attrs["shape"] or (*x.shape[:-1], Var("words")))]


def _normalize(attrs: dict[str, Any], x: Array) -> Array:
    """Without the stop words, in the case asked for; one empty string if none is left."""
    fold = (lambda t: t) if attrs["case_sensitive"] else str.lower
    change = {"LOWER": str.lower, "UPPER": str.upper}.get(attrs["case"], str)
    stop = {fold(t) for t in attrs["stopwords"]}
    kept = [change(t) for t in decode(x).reshape(-1).tolist() if fold(t) not in stop] or [""]
    return promised("string_normalize", attrs, encode(np.array(kept, object)).reshape((*x.shape[:-1], -1)))


# ---- numbers ---------------------------------------------------------------------------------------------------------
def _written(x: Any) -> str:
    if isinstance(x, bool | np.bool_):
        return str(int(x))
    if isinstance(x, int | np.integer):
        return str(int(x))
    value = float(x)
    if np.isfinite(value):
        return str(x)
    return "NaN" if np.isnan(value) else "INF" if value > 0 else "-INF"


def _read(text: str, is_float: bool) -> Any:
    try:
        return float(text) if is_float or not re.fullmatch(r"\s*[+-]?\d+\s*", text) else int(text)
    except ValueError as e:
        raise UserError("run-value", f"string_to_number: {text!r} is no number") from e


def _to_number(attrs: dict[str, Any], x: Array) -> Array:
    to = attrs["to"]
    wide = np.float64 if to.is_float else object
    values = _each(lambda t: _read(t, to.is_float), wide, x)
    try:
        return values.astype(to.numpy())
    except (OverflowError, ValueError) as e:
        raise UserError("run-value", f"string_to_number: {e}") from e


RECORDS = (
    OpRecord("string_concat", "opaque", _infer_concat, _concat, host=_HOST, doc="Two strings one after the other."),
    OpRecord("regex_full_match", "opaque", _infer_match, _match, attrs={"pattern": Attr("str")}, host=_HOST,
             doc="Whether a string as a whole matches a regular expression (Python's syntax)."),
    OpRecord("string_split", "opaque", _infer_split, _split, host=_HOST,
             attrs={"delimiter": Attr("str", "", "empty: any run of white space"), "maxsplit": Attr("int", None),
                    "shape": _PROMISED},
             doc="The pieces of each string along a new last axis, filled up with empty strings, and their numbers."),
    OpRecord("string_normalize", "opaque", _infer_normalize, _normalize, host=_HOST,
             attrs={"case": Attr("str", "NONE", "NONE, LOWER or UPPER"), "case_sensitive": Attr("bool", False),
                    "stopwords": Attr("strs", ()), "shape": _PROMISED},
             doc="Strings without stop words, in one case."),
    OpRecord("number_to_string", "opaque", lambda op: [TensorType(i64, operands(op, 1)[0].shape)],
             lambda a, x: encode(np.array([_written(v) for v in x.reshape(-1)], object).reshape(x.shape)), host=_HOST,
             doc="Numbers as the shortest text that reads back the same; NaN, INF, -INF; booleans as 1 and 0."),
    OpRecord("string_to_number", "opaque", lambda op: [TensorType(op.attrs["to"], operands(op, 1)[0].shape)], _to_number,
             attrs={"to": Attr("dtype")}, host=_HOST, doc="Numbers read from text, with or without a fraction or exponent."),
)
