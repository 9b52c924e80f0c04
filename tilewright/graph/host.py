"""Pieces of host programs: buffers of values, addresses, copies, and scopes that stay open to the end.

A host program is written as a list of items in order: a statement, or an `Open`, which puts all that follows into the scope
of what it defines (a size, memory). `nested` makes one statement of them.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.core.dtype import handle, i32, i64
from tilewright.graph.infer import product
from tilewright.graph.ir import Value
from tilewright.graph.memory import ALIGN
from tilewright.loop.ir import (
    ZERO,
    Address,
    Allocate,
    Assert,
    Buffer,
    Call,
    Evaluate,
    Expr,
    Let,
    Stmt,
    Store,
    Var,
    const,
    maximum,
    seq,
)

Open = Callable[[Stmt], Stmt]
Item = Stmt | Open


@dataclass
class Output:
    """A result that is wanted in a given buffer. `made`: its memory is asked for when its sizes have values."""
    number: int
    value: Value
    buffer: Buffer
    made: bool = False


ERROR_INDEX, ERROR_SHAPE = 1, 3
"""TW_ERROR_INDEX and TW_ERROR_SHAPE of tilewright.h."""


def nested(items: Sequence[Item]) -> Stmt:
    """One statement of items in order."""
    tail: list[Stmt] = []
    for item in reversed(items):
        if isinstance(item, Stmt):
            tail.insert(0, item)
        else:
            tail = [item(seq(*tail))]
    return seq(*tail)


# ---- scopes ----------------------------------------------------------------------------------------------------------
def let(var: Var, value: Expr) -> Open:
    return lambda body: Let(var, value, body)


def allocate(buffer: Buffer, at: Expr) -> Open:
    return lambda body: Allocate(buffer, body, at)


def grow(slot: int, nbytes: Expr) -> Expr:
    """The memory of a growable slot, of at least so many bytes; asking again for no more gives the same."""
    return Call("tw_grow", (const(slot, i32), maximum(nbytes, ALIGN)), handle)


def grow_kept(slot: int, nbytes: Expr, used: Expr) -> Expr:
    """As `grow`, and the first `used` bytes keep their contents."""
    return Call("tw_grow_kept", (const(slot, i32), maximum(nbytes, ALIGN), used), handle)


def output_memory(number: int, shape: Sequence[Expr], shape_buffer: Buffer, nbytes: Expr) -> tuple[list[Stmt], Expr]:
    """What fills `shape_buffer`, and the memory of an output of that shape."""
    stores: list[Stmt] = [Store(shape_buffer, (const(k),), d) for k, d in enumerate(shape)]
    return stores, Call("tw_output", (const(number, i32), const(len(shape), i32), address(shape_buffer), nbytes), handle)


def must_hold(cond: Expr, message: str, values: Sequence[Expr] = ()) -> Stmt:
    """`values` stand in the message's {}, up to three."""
    return Assert(cond, ERROR_SHAPE, message, tuple([v.cast(i64) for v in values]))


# ---- values ----------------------------------------------------------------------------------------------------------
def buffer_of(v: Value, name: str, scope: str) -> Buffer:
    return Buffer(name, v.dtype, v.shape, scope)


def elements(v: Value) -> Expr:
    return product(v.shape)


def nbytes(v: Value) -> Expr:
    return product([*v.shape, v.dtype.nbytes])


def address(b: Buffer) -> Address:
    return Address(b, (ZERO,) * b.rank)


def scalar_of(b: Buffer) -> Expr:
    return b[(ZERO,) * b.rank] if b.rank else b[()]


def element(b: Buffer, number: Expr) -> Address:
    """The address of an element by its number in row-major order (the buffer may have another shape than the value)."""
    indices: list[Expr] = []
    for d in reversed(b.shape):
        indices.insert(0, number % d)
        number = number // d
    return Address(b, tuple(indices))


def copy(to: Buffer, source: Buffer) -> Stmt:
    n: Expr = const(to.dtype.nbytes)
    for d in to.shape:
        n = n * d
    return copy_bytes(address(to), address(source), n)


def copy_bytes(to: Expr, source: Expr, count: Expr) -> Stmt:
    return Evaluate(Call("copy_bytes", (to, source, count), i64))


def simultaneous(moves: list[tuple[Buffer, Buffer]], save: Callable[[Buffer], Buffer]) -> list[Stmt]:
    """Copies (to, from) as if all at once: a buffer is overwritten when nobody needs it any more; a cycle, as in
    (a, b) = (b, a), is broken by saving one of its buffers elsewhere."""
    out: list[Stmt] = []
    left = [(to, source) for to, source in moves if to is not source]
    while left:
        free = next((m for m in left if all(source is not m[0] for _, source in left)), None)
        if free is None:
            held = left[0][0]
            kept = save(held)
            out.append(copy(kept, held))
            left = [(to, kept if source is held else source) for to, source in left]
        else:
            out.append(copy(*free))
            left.remove(free)
    return out
