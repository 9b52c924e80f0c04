"""word_memory: a kernel for a device that sees memory as arrays of 32-bit words, a few of which it can bind (WebGPU).

In: a lowered kernel over buffers of any element type. Out: the same over one array of words, the arena, which holds all that
is written and all activations, and over windows onto the weights; then a number for every parameter of the given kernel:
where it begins, in words, within what is bound for it, or its value. The attribute `arguments` says, a letter for each
parameter, what to bind: "a" the arena; "1" a window of its own, the piece of `max_binding` bytes of the weights in which it
lies, "2", "3", … so many pieces, at whose beginning it begins; "s" the piece that small weights share; "n" nothing.

    f(x: f32[n], w: bool[n], y: f32[n])                  f(arena: u32, w0: u32, at_x, at_w, at_y)
      y[i] = w[i] ? x[i] : 0                      →        arena[at_y + i] = (w0[at_w + (i >> 2)] >> (i & 3) * 8) & 255 …

Memory looks as on the host, so nothing is converted on the way: a 64-bit integer is two words, of which a load takes the
lower one and a store extends the sign; smaller ones are parts of a word, which `put_bits` replaces without touching those of
other threads. Values of 64-bit types keep their type here and are computed in 32 bits by the device: what does not fit is
refused where it is known (constants here, inputs by the host program) and wraps where it is not. Types of 8 and 16 bits
are computed in 32 and wrapped as their width asks.
"""
from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tilewright.core.dtype import DType, f32, i32, i64, u32
from tilewright.core.errors import UserError
from tilewright.core.node import Node, walk
from tilewright.loop.ir import (
    Add,
    Address,
    Allocate,
    Binary,
    Buffer,
    Call,
    Cast,
    Compare,
    Const,
    Div,
    Evaluate,
    Expr,
    Guard,
    Let,
    Load,
    Max,
    Min,
    Mul,
    Program,
    Select,
    Seq,
    Stmt,
    Store,
    Sub,
    Var,
    const,
    seq,
)
from tilewright.loop.lower.kernel_limits import nbytes
from tilewright.loop.lower.linear import flat_position
from tilewright.target.target import Target

WORD = 4
_PLAIN = {f32: f32, i32: i32, u32: u32}
_WRAPS = frozenset(("neg", "abs", "bit_not", "shift_left"))
_SATURATED = {-2**63: -2**31, 2**63 - 1: 2**31 - 1, 2**64 - 1: 2**32 - 1}
"""The ends of the 64-bit types, which stand for "less" or "more than anything", in 32 bits."""


