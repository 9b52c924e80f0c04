"""LLVM code generation, expressions: a loop-IR expression becomes SSA instructions; its value's name is returned.

Shared nodes are computed once per statement. The walk is iterative: unrolled sums are deeper than Python's stack.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilewright.codegen.llvm import calls, convert, memory
from tilewright.codegen.llvm.function import Function
from tilewright.codegen.llvm.types import is_small_float, literal, register_type, scalar_type, splat
from tilewright.core.dtype import DType, f32, i64
from tilewright.core.errors import InternalError
from tilewright.loop import ir


def value(f: Function, e: ir.Expr) -> str:
    """The SSA name (or literal) of the value of `e`, in its register type."""
    memo = f.memo
    got = memo.get(id(e))
    if got is not None:
        return got
    stack: list[tuple[ir.Expr, bool]] = [(e, False)]
    while stack:
        n, ready = stack.pop()
        if id(n) in memo:
            continue
        if not ready:
            needs = _needs(f, n)
            if needs:
                stack.append((n, True))
                stack.extend([(c, False) for c in reversed(needs)])
                continue
        emit = _EMIT.get(type(n))
        if emit is None:
            raise InternalError(f"no LLVM code for the expression {type(n).__name__}")
        memo[id(n)] = emit(f, n)
    return memo[id(e)]


def _needs(f: Function, n: ir.Expr) -> tuple[ir.Expr, ...] | list[ir.Expr]:
    """Operands to compute before `n`; not the indices of loads (they become addresses) nor a Guard's sides."""
    match n:
        case ir.Const() | ir.Var() | ir.Load() | ir.Address():
            return ()
        case ir.Guard(cond):
            return (cond,)
        case ir.Add(a, b) | ir.Sub(a, b) if f.contract and n.dtype.is_float and not is_small_float(n.dtype):
            return [x for c in (a, b) for x in ((c.a, c.b) if isinstance(c, ir.Mul) and _fusable(f, c) else (c,))]
        case ir.Call(_, args):
            return args
    return list(n.children())  # type: ignore[arg-type]


def _fusable(f: Function, e: ir.Expr) -> bool:
    return isinstance(e, ir.Mul) and id(e) not in f.memo


def _const(f: Function, e: ir.Const) -> str:
    return literal(e.value, e.type)


def _var(f: Function, e: ir.Var) -> str:
    got = f.vars.get(e)
    if got is None:
        raise InternalError(f"the variable {e.name} is used outside of its scope")
    return got


_FLOAT_OPS = {ir.Add: "fadd", ir.Sub: "fsub", ir.Mul: "fmul", ir.Div: "fdiv"}
_INT_OPS = {ir.Add: "add", ir.Sub: "sub", ir.Mul: "mul"}
_LOGIC = {ir.And: "and", ir.Or: "or"}


def _binary(f: Function, e: ir.Binary) -> str:
    t = e.dtype
    if t.is_float:
        if is_small_float(t):
            return _through_float(f, e)
        if f.contract and not isinstance(e, (ir.Mul, ir.Div)):
            fused = _fused(f, e, t)
            if fused:
                return fused
        return f.op(f"{_FLOAT_OPS[type(e)]} {f.flags}{register_type(t)} {f.value(e.a)}, {f.value(e.b)}")
    a, b, rt = f.value(e.a), f.value(e.b), register_type(t)
    if isinstance(e, ir.Div):
        return f.op(f"{'sdiv' if t.kind == 'int' else 'udiv'} {rt} {a}, {b}")
    text = f"{_INT_OPS[type(e)]} {rt} {a}, {b}"
    if t is not i64:
        return f.op(text)
    got = f.pure(text, a, b)
    if not isinstance(e, ir.Sub) and _not_negative(f, a) and _not_negative(f, b):
        f.nonnegative.add(got)
    return got


