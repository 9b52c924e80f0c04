"""ONNX's Einsum: an equation becomes diagonals, transposes, products of two operands at a time and sums.

Each pair of operands is one batched matrix product: labels of both that are kept are its batch, labels of both that are
summed are K, the others are M and N.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.frontend.onnx.table import Context, Result, onnx_op
from tilewright.graph.infer import is_one, product
from tilewright.graph.ir import Value
from tilewright.loop.ir import Expr, const


@dataclass
class _Term:
    """An operand and the label of each of its axes; axes of an ellipsis are labelled by their number from the back."""
    value: Value
    labels: list[str]


@onnx_op("Einsum")
def einsum(c: Context) -> Result:
    terms, out = _parsed(c)
    sizes: dict[str, Expr] = {}
    for t in terms:
        for label, d in zip(t.labels, t.value.shape, strict=True):
            if label not in sizes or is_one(sizes[label]):
                sizes[label] = d
    terms = [_diagonal(c, t) for t in terms]
    for t in terms:
        wanted = [sizes[label] for label in t.labels]
        if any(is_one(d) and not is_one(w) for d, w in zip(t.value.shape, wanted, strict=True)):
            t.value = c.add("expand", t.value, shape=wanted)
    total = terms[0]
    for k, t in enumerate(terms[1:], 2):
        later = {*out, *[label for u in terms[k:] for label in u.labels]}
        total = _product(c, _summed(c, total, {*later, *t.labels}), _summed(c, t, {*later, *total.labels}), later, sizes)
    return _arranged(c, _summed(c, total, set(out)), out)


def _parsed(c: Context) -> tuple[list[_Term], list[str]]:
    """The operands with their labels, and the labels of the result."""
    equation = c.a("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    parts = left.split(",")
    if len(parts) != len(c.inputs):
        raise c.error("onnx-invalid-graph", f"Einsum: {equation!r} has {len(parts)} operands, {len(c.inputs)} are given")
    terms = [_Term(v, _labels(c, p, v.rank)) for p, v in zip(parts, c.all(), strict=True)]
    every = [label for t in terms for label in t.labels]
    dots = sorted({label for label in every if not label.isalpha()}, key=int, reverse=True)
    if arrow:
        before, ellipsis, after = right.partition("...")
        out = [*before, *(dots if ellipsis else []), *after]
    else:
        out = dots + sorted({label for label in every if label.isalpha() and every.count(label) == 1})
    if len(set(out)) != len(out) or not set(out) <= set(every):
        raise c.error("onnx-invalid-graph", f"Einsum: the result of {equation!r} repeats a label, or has one that is "
                      "no operand's")
    return terms, out


def _labels(c: Context, part: str, rank: int) -> list[str]:
    before, ellipsis, after = part.partition("...")
    hidden = rank - len(before) - len(after)
    if hidden < 0 or (hidden and not ellipsis) or not (before + after).isalpha() and before + after:
        raise c.error("onnx-invalid-graph", f"Einsum: {part!r} does not fit an operand of {rank} axes")
    return [*before, *[str(k) for k in reversed(range(hidden))], *after]


def _arranged(c: Context, t: _Term, labels: Sequence[str]) -> Value:
    perm = [t.labels.index(label) for label in labels]
    return t.value if perm == sorted(perm) else c.add("transpose", t.value, perm=perm)


def _diagonal(c: Context, t: _Term) -> _Term:
    """An operand without repeated labels: of two axes n, n of one label, every (n+1)th element of the n² behind them."""
    for label in dict.fromkeys(t.labels):
        while t.labels.count(label) > 1:
            a = t.labels.index(label)
            b = t.labels.index(label, a + 1)
            rest = [k for k in range(len(t.labels)) if k not in (a, b)]
            x = c.add("transpose", t.value, perm=[*rest, a, b])
            n = x.shape[-1]
            c.expect(x.shape[-2] == n, f"a diagonal of {x.shape[-2]} × {n} elements")
            steps = int(getattr(n, "value", 0)) + 1
            c.expect(steps > 1, "a diagonal of unknown size")
            flat = c.b.reshape(x, [*x.shape[:-2], n * n])
            starts = [const(0)] * flat.rank
            x = c.add("slice", flat, starts=starts, sizes=[*flat.shape[:-1], n], steps=[*[1] * (flat.rank - 1), steps])
            t = _Term(x, [*[t.labels[k] for k in rest], label])
    return t


def _summed(c: Context, t: _Term, keep: set[str]) -> _Term:
    """An operand summed over the labels that nobody else has."""
    axes = [k for k, label in enumerate(t.labels) if label not in keep]
    if not axes:
        return t
    return _Term(c.add("reduce_sum", t.value, axes=axes, keepdims=False), [label for label in t.labels if label in keep])


def _product(c: Context, a: _Term, b: _Term, keep: set[str], sizes: dict[str, Expr]) -> _Term:
    both = [label for label in a.labels if label in b.labels]
    batch, inner = [x for x in both if x in keep], [x for x in both if x not in keep]
    m, n = [x for x in a.labels if x not in both], [x for x in b.labels if x not in both]

    def size(labels: Sequence[str]) -> Expr:
        return product([sizes[label] for label in labels])
    left = c.b.reshape(_arranged(c, a, [*batch, *m, *inner]), [size(batch), size(m), size(inner)])
    right = c.b.reshape(_arranged(c, b, [*batch, *inner, *n]), [size(batch), size(inner), size(n)])
    y = c.add("matmul", left, right)
    labels = [*batch, *m, *n]
    return _Term(c.b.reshape(y, [sizes[label] for label in labels]), labels)
