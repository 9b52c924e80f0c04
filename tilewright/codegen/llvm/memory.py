"""LLVM code generation, loads and stores: scalar, contiguous, reversed, broadcast, strided and gathered; packed sub-byte.

A vector access whose index is affine in the lane becomes one instruction when neighbours are neighbours in memory; every
other one is a scalar access per lane, which is what x86 does inside a gather anyway.
"""
from __future__ import annotations

from math import gcd

from tilewright.codegen.llvm import address
from tilewright.codegen.llvm.address import Poly, add, lane_form, materialize, multiply, pointer
from tilewright.codegen.llvm.function import Function, Memory
from tilewright.codegen.llvm.types import literal, memory_scalar, register_type, scalar_type, vector_of
from tilewright.core.dtype import DType
from tilewright.core.errors import InternalError
from tilewright.loop import ir


class Place:
    """Where the lanes of an access are: element `base + step * lane`, or, if `lanes` is given, `base + lanes[lane]`."""

    __slots__ = ("base", "lanes", "step")

    def __init__(self, base: Poly, step: Poly, lanes: list[str] | None) -> None:
        self.base, self.step, self.lanes = base, step, lanes


def memory_of(f: Function, b: ir.Buffer) -> Memory:
    got = f.memory.get(b)
    if got is None:
        if b.data is None:
            raise InternalError(f"the buffer {b.name} ({b.scope}) is used outside of its allocation")
        got = f.memory[b] = Memory(table(f, b), 64)
    return got


def table(f: Function, b: ir.Buffer) -> str:
    """A buffer's compile-time data as a constant of the module."""
    name = f.module.global_names.get(b)
    if name is None and b.data is not None:
        name = f.module.global_names[b] = f"@table{len(f.module.globals)}"
        kind = memory_scalar(b.dtype)
        if b.packing > 1:
            raise InternalError(f"the table {b.name} is packed")
        items = ", ".join([f"{kind} {int(bool(x)) if b.dtype.is_bool else literal(x, b.dtype)}" for x in b.data])
        f.module.globals.append(f"{name} = private unnamed_addr constant [{len(b.data)} x {kind}] [{items}], align 64")
    return name or ""


def locate(f: Function, b: ir.Buffer, indices: tuple[ir.Expr, ...], lanes: int) -> Place:
    """The place of an access; `lanes` of its value."""
    if len(indices) != len(b.shape):
        raise InternalError(f"{b.name} has {len(b.shape)} dimensions, indexed with {len(indices)}")
    base: Poly = {}
    step: Poly = {}
    irregular = ""
    for i, s in zip(indices, address.strides(f, b), strict=True):
        form = lane_form(f, i)
        if form is not None:
            base = add(base, multiply(form[0], s))
            step = add(step, multiply(form[1], s))
            continue
        term = _scaled(f, i, s)
        irregular = f.op(f"add <{lanes} x i64> {irregular}, {term}") if irregular else term
    if not irregular:
        return Place(base, step, None)
    each = [f.op(f"extractelement <{lanes} x i64> {irregular}, i64 {k}") for k in range(lanes)]
    if step:
        each = [address.materialize(f, add({(v,): 1}, step, k)) for k, v in enumerate(each)]
    return Place(base, {}, each)


def _scaled(f: Function, i: ir.Expr, stride: Poly) -> str:
    """A vector index in elements, as <N x i64>."""
    v, t = f.value(i), i.dtype
    wide = f"<{t.lanes} x i64>"
    if t.bits < 64:
        v = f.op(f"{'sext' if t.kind == 'int' else 'zext'} {register_type(t)} {v} to {wide}")
    if stride == {(): 1}:
        return v
    one = f.op(f"insertelement {wide} poison, i64 {materialize(f, stride)}, i64 0")
    every = f.op(f"shufflevector {wide} {one}, {wide} poison, <{t.lanes} x i32> zeroinitializer")
    return f.op(f"mul {wide} {v}, {every}")


def _lane(place: Place, k: int) -> Poly:
    if place.lanes is not None:
        return add(place.base, {(place.lanes[k],): 1})
    return add(place.base, place.step, k)


def _align(b: ir.Buffer, m: Memory, p: Poly) -> int:
    size = b.dtype.nbytes
    return max(size, gcd(m.align, *[c * size for c in p.values()]) if m.align > size else size)


def load(f: Function, e: ir.Load) -> str:
    b, t = e.buffer, e.dtype
    m = memory_of(f, b)
    place = locate(f, b, e.indices, t.lanes)
    if t.lanes == 1:
        return _load_scalar(f, b, m, place.base)
    if place.lanes is None:
        if not place.step:
            return broadcast(f, _load_scalar(f, b, m, place.base), t)
        if place.step == {(): 1}:
            got = _load_vector(f, b, m, place.base, t)
            if got is not None:
                return got
        if place.step == {(): -1} and b.packing == 1:
            got = _load_vector(f, b, m, add(place.base, {(): 1 - t.lanes}), t)
            order = ", ".join([f"i32 {t.lanes - 1 - k}" for k in range(t.lanes)])
            rt = register_type(t)
            return f.op(f"shufflevector {rt} {got}, {rt} poison, <{t.lanes} x i32> <{order}>")
    rt, st = register_type(t), scalar_type(t)
    v = "poison"
    for k in range(t.lanes):
        v = f.op(f"insertelement {rt} {v}, {st} {_load_scalar(f, b, m, _lane(place, k))}, i64 {k}")
    return v