def _fused(f: Function, e: ir.Binary, t: DType) -> str:
    """a*b + c as one fused multiply-add where the product is used here alone; "" where there is no product."""
    m, other, sign = e.b, e.a, isinstance(e, ir.Sub)
    if not _fusable(f, m):
        if not _fusable(f, e.a):
            return ""
        m, other = e.a, e.b
    assert isinstance(m, ir.Mul)
    rt = register_type(t)
    a, b, c = f.value(m.a), f.value(m.b), f.value(other)
    if sign and m is e.b:
        a = f.op(f"fneg {rt} {a}")
    elif sign:
        c = f.op(f"fneg {rt} {c}")
    name = f"@llvm.fmuladd.{calls.suffix(t)}"
    f.module.declare(name, f"declare {rt} {name}({rt}, {rt}, {rt})")
    return f.op(f"call {f.flags}{rt} {name}({rt} {a}, {rt} {b}, {rt} {c})")


def _through_float(f: Function, e: ir.Binary) -> str:
    """Arithmetic of floats below 32 bits: in f32, then rounded (exact for one operation: 24 ≥ 2*11 + 2 bits)."""
    wide = f32.with_lanes(e.dtype.lanes)
    a, b = (convert.to_float(f, f.value(x), e.dtype) for x in (e.a, e.b))
    return convert.from_float(f, f.op(f"{_FLOAT_OPS[type(e)]} {register_type(wide)} {a}, {b}"), e.dtype)


def _not_negative(f: Function, v: str) -> bool:
    return v in f.nonnegative or v.isdigit()


def _floor_div(f: Function, e: ir.Binary) -> str:
    t, rt = e.dtype, register_type(e.dtype)
    a, b = f.value(e.a), f.value(e.b)
    if t.is_float:
        raise InternalError(f"FloorDiv of {t}")
    if t.kind == "uint":
        return f.op(f"udiv {rt} {a}, {b}")
    if t is i64 and b.isdigit() and b != "0":
        if b == "1":
            return a
        if _not_negative(f, a):
            got = f.pure(f"udiv i64 {a}, {b}", a)
            f.nonnegative.add(got)
            return got
        if int(b) & (int(b) - 1) == 0:
            return f.pure(f"ashr i64 {a}, {int(b).bit_length() - 1}", a)
    q = f.op(f"sdiv {rt} {a}, {b}")
    return f.op(f"add {rt} {q}, {_extend(f, _inexact_negative(f, t, a, b), t)}")


def _floor_mod(f: Function, e: ir.Binary) -> str:
    t, rt = e.dtype, register_type(e.dtype)
    a, b = f.value(e.a), f.value(e.b)
    if t.is_float:
        raise InternalError(f"FloorMod of {t}")
    if t.kind == "uint":
        return f.op(f"urem {rt} {a}, {b}")
    if t is i64 and b.isdigit() and b != "0":
        if int(b) & (int(b) - 1) == 0:
            got = f.pure(f"and i64 {a}, {int(b) - 1}", a)
        elif _not_negative(f, a):
            got = f.pure(f"urem i64 {a}, {b}", a)
        else:
            got = ""
        if got:
            f.nonnegative.add(got)
            return got
    r = f.op(f"srem {rt} {a}, {b}")
    fix = f.op(f"and {rt} {_extend(f, _inexact_negative(f, t, a, b), t)}, {b}")
    return f.op(f"add {rt} {r}, {fix}")


def _inexact_negative(f: Function, t: DType, a: str, b: str) -> str:
    """Whether truncated and floored quotients differ: a remainder, and operands of different signs."""
    rt, one = register_type(t), register_type(t).replace(scalar_type(t), "i1") if t.lanes > 1 else "i1"
    zero = splat("0", t)
    r = f.op(f"srem {rt} {a}, {b}")
    some = f.op(f"icmp ne {rt} {r}, {zero}")
    differ = f.op(f"icmp slt {rt} {f.op(f'xor {rt} {a}, {b}')}, {zero}")
    return f.op(f"and {one} {some}, {differ}")


def _extend(f: Function, flag: str, t: DType) -> str:
    """A flag as 0 or -1 of type `t`."""
    one = "i1" if t.lanes == 1 else f"<{t.lanes} x i1>"
    return f.op(f"sext {one} {flag} to {register_type(t)}")


def _min_max(f: Function, e: ir.Binary) -> str:
    t, rt = e.dtype, register_type(e.dtype)
    low = isinstance(e, ir.Min)
    a, b = f.value(e.a), f.value(e.b)
    if t.is_bool:
        return f.op(f"{'and' if low else 'or'} {rt} {a}, {b}")
    if t.is_int:
        return calls.int_min_max(f, low, t, a, b)
    wa, wide = convert.widen_to_float(f, a, t)
    wb, _ = convert.widen_to_float(f, b, t)
    got = calls.float_min_max(f, low, wide, wa, wb)
    return convert.from_float(f, got, t) if is_small_float(t) else got


