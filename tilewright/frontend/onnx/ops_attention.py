"""Attention as com.microsoft has it: projections, heads, masks, caches and rotary positions, put together from products and
softmax, which fusion makes one kernel of.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import f32, i64
from tilewright.frontend.onnx.ops_microsoft import microsoft, real
from tilewright.frontend.onnx.table import Context, Result
from tilewright.graph.infer import dim, same
from tilewright.graph.ir import Value
from tilewright.loop.ir import Expr, as_int

MASKED = -10000.0


# ---- parts -----------------------------------------------------------------------------------------------------------
def _heads(c: Context, x: Value, heads: int) -> Value:
    """[B, S, heads · D] → [B, heads, S, D]."""
    b, s, h = x.shape
    return c.add("transpose", c.b.reshape(x, [b, s, heads, dim(h // heads)]), perm=(0, 2, 1, 3))


def _flat(c: Context, x: Value) -> Value:
    """[B, heads, S, D] → [B, S, heads · D]."""
    b, n, s, d = x.shape
    return c.b.reshape(c.add("transpose", x, perm=(0, 2, 1, 3)), [b, s, dim(n * d)])


def _attend(c: Context, q: Value, k: Value, v: Value, scale: float, biases: Sequence[Value], cap: float = 0.0) -> Value:
    """softmax(q kᵀ · scale + biases) v, the scores through cap · tanh(· / cap) where `cap` is not 0. Fewer heads of keys and
    values than of queries serve neighbouring ones together."""
    k, v = (_shared(c, t, q.shape[1]) for t in (k, v))
    y = c.add("matmul", q, k, transpose_b=True)
    y = c.add("mul", y, c.const(scale, y.dtype))
    if cap:
        y = c.add("mul", c.add("tanh", c.add("mul", y, c.const(1 / cap, y.dtype))), c.const(cap, y.dtype))
    for bias in biases:
        y = c.add("add", y, c.cast(bias, y.dtype))
    return c.add("matmul", c.add("softmax", y, axis=-1), v)


def _shared(c: Context, x: Value, heads: Expr) -> Value:
    """[B, N, T, D] → [B, heads, T, D]: each head stands for as many neighbours; nothing is copied."""
    b, n, t, d = x.shape
    times = dim(heads // n)
    if as_int(times) == 1:
        return x
    return c.b.reshape(c.add("expand", c.b.unsqueeze(x, [2]), shape=[b, n, times, t, d]), [b, heads, t, d])


def _size(c: Context, x: Value, axis: int) -> Value:
    return c.b.squeeze(c.b.slice(c.add("shape_of", x), {0: (axis, axis + 1, 1)}), [0])


def _count(c: Context, size: Value) -> Value:
    return c.add("range", c.const(0, i64), size, c.const(1, i64))


def _hidden(c: Context, keep: Value, value: float) -> Value:
    """0 where `keep` holds, else `value`."""
    return c.add("where", keep, c.const(0, f32), c.const(value, f32))


def _causal(c: Context, queries: Value, keys: Value, behind: Value) -> Value:
    """[S, T]: keys after a query are hidden, where `behind` keys come before the first query."""
    rows = c.b.unsqueeze(c.add("add", _count(c, _size(c, queries, 2)), behind), [1])
    return _hidden(c, c.add("less_equal", _count(c, _size(c, keys, 2)), rows), float(np.finfo(np.float32).min))


def _key_mask(c: Context, mask: Value, keys: Value, value: float) -> Value:
    """A mask of keys as a bias: [B] lengths, [2 B] ends and beginnings, [B, T] or [B, S, T] with 0 for what is hidden."""
    batch = keys.shape[0]
    if mask.rank == 1:
        place = _count(c, _size(c, keys, 2))
        ends = c.cast(c.b.reshape(c.b.slice(mask, {0: (0, batch, 1)}), [batch, 1]), i64)
        keep = c.add("less", place, ends)
        if same(mask.shape[0], batch) is not True:
            c.expect(same(mask.shape[0], dim(batch * 2)) is not False, f"a mask of {mask.type}")
            starts = c.cast(c.b.reshape(c.b.slice(mask, {0: (batch, dim(batch * 2), 1)}), [batch, 1]), i64)
            keep = c.add("logical_and", keep, c.add("greater_equal", place, starts))
        return c.b.unsqueeze(_hidden(c, keep, value), [1, 2])
    keep = c.add("not_equal", mask, c.const(0, mask.dtype))
    return c.b.unsqueeze(_hidden(c, keep, value), [1, 2] if mask.rank == 2 else [1])


def _with_past(c: Context, past: Value | None, new: Value) -> Value:
    return new if past is None else c.add("concat", past, new, axis=2)


def _scale(c: Context, width: Expr) -> float:
    d = as_int(width)
    given = c.a("scale")
    c.expect(bool(given) or d is not None, "heads of unknown width")
    return float(given) if given else 1 / math.sqrt(d or 1)


# ---- rotary positions ------------------------------------------------------------------------------------------------
def _rotated(c: Context, x: Value, cos: Value, sin: Value, interleaved: bool) -> Value:
    """[B, N, S, D] with pairs of the first elements (neighbours, or half against half) turned by angles [B or 1, S, R]."""
    b, n, s, d = x.shape
    r = cos.shape[-1]
    turned, rest = c.b.slice(x, {3: (0, dim(r * 2), 1)}), c.b.slice(x, {3: (dim(r * 2), d, 1)})
    cos, sin = (c.cast(c.b.unsqueeze(v, [1]), x.dtype) for v in (cos, sin))
    if interleaved:
        pairs = c.b.reshape(turned, [b, n, s, r, 2])
        one, two = (c.b.squeeze(c.b.slice(pairs, {4: (k, k + 1, 1)}), [4]) for k in range(2))
    else:
        one, two = c.b.slice(turned, {3: (0, r, 1)}), c.b.slice(turned, {3: (r, dim(r * 2), 1)})
    first = c.add("sub", c.add("mul", one, cos), c.add("mul", two, sin))
    second = c.add("add", c.add("mul", one, sin), c.add("mul", two, cos))
    if interleaved:
        y = c.b.reshape(c.add("concat", c.b.unsqueeze(first, [4]), c.b.unsqueeze(second, [4]), axis=4), turned.shape)
    else:
        y = c.add("concat", first, second, axis=3)
    return y if as_int(rest.shape[3]) == 0 else c.add("concat", y, rest, axis=3)


@microsoft("RotaryEmbedding", (4, 4), interleaved=0, num_heads=0, rotary_embedding_dim=0, scale=1.0, is_packed_batching=0)
def rotary_embedding(c: Context) -> Result:
    """Positions are one number, that of the first element, or one for each."""
    x, places, cos, sin = (c.x(k) for k in range(4))
    flat = x.rank == 3
    width = dim(cos.shape[1] * 2) if not c.a("rotary_embedding_dim") else None
    heads = c.a("num_heads") or (as_int(dim(x.shape[-1] // width)) if width is not None else 0) or 0
    c.expect(not flat or heads > 0, "a number of heads that is not given")
    y = _heads(c, x, heads) if flat else x
    if places.rank == 1:
        at = c.b.unsqueeze(c.add("add", _count(c, _size(c, y, 2)), c.cast(c.reshape(places, []), i64)), [0])
    else:
        at = places
    at = c.b.in_bounds(at, [cos.shape[0]], from_front=True)
    y = _rotated(c, y, c.add("gather", cos, at, axis=0), c.add("gather", sin, at, axis=0), bool(c.a("interleaved")))
    return _flat(c, y) if flat else y


# ---- the operators ---------------------------------------------------------------------------------------------------
_ATTENTION: dict[str, Any] = {
    "num_heads": int, "unidirectional": 0, "mask_filter_value": MASKED, "scale": float, "qkv_hidden_sizes": tuple,
    "past_present_share_buffer": 0, "do_rotary": 0, "rotary_embedding_dim": 0}


@microsoft("Attention", (2, 7), (1, 2), **_ATTENTION)
def attention(c: Context) -> Result:
    """One product makes queries, keys and values."""
    y = c.add("matmul", c.x(0), c.x(1))
    return _attention(c, y if c.opt(2) is None else c.add("add", y, c.x(2)), c.opt(3), c.opt(4), c.opt(5))


@microsoft("QAttention", (5, 9), (1, 2), **_ATTENTION)
def qattention(c: Context) -> Result:
    """The same of integers with scales."""
    x, w = real(c, c.x(0), c.x(3), c.opt(6)), real(c, c.x(1), c.x(4), c.opt(7), 1)
    return _attention(c, c.add("add", c.add("matmul", x, w), c.x(2)), c.opt(5), c.opt(8), None)


def _attention(c: Context, y: Value, mask: Value | None, past: Value | None, bias: Value | None) -> Result:
    c.expect(not c.a("do_rotary") and not c.a("past_present_share_buffer"), "do_rotary or a shared buffer")
    n = c.a("num_heads")
    sizes: list[Any] = list(c.a("qkv_hidden_sizes") or [dim(y.shape[2] // 3)] * 3)
    start: Any = 0
    parts: list[Value] = []
    for size in sizes:
        end = dim(start + size)
        parts.append(_heads(c, c.b.slice(y, {2: (start, end, 1)}), n))
        start = end
    q, k, v = parts
    behind = c.const(0, i64)
    if past is not None:
        pk, pv = (c.b.squeeze(c.b.slice(past, {0: (j, j + 1, 1)}), [0]) for j in range(2))
        behind, k, v = _size(c, pk, 2), _with_past(c, pk, k), _with_past(c, pv, v)
    biases = [] if bias is None else [bias]
    if mask is not None:
        biases.append(_key_mask(c, mask, k, c.a("mask_filter_value")))
    if c.a("unidirectional"):
        biases.append(_causal(c, q, k, behind))
    out = _flat(c, _attend(c, q, k, v, _scale(c, q.shape[3]), biases))
    present = c.add("concat", c.b.unsqueeze(k, [0]), c.b.unsqueeze(v, [0]), axis=0) if c.wants(1) else None
    return out, present


@microsoft("MultiHeadAttention", (1, 10), (1, 4), num_heads=int, mask_filter_value=MASKED, scale=float, unidirectional=0)
def multi_head_attention(c: Context) -> Result:
    """Queries, keys and values apart, or packed as [B, S, heads, 3, D], or keys with values as [B, T, heads, 2, D]; keys and
    values of another sequence may already be split into heads."""
    n, x, bias = c.a("num_heads"), c.x(0), c.opt(3)
    c.expect(not c.wants(3), "the scores as an output")

    def pack(v: Value) -> list[Value]:
        return [c.add("transpose", c.b.squeeze(c.b.slice(v, {3: (j, j + 1, 1)}), [3]), perm=(0, 2, 1, 3))
                for j in range(as_int(v.shape[3]) or 0)]

    def biased(v: Value, j: int) -> Value:
        """Before heads are split: the j-th third of the bias."""
        if bias is None:
            return v
        width = v.shape[-1]
        first: Any = (0, x.shape[-1], dim(bias.shape[0] - width))[j]
        return c.add("add", v, c.b.slice(bias, {0: (first, dim(first + width), 1)}))
    if x.rank == 5:
        c.expect(bias is None, "a bias of packed operands")
        q, k, v = pack(x)
    elif c.opt(1) is not None and c.x(1).rank == 5:
        c.expect(bias is None, "a bias of packed operands")
        q, (k, v) = _heads(c, x, n), pack(c.x(1))
    else:
        c.expect(c.opt(1) is not None and c.opt(2) is not None, "queries alone")
        q = _heads(c, biased(x, 0), n)
        k, v = (c.x(j) if c.x(j).rank == 4 else _heads(c, biased(c.x(j), j), n) for j in (1, 2))
    behind = c.const(0, i64)
    if c.opt(6) is not None:
        behind = _size(c, c.x(6), 2)
        k, v = _with_past(c, c.opt(6), k), _with_past(c, c.opt(7), v)
    biases = [] if c.opt(5) is None else [c.x(5)]
    if c.opt(4) is not None:
        biases.append(_key_mask(c, c.x(4), k, c.a("mask_filter_value")))
    if c.a("unidirectional"):
        biases.append(_causal(c, q, k, behind))
    out = _flat(c, _attend(c, q, k, v, _scale(c, q.shape[3]), biases))
    return out, k if c.wants(1) else None, v if c.wants(2) else None


@microsoft("GroupQueryAttention", (7, 14), (1, 4), num_heads=int, kv_num_heads=int, scale=float, do_rotary=0,
           rotary_interleaved=0, local_window_size=-1, softcap=0.0, smooth_softmax=-1, qk_output=0, k_quant_type="NONE",
           v_quant_type="NONE", kv_cache_bit_width=0)
def group_query_attention(c: Context) -> Result:
    """New keys and values are put behind the past ones of each sequence (seqlens_k + 1 in all). The buffer grows by as many;
    where total_sequence_length is known, only if it is too small. A query sees what is not after it."""
    n, kv, places, cos, sin = c.a("num_heads"), c.a("kv_num_heads"), c.opt(9), c.opt(7), c.opt(8)
    c.expect(c.a("smooth_softmax") in (-1, 0) and c.opt(11) is None and not c.wants(3), "smooth_softmax, sinks, scores")
    c.expect(c.a("k_quant_type") == c.a("v_quant_type") == "NONE", "a quantized cache")
    x = c.x(0)
    if c.opt(1) is None:
        width = dim(x.shape[2] // (n + 2 * kv))
        ends: list[Any] = [0, dim(width * n), dim(width * (n + kv)), x.shape[2]]
        q, k, v = (_heads(c, c.b.slice(x, {2: (ends[j], ends[j + 1], 1)}), h) for j, h in enumerate((n, kv, kv)))
    else:
        q, k, v = _heads(c, x, n), _heads(c, c.x(1), kv), _heads(c, c.x(2), kv)
    batch = q.shape[0]
    past_k, past_v = c.opt(3), c.opt(4)
    if past_k is not None and as_int(past_k.shape[2]) == 0:
        past_k = past_v = None
    one, news = c.const(1, i64), _size(c, q, 2)
    total = c.add("add", c.cast(c.b.reshape(c.x(5), [batch, 1]), i64), one)  # [B, 1]
    before = c.add("sub", total, news) if past_k is not None else c.add("full", shape=[batch, 1], value=0, dtype=i64)
    at = c.add("add", before, _count(c, news))  # [B, S]: the place of each query
    size = q.shape[2] if past_k is None else _room(c, past_k, q)
    if past_k is not None:
        at = c.b.in_bounds(at, [size])
    if c.a("do_rotary"):
        c.expect(cos is not None and sin is not None, "do_rotary without angles")
        assert cos is not None and sin is not None
        where = c.b.in_bounds(at if places is None else places, [cos.shape[0]], from_front=places is not None)
        angles = [c.add("gather", t, where, axis=0) for t in (cos, sin)]
        q, k = (_rotated(c, t, angles[0], angles[1], bool(c.a("rotary_interleaved"))) for t in (q, k))
    if past_k is not None and past_v is not None:
        k, v = _appended(c, past_k, k, before, size), _appended(c, past_v, v, before, size)
    keys = c.b.reshape(_count(c, _size(c, k, 2)), [1, 1, k.shape[2]])
    row = c.b.unsqueeze(at, [2])
    keep = c.add("less_equal", keys, row)
    window = c.a("local_window_size")
    if window > 0:
        keep = c.add("logical_and", keep, c.add("greater", keys, c.add("sub", row, c.const(window, i64))))
    biases = [c.b.unsqueeze(_hidden(c, keep, float(np.finfo(np.float32).min)), [1])]
    if c.opt(10) is not None:
        biases.append(c.x(10))
    out = _attend(c, q, k, v, _scale(c, q.shape[3]), biases, c.a("softcap"))
    return _flat(c, out), k if c.wants(1) else None, v if c.wants(2) else None


def _room(c: Context, past: Value, new: Value) -> Expr:
    """For how many elements the buffer has places: past and new ones, or total_sequence_length if it is known."""
    p, s = past.shape[2], new.shape[2]
    known = as_int(c.dims(6)[0]) if c.x(6).data is not None else None
    return dim(p + s) if known is None or as_int(p) is None else dim(max(known, as_int(p) or 0))


def _appended(c: Context, past: Value, new: Value, before: Value, size: Expr) -> Value:
    """Past elements [B, N, P, D] up to `before` of each batch, and the new ones [B, N, S, D] from there on."""
    b, n, _, d = past.shape
    at = c.b.reshape(_count(c, _size(c, c.add("full", shape=[size], value=0, dtype=i64), 0)), [1, 1, size, 1])
    first = c.b.reshape(before, [b, 1, 1, 1])

    def taken(v: Value, place: Value) -> Value:
        last = c.add("sub", _size(c, v, 2), c.const(1, i64))
        near = c.add("max", c.add("min", place, last), c.const(0, i64))
        return c.add("gather_elements", v, c.add("expand", near, shape=[b, n, size, d]), axis=2)
    old = taken(past, at)
    fresh = taken(new, c.add("sub", at, first))
    return c.add("where", c.add("less", at, first), old, fresh)