def broadcast(f: Function, v: str, t: DType) -> str:
    """A scalar's value in every lane of `t`."""
    rt = register_type(t)
    one = f.op(f"insertelement {rt} poison, {scalar_type(t)} {v}, i64 0")
    return f.op(f"shufflevector {rt} {one}, {rt} poison, <{t.lanes} x i32> zeroinitializer")


def _load_scalar(f: Function, b: ir.Buffer, m: Memory, p: Poly) -> str:
    t = b.dtype
    if b.packing > 1:
        at, shift = _packed(f, b, m, p)
        whole = f.op(f"load i8, ptr {at}, align 1")
        return f.op(f"trunc i8 {f.op(f'lshr i8 {whole}, {shift}')} to {scalar_type(t)}")
    kind, rt = memory_scalar(t), scalar_type(t)
    got = f.op(f"load {kind}, ptr {pointer(f, m.pointer, kind, p)}, align {t.nbytes}")
    return got if kind == rt else f.op(f"trunc {kind} {got} to {rt}")


def _load_vector(f: Function, b: ir.Buffer, m: Memory, p: Poly, t: DType) -> str | None:
    """Contiguous elements from `p` on; None where a packed buffer's first one may lie within a byte."""
    n, rt = t.lanes, register_type(t)
    if b.packing == 1:
        kind = memory_scalar(t)
        at = pointer(f, m.pointer, kind, p)
        got = f.op(f"load {vector_of(kind, n)}, ptr {at}, align {_align(b, m, p)}")
        return got if vector_of(kind, n) == rt else f.op(f"trunc {vector_of(kind, n)} {got} to {rt}")
    k = b.packing
    if n % k or any(c % k for c in p.values()):
        return None
    at, _ = _packed(f, b, m, p)
    bytes_type, wide = f"<{n // k} x i8>", f"<{n} x i8>"
    got = f.op(f"load {bytes_type}, ptr {at}, align 1")
    order = ", ".join([f"i32 {i // k}" for i in range(n)])
    each = f.op(f"shufflevector {bytes_type} {got}, {bytes_type} poison, <{n} x i32> <{order}>")
    shifts = ", ".join([f"i8 {i % k * t.bits}" for i in range(n)])
    return f.op(f"trunc {wide} {f.op(f'lshr {wide} {each}, <{shifts}>')} to {rt}")


def _packed(f: Function, b: ir.Buffer, m: Memory, p: Poly) -> tuple[str, str]:
    """(address of the byte, the shift in bits as an i8) of an element of a packed buffer."""
    k = b.packing
    if all(c % k == 0 for c in p.values()):
        q = {n: c // k for n, c in p.items()}
        return pointer(f, m.pointer, "i8", q), "0"
    at = materialize(f, p)
    byte = f.pure(f"lshr i64 {at}, {k.bit_length() - 1}", at)
    place = f.pure(f"and i64 {at}, {k - 1}", at)
    shift = f.pure(f"mul i64 {place}, {b.dtype.bits}", place)
    return (f.pure(f"getelementptr i8, ptr {m.pointer}, i64 {byte}", m.pointer, byte),
            f.pure(f"trunc i64 {shift} to i8", shift))


def store(f: Function, s: ir.Store) -> None:
    b, t = s.buffer, s.value.dtype
    lanes = max([t.lanes, *[i.dtype.lanes for i in s.indices]])
    if t.element is not b.dtype:
        raise InternalError(f"{t} stored to {b.name} of {b.dtype}")
    v = f.value(s.value)
    if lanes > t.lanes:
        t = t.with_lanes(lanes)
        v = broadcast(f, v, t)
    m = memory_of(f, b)
    place = locate(f, b, s.indices, lanes)
    if lanes == 1:
        _store_scalar(f, b, m, place.base, v)
    elif place.lanes is None and place.step == {(): 1} and b.packing == 1:
        kind = vector_of(memory_scalar(t), lanes)
        v = _to_memory(f, v, t)
        f.line(f"store {kind} {v}, ptr {pointer(f, m.pointer, memory_scalar(t), place.base)}, "
               f"align {_align(b, m, place.base)}")
    else:
        for k in range(lanes):
            one = f.op(f"extractelement {register_type(t)} {v}, i64 {k}")
            _store_scalar(f, b, m, _lane(place, k), one)


def _store_scalar(f: Function, b: ir.Buffer, m: Memory, p: Poly, v: str) -> None:
    t = b.dtype
    if b.packing == 1:
        kind = memory_scalar(t)
        v = _to_memory(f, v, t)
        f.line(f"store {kind} {v}, ptr {pointer(f, m.pointer, kind, p)}, align {t.nbytes}")
        return
    at, shift = _packed(f, b, m, p)
    old = f.op(f"load i8, ptr {at}, align 1")
    mask = f.op(f"shl i8 {(1 << t.bits) - 1}, {shift}")
    kept = f.op(f"and i8 {old}, {f.op(f'xor i8 {mask}, -1')}")
    new = f.op(f"shl i8 {f.op(f'zext {scalar_type(t)} {v} to i8')}, {shift}")
    f.line(f"store i8 {f.op(f'or i8 {kept}, {new}')}, ptr {at}, align 1")


def _to_memory(f: Function, v: str, t: DType) -> str:
    """A value in its memory type: bool as 0 or 1, sub-byte elements with the byte's upper bits 0, as ml_dtypes has them."""
    kind, rt = vector_of(memory_scalar(t), t.lanes), register_type(t)
    if kind == rt:
        return v
    return f.op(f"zext {rt} {v} to {kind}")