def word_memory(program: Program, target: Target, weights: Iterable[str]) -> Program:
    """The kernel over words; `weights` names the parameters that are weights. Raises UserError "device-dtype" for an element
    type of which there are no such values, "device-integers" for a constant beyond 32 bits and "kernel-limit" for weights
    that need more windows than can be bound."""
    given = [p for p in program.params if isinstance(p, Buffer)]
    windows = _windows(program, [b for b in given if b.name in set(weights)], target)
    bound = {b for w in windows for b in w}
    free = [b for b in given if b not in bound]
    arena = Buffer("arena", _common(free), (const(target.max_binding // WORD),))
    memory: dict[Buffer, list[Buffer]] = {b: [arena] for b in free}
    made: list[Buffer] = []
    letters = dict.fromkeys(free, "a")
    for w in windows:
        count = max(1, -(-nbytes(w[0]) // target.max_binding)) if len(w) == 1 else 1
        own = [Buffer(f"weights{len(made) + k}", _common(w), (const(target.max_binding // WORD),))
               for k in range(count)]
        made += own
        for b in w:
            memory[b], letters[b] = own, str(count) if len(w) == 1 else "s"
    places = {b: Var(f"at_{b.name}") for b in given}
    words = _Words(program, memory, places, target)
    body = words.stmt(program.body)
    numbers = [places[p] if isinstance(p, Buffer) else p for p in program.params]
    arguments = "".join([letters[p] if isinstance(p, Buffer) else "n" for p in program.params])
    attrs = tuple([(k, v) for k, v in program.attrs if k != "noalias"])
    return program.replace(params=(arena, *made, *numbers), body=body, attrs=(*attrs, ("arguments", arguments)))


def _windows(program: Program, weights: list[Buffer], target: Target) -> list[list[Buffer]]:
    """What each window is for: the largest weights have one of their own (or several), the smallest share the last."""
    need = {b: max(1, -(-nbytes(b) // target.max_binding)) for b in weights}
    room = target.max_bindings - 1
    order = sorted(weights, key=lambda b: -nbytes(b))
    if sum(need.values()) <= room:
        return [[b] for b in weights]
    own: list[Buffer] = []
    while order and sum(need[b] for b in own) + need[order[0]] <= room - 1:
        own.append(order.pop(0))
    if order and need[order[0]] > 1:
        raise UserError("kernel-limit", f"{program.name} reads weights of {sum(map(nbytes, weights))} bytes; "
                        f"{target.name} binds {target.max_bindings} ranges of {target.max_binding} bytes at once",
                        where=", ".join(b.name for b in weights), hint="split the largest weight in the model")
    shared = set(order)
    return [*[[b] for b in own], [b for b in weights if b in shared]]


def _common(buffers: list[Buffer]) -> DType:
    """What the words of an array are called: the one type of all that is in it, else u32."""
    packed = any(b.dtype.bits < 32 for b in buffers)
    kinds = {_PLAIN.get(b.dtype, u32) for b in buffers}
    return u32 if packed or len(kinds) != 1 else kinds.pop()


def _wide(t: DType) -> DType:
    """The type in which values of a type are computed."""
    return t if t.bits >= 32 or not t.is_int else i32 if t.kind == "int" else u32


class _Words:
    """The walk: `memory` has a parameter's array (or several, if it is larger than a binding), `places` its beginning."""

    def __init__(self, program: Program, memory: dict[Buffer, list[Buffer]], places: dict[Buffer, Var],
                 target: Target) -> None:
        self.program, self.memory, self.places, self.target = program, memory, places, target
        self.own: dict[Buffer, Buffer] = {}
        self.vars: dict[Var, Var] = {}
        for b in (*memory, *[n.buffer for n in walk(program.body) if isinstance(n, Allocate)]):
            self.check(b.dtype)

    def check(self, t: DType) -> None:
        if t.is_float and t is not f32 or t.bits < 8:
            raise UserError("device-dtype", f"kernels for {self.target.name} cannot work with elements {t}",
                            where=self.program.name, hint="cast such values in the model, or choose another target")

    # ---- statements --------------------------------------------------------------------------------------------------
    def stmt(self, s: Stmt) -> Stmt:
        match s:
            case Store(buffer) if buffer in self.memory:
                return self.store(s)
            case Store(buffer, indices, value):
                new = self.buffer(buffer)
                v = self.expr(value)
                return Store(new, tuple([self.expr(i) for i in indices]), v if new.dtype is v.dtype else _as(new.dtype, v))
            case Allocate(buffer, body):
                return s.replace(buffer=self.buffer(buffer), body=self.stmt(body))
            case Let(var, value, body):
                if _wide(var.dtype) is not var.dtype:
                    self.vars[var] = Var(var.name, _wide(var.dtype))
                return s.replace(var=self.vars.get(var, var), value=self.expr(value), body=self.stmt(body))
            case Evaluate(Call("prefetch")):
                return Seq(())
        return s.map(lambda n: self.stmt(n) if isinstance(n, Stmt) else self.expr(n) if isinstance(n, Expr) else n)

    def store(self, s: Store) -> Stmt:
        b, t = s.buffer, s.buffer.dtype
        (array,) = self.memory[b]
        value = self.expr(s.value)
        p = flat_position(s.replace(indices=tuple([self.expr(i) for i in s.indices])))
        if t.bits == 64:
            low = _as(i32, value)
            high: Expr = const(0, i32)
            if t.kind == "int":
                high = Call("shift_right", (low, const(31, i32)), i32)
                high = const(-1 if low.value < 0 else 0, i32) if isinstance(low, Const) else high
            at = self.places[b] + p * 2
            return seq(Store(array, (at,), _bits(low, array.dtype)), Store(array, (at + 1,), _bits(high, array.dtype)))
        if t.bits == 32:
            return Store(array, (self.places[b] + p,), _bits(value, array.dtype))
        word, shift = self.part(b, p)
        mask = const((1 << t.bits) - 1, u32)
        put = Call("bit_and", (value if value.dtype is u32 else _as(u32, value), mask), u32)
        return Evaluate(Call("put_bits", (Address(array, (word,)), Call("shift_left", (mask, shift), u32),
                                          Call("shift_left", (put, shift), u32)), i64))

    def part(self, b: Buffer, p: Expr) -> tuple[Expr, Expr]:
        """The word of an element that is a part of one, and by how many bits it is shifted there."""
        size = b.dtype.bits // 8
        per = WORD // size
        word = Call("shift_right", (p, const(int(math.log2(per)), p)), p.dtype)
        place = Call("bit_and", (p, const(per - 1, p)), p.dtype)
        return self.places[b] + word, Cast(u32, place) * const(8 * size, u32)

    def buffer(self, b: Buffer) -> Buffer:
        """A private or shared buffer or a table, of whole words."""
        t = i32 if b.dtype.is_bool or b.dtype.kind == "int" else u32 if b.dtype.is_int else b.dtype
        if t is b.dtype:
            return b
        if b not in self.own:
            data = b.data and tuple([self.number(v) for v in b.data])
            self.own[b] = b.replace(dtype=t, data=data)
        return self.own[b]

    # ---- expressions -------------------------------------------------------------------------------------------------
    def node(self, n: Node) -> Node:
        return self.expr(n) if isinstance(n, Expr) else n

    def expr(self, e: Expr) -> Expr:
        """The expression in the type in which its values are computed."""
        match e:
            case Const(value, t):
                return Const(self.number(value), _wide(t)) if t.is_int else e
            case Var():
                return self.vars.get(e, e)
            case Load(buffer) if buffer in self.memory:
                return self.load(e)
            case Load(buffer, indices):
                new = Load(self.buffer(buffer), tuple([self.expr(i) for i in indices]))
                t = buffer.dtype
                return new.ne(const(0, new)) if t.is_bool else new if new.dtype is _wide(t) else Cast(_wide(t), new)
            case Cast(t, a):
                return self.cast(t, a)
            case Min() | Max() | Compare():
                return e.map(self.limit)
            case Select() | Guard():
                return e.map(self.node)
            case Call("reinterpret", (a,), t):
                if a.dtype.bits == t.bits >= 32:
                    self.check(t)
                    return Call("reinterpret", (self.expr(a),), t)
                return self.cast(t, a)
            case Call(name, args, t):
                made = Call(name, tuple([self.expr(a) for a in args]), _wide(t))
                return _wrapped(made, t) if name in _WRAPS else made
            case Binary():
                result = e.map(self.node)
                return _wrapped(result, e.dtype) if isinstance(e, Add | Sub | Mul | Div) else result
        return e.map(self.node)

    def limit(self, e: Node) -> Node:
        """An operand of what compares: a constant beyond 32 bits is there what all others are below or above."""
        if isinstance(e, Const) and e.dtype.is_int and e.dtype.bits == 64:
            low, high = (-2**31, 2**31 - 1) if e.dtype.kind == "int" else (0, 2**32 - 1)
            return Const(max(low, min(high, e.value)), e.dtype)
        return self.node(e)

    def number(self, value: Any) -> Any:
        """An integer (of a type of any width) that 32 bits hold."""
        v = _SATURATED.get(value, value)
        if not isinstance(v, float) and not -2**31 <= v < 2**32:
            raise UserError("device-integers", f"{self.program.name} computes with the number {value}, and kernels for "
                            f"{self.target.name} compute in 32 bits", where=self.program.name,
                            hint="choose another target for this model")
        return v

    def cast(self, t: DType, a: Expr) -> Expr:
        self.check(t)
        v, frm, to = self.expr(a), a.dtype, _wide(t)
        if frm.is_float and t.kind == "uint" and t.bits < 32:
            v = Cast(i32, v)  # as C does: a negative number wraps
        new = v if v.dtype is to else _as(to, v)
        fits = frm.is_int and t.is_int and t.range()[0] <= frm.range()[0] and frm.range()[1] <= t.range()[1]
        return new if fits or frm.is_bool else _wrapped(new, t)

    def load(self, e: Load) -> Expr:
        b, t = e.buffer, e.buffer.dtype
        p = flat_position(e.map(self.node))
        if t.bits == 64:
            kind = i32 if t.kind == "int" else u32
            return Cast(t, _bits(self.word(b, p * 2), kind))
        if t.bits == 32:
            return _bits(self.word(b, p), t)
        word, shift = self.part(b, p)
        mask = const((1 << t.bits) - 1, u32)
        bits = Call("shift_right", (_bits(self.word(b, word - self.places[b]), u32), shift), u32)
        found = Call("bit_and", (bits, mask), u32)
        if t.is_bool:
            return found.ne(const(0, u32))
        return found if t.kind == "uint" else _wrapped(Cast(i32, found), t)

    def word(self, b: Buffer, p: Expr) -> Expr:
        """Word `p` of a parameter, from the window that has it."""
        arrays, size = self.memory[b], self.target.max_binding // WORD
        at = self.places[b] + p
        found: Expr = Load(arrays[-1], (at - (len(arrays) - 1) * size if len(arrays) > 1 else at,))
        for k in reversed(range(len(arrays) - 1)):
            found = Guard(at < (k + 1) * size, Load(arrays[k], (at - k * size if k else at,)), found)
        return found


def _bits(e: Expr, t: DType) -> Expr:
    """The same 32 bits as another type."""
    if e.dtype is t:
        return e
    return Call("reinterpret", (e,), t) if f32 in (e.dtype, t) else _as(t, e)


def _as(t: DType, e: Expr) -> Expr:
    """An integer as another type; of a constant, the constant: WGSL converts no negative number to an unsigned type."""
    if not isinstance(e, Const) or not e.dtype.is_int or not t.is_int:
        return Cast(t, e)
    low = t.range()[0]
    return Const((e.value - low) % (1 << t.bits) + low, t)


def _wrapped(e: Expr, t: DType) -> Expr:
    """A value brought into the range of a type of less than 32 bits."""
    if not t.is_int or t.bits >= 32:
        return e
    if t.kind == "uint":
        return Call("bit_and", (e, const((1 << t.bits) - 1, e)), e.dtype)
    room = const(32 - t.bits, e)
    return Call("shift_right", (Call("shift_left", (e, room), e.dtype), room), e.dtype)
