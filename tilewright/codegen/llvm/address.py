"""LLVM code generation, addresses: index expressions as sums of products, written as pointers that LLVM folds well.

A flat index is a polynomial over SSA names: {(): 3, ("%v1",): 48, ("%v2", "%v7"): 1} is 3 + 48*v1 + v2*v7. A pointer is
built from the outermost loop's term to the innermost one's and the constant last: one pointer per row stays in a
register and the constant becomes the displacement of the memory operand.
"""
from __future__ import annotations

from tilewright.codegen.llvm.function import Function
from tilewright.codegen.llvm.types import memory_scalar
from tilewright.core.dtype import i64
from tilewright.core.errors import InternalError
from tilewright.loop import ir

Poly = dict[tuple[str, ...], int]


def add(a: Poly, b: Poly, times: int = 1) -> Poly:
    out = dict(a)
    for m, c in b.items():
        new = out.get(m, 0) + c * times
        if new:
            out[m] = new
        else:
            out.pop(m, None)
    return out


def multiply(a: Poly, b: Poly) -> Poly:
    out: Poly = {}
    for m, c in a.items():
        for n, d in b.items():
            key = tuple(sorted(m + n)) if m and n else m or n
            new = out.get(key, 0) + c * d
            if new:
                out[key] = new
            else:
                out.pop(key, None)
    return out


def linear(f: Function, e: ir.Expr) -> Poly:
    """The polynomial of a scalar index expression; what is not a sum or product of i64 is an atom."""
    match e:
        case ir.Const(value):
            return {(): int(value)} if value else {}
        case ir.Var() if e in f.affine:
            return f.affine[e]
        case ir.Add(a, b) if e.dtype is i64:
            return add(linear(f, a), linear(f, b))
        case ir.Sub(a, b) if e.dtype is i64:
            return add(linear(f, a), linear(f, b), -1)
        case ir.Mul(a, b) if e.dtype is i64:
            return multiply(linear(f, a), linear(f, b))
        case ir.Cast(t, a) if t is i64 and a.dtype is i64:
            return linear(f, a)
    return {(as_i64(f, e),): 1}


def as_i64(f: Function, e: ir.Expr) -> str:
    """The value of a scalar integer expression, widened to i64."""
    v, t = f.value(e), e.dtype
    if t.bits == 64 and t.is_int:
        return v
    if not t.is_int or t.lanes != 1:
        raise InternalError(f"an index of type {t}: {e}")
    return f.pure(f"{'sext' if t.kind == 'int' else 'zext'} i{t.bits} {v} to i64", v)


def lane_form(f: Function, e: ir.Expr) -> tuple[Poly, Poly] | None:
    """(first lane, step between lanes) of an affine vector index, None if it is not affine."""
    if e.dtype.lanes == 1:
        return linear(f, e), {}
    match e:
        case ir.Ramp(base, stride):
            return linear(f, base), linear(f, stride)
        case ir.Broadcast(a):
            return linear(f, a), {}
        case ir.Add(a, b) | ir.Sub(a, b):
            x, y = lane_form(f, a), lane_form(f, b)
            if x is None or y is None:
                return None
            sign = 1 if isinstance(e, ir.Add) else -1
            return add(x[0], y[0], sign), add(x[1], y[1], sign)
        case ir.Mul(a, b):
            x, y = lane_form(f, a), lane_form(f, b)
            if x is None or y is None or (x[1] and y[1]):
                return None
            return multiply(x[0], y[0]), add(multiply(x[1], y[0]), multiply(x[0], y[1]))
    return None


def strides(f: Function, b: ir.Buffer) -> list[Poly]:
    """Elements between neighbours along each dimension."""
    if b.strides is not None:
        return [linear(f, s) for s in b.strides]
    out: list[Poly] = []
    step: Poly = {(): 1}
    for n in reversed(b.shape):
        out.append(step)
        step = multiply(step, linear(f, n))
    return out[::-1]


def product(f: Function, names: tuple[str, ...], factor: int = 1) -> str:
    """The value of factor * names[0] * names[1] * …"""
    v = names[0]
    for n in names[1:]:
        v = f.pure(f"mul i64 {v}, {n}", v, n)
    return v if factor == 1 else f.pure(f"mul i64 {v}, {factor}", v)


def materialize(f: Function, p: Poly) -> str:
    """The polynomial's value as an i64."""
    total = ""
    for m in ordered(f, p):
        v = product(f, m, p[m])
        total = v if not total else f.pure(f"add i64 {total}, {v}", total, v)
    c = p.get((), 0)
    if not total:
        return str(c)
    return f.pure(f"add i64 {total}, {c}", total) if c else total


def ordered(f: Function, p: Poly) -> list[tuple[str, ...]]:
    """The non-constant terms, those of outer scopes first."""
    depth = f.depth
    return sorted([m for m in p if m], key=lambda m: max([depth.get(n, 0) for n in m]))


def pointer(f: Function, base: str, element: str, p: Poly) -> str:
    """The address of element `p` after `base`. `inbounds` is claimed only where no partial sum can leave the buffer."""
    grows = all(c > 0 for c in p.values()) and all(n in f.nonnegative for m in p for n in m)
    gep = "getelementptr inbounds" if grows else "getelementptr"
    at = base
    for m in ordered(f, p):
        c, v = p[m], product(f, m)
        if c < 0:
            v, c = f.pure(f"mul i64 {v}, {c}", v), 1
        step = element if c == 1 else f"[{c} x {element}]"
        at = f.pure(f"{gep} {step}, ptr {at}, i64 {v}", at, v)
    c = p.get((), 0)
    return f.pure(f"{gep} {element}, ptr {at}, i64 {c}", at) if c else at


def flat(f: Function, b: ir.Buffer, indices: tuple[ir.Expr, ...]) -> Poly:
    """The element number of scalar indices."""
    total: Poly = {}
    for i, s in zip(indices, strides(f, b), strict=True):
        total = add(total, multiply(linear(f, i), s))
    return total


def address(f: Function, b: ir.Buffer, indices: tuple[ir.Expr, ...]) -> str:
    """The pointer to an element (of a packed buffer: to its byte, the index being a multiple of the packing)."""
    p = flat(f, b, indices)
    if b.packing > 1:
        at = materialize(f, p)
        shift = b.packing.bit_length() - 1
        byte = f.pure(f"lshr i64 {at}, {shift}", at)
        return f.pure(f"getelementptr i8, ptr {f.memory[b].pointer}, i64 {byte}", byte, f.memory[b].pointer)
    return pointer(f, f.memory[b].pointer, memory_scalar(b.dtype), p)