_PREDICATES = {ir.Eq: ("eq", "oeq"), ir.Ne: ("ne", "une"), ir.Lt: ("lt", "olt"), ir.Le: ("le", "ole")}


def _compare(f: Function, e: ir.Compare) -> str:
    t = e.a.dtype
    a, b = f.value(e.a), f.value(e.b)
    if t.is_float:
        a, wide = convert.widen_to_float(f, a, t)
        b, _ = convert.widen_to_float(f, b, t)
        return f.op(f"fcmp {_PREDICATES[type(e)][1]} {register_type(wide)} {a}, {b}")
    name = _PREDICATES[type(e)][0]
    if name[0] == "l":
        name = ("s" if t.kind == "int" else "u") + name
    return f.op(f"icmp {name} {register_type(t)} {a}, {b}")


def _logic(f: Function, e: ir.Binary) -> str:
    return f.op(f"{_LOGIC[type(e)]} {register_type(e.dtype)} {f.value(e.a)}, {f.value(e.b)}")


def _not(f: Function, e: ir.Not) -> str:
    return f.op(f"xor {register_type(e.dtype)} {f.value(e.a)}, {splat('true' if e.dtype.is_bool else '-1', e.dtype)}")


def _select(f: Function, e: ir.Select) -> str:
    rt = register_type(e.dtype)
    return f.op(f"select {register_type(e.cond.dtype)} {f.value(e.cond)}, {rt} {f.value(e.a)}, {rt} {f.value(e.b)}")


def _guard(f: Function, e: ir.Guard) -> str:
    if e.cond.dtype.lanes != 1:
        raise InternalError("a Guard's condition is scalar")
    cond, rt = f.value(e.cond), register_type(e.dtype)
    yes, no, done = f.fresh_label("then"), f.fresh_label("else"), f.fresh_label("join")
    f.branch(f"br i1 {cond}, label %{yes}, label %{no}")
    ways = []
    for label, side in ((yes, e.a), (no, e.b)):
        f.start(label)
        with f.scope():
            v = f.value(side)
        ways.append(f"[{v}, %{f.label}]")
        f.line(f"br label %{done}")
    f.start(done)
    return f.op(f"phi {rt} {', '.join(ways)}")


def _cast(f: Function, e: ir.Cast) -> str:
    return convert.cast(f, f.value(e.a), e.a.dtype, e.type)


def _ramp(f: Function, e: ir.Ramp) -> str:
    t, rt = e.dtype, register_type(e.dtype)
    if not t.is_int:
        raise InternalError("a Ramp counts in integers")
    steps = ", ".join([f"{scalar_type(t)} {k}" for k in range(t.lanes)])
    base = memory.broadcast(f, f.value(e.base), t)
    scaled = f.op(f"mul {rt} <{steps}>, {memory.broadcast(f, f.value(e.stride), t)}")
    return f.op(f"add {rt} {base}, {scaled}")


def _broadcast(f: Function, e: ir.Broadcast) -> str:
    if isinstance(e.a, ir.Const):
        return splat(literal(e.a.value, e.a.type), e.dtype)
    if e.a.dtype.lanes != 1:
        raise InternalError(f"a Broadcast of {e.a.dtype}")
    return memory.broadcast(f, f.value(e.a), e.dtype)


_EMIT: dict[type, Callable[[Function, Any], str]] = {
    ir.Const: _const, ir.Var: _var, ir.Add: _binary, ir.Sub: _binary, ir.Mul: _binary, ir.Div: _binary,
    ir.FloorDiv: _floor_div, ir.FloorMod: _floor_mod, ir.Min: _min_max, ir.Max: _min_max, ir.And: _logic, ir.Or: _logic,
    ir.Eq: _compare, ir.Ne: _compare, ir.Lt: _compare, ir.Le: _compare, ir.Not: _not, ir.Select: _select,
    ir.Guard: _guard, ir.Cast: _cast, ir.Load: memory.load, ir.Ramp: _ramp, ir.Broadcast: _broadcast,
    ir.Call: calls.call, ir.Address: calls.address_value}
