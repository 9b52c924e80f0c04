"""Where schedule primitives find and replace parts of a program: loops by their variable, blocks by their name.

In: a Program with Blocks. Out: questions about it answered, and programs with one statement replaced (path copying:
everything off the path from the root to the edit is shared with the old program).
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from tilewright.core.dtype import handle
from tilewright.core.errors import UserError
from tilewright.core.node import walk
from tilewright.loop.ir import (
    Address,
    Allocate,
    Block,
    Buffer,
    For,
    If,
    Let,
    Load,
    Program,
    Seq,
    Stmt,
    Store,
    Var,
    While,
    seq,
)
from tilewright.loop.printer import print_program


@dataclass(frozen=True)
class BlockRef:
    """A handle of a block: its name, unique in the program."""
    name: str


Handle = Var | BlockRef  # a loop is identified by its variable, whatever happens around it


def nowhere() -> Var:
    """A handle of no loop: to compute a block there is to leave it where it is."""
    return Var("nowhere", handle)


def is_nowhere(loop: Var) -> bool:
    return loop.type is handle


class ScheduleError(UserError):
    """A primitive that is not legal here: says why, and shows the program with the offending part marked."""

    def __init__(self, primitive: str, why: str, program: Program, mark: Handle | None = None, hint: str = "") -> None:
        self.primitive, self.program, self.mark = primitive, program, mark
        self.example: Callable[[], str] | None = None
        self.is_refusal = False
        name = mark.name if isinstance(mark, BlockRef) else mark
        super().__init__("schedule-illegal", f"{primitive}: {why}", where="\n" + print_program(program, mark=name),
                         hint=hint)


explaining: ContextVar[bool] = ContextVar("explaining", default=True)
"""Whether a refusal looks for a counterexample. Rules, which try what may be refused, do without."""
unproved: ContextVar[bool] = ContextVar("unproved", default=False)
"""While True, `refuse` lets the edit happen: the property test runs refused edits to see that they were refused rightly."""


def refuse(primitive: str, why: str, program: Program, mark: Handle | None = None, hint: str = "",
           example: Callable[[], str] | None = None) -> None:
    """Raise the ScheduleError of a primitive whose legality was not shown. Arguments that make no sense raise directly.

    `example` finds a step that shows what would go wrong ("" if it finds none); without it one is looked for in what the
    edit, if it were made, would do."""
    if not unproved.get():
        error = ScheduleError(primitive, why, program, mark, hint)
        error.example, error.is_refusal = example, True
        raise error


def sub_statements(s: Stmt) -> tuple[Stmt, ...]:
    """The statements directly inside `s` (a block's init and body are its own business: not included)."""
    match s:
        case Seq(stmts):
            return stmts
        case For() | While() | Let() | Allocate():
            return (s.body,)
        case If():
            return (s.then,) if s.otherwise is None else (s.then, s.otherwise)
    return ()


def iterate(root: Stmt) -> Iterator[Stmt]:
    """Every statement under `root` in program order, outer before inner, not entering blocks."""
    stack = [root]
    while stack:
        s = stack.pop()
        yield s
        stack.extend(reversed(sub_statements(s)))


def path_to(root: Stmt, target: Stmt) -> list[Stmt]:
    """The statements from `root` down to and including `target` (found by identity); [] if it is not there."""
    if root is target:
        return [root]
    for s in sub_statements(root):
        below = path_to(s, target)
        if below:
            return [root, *below]
    return []


def find_block(program: Program, ref: BlockRef) -> Block:
    for s in iterate(program.body):
        if isinstance(s, Block) and s.name == ref.name:
            return s
    names = ", ".join(b.name for b in blocks(program))
    raise ScheduleError("block", f"the program has no block {ref.name!r} (it has {names})", program)


def find_buffer(program: Program, ref: BlockRef, name: str) -> Buffer | None:
    """The buffer of that name that a block reads or writes."""
    for n in walk(find_block(program, ref)):
        if isinstance(n, Load | Store | Address) and n.buffer.name == name:
            return n.buffer
    return None


def find_loop(program: Program, var: Var) -> For:
    for s in iterate(program.body):
        if isinstance(s, For) and s.var is var:
            return s
    raise ScheduleError("loop", f"loop {var.name} is no longer in the program (was it split, fused or moved?)", program)


def blocks(program: Program) -> list[Block]:
    """All blocks in program order."""
    return [s for s in iterate(program.body) if isinstance(s, Block)]


def blocks_under(root: Stmt) -> list[Block]:
    return [s for s in iterate(root) if isinstance(s, Block)]


def loops_around(program: Program, target: Stmt) -> list[For]:
    """The loops around a statement, outermost first."""
    return [s for s in path_to(program.body, target)[:-1] if isinstance(s, For)]


def replace_stmt(root: Stmt, old: Stmt, new: Stmt | None) -> Stmt | None:
    """`root` with `old` (by identity) replaced; None removes it, together with loops that become empty."""
    path = path_to(root, old)
    result: Stmt | None = new
    for parent, child in zip(reversed(path[:-1]), reversed(path[1:]), strict=True):
        result = _with_child(parent, child, result)
    return result


def _with_child(parent: Stmt, old: Stmt, new: Stmt | None) -> Stmt | None:
    if isinstance(parent, Seq):
        kept = [new if s is old else s for s in parent.stmts]
        rest = [s for s in kept if s is not None]
        return seq(*rest) if rest else None
    if isinstance(parent, If):
        if new is None and (parent.otherwise is None or parent.otherwise is old):
            return None if parent.then is old else parent.replace(otherwise=None)
        return parent.replace(then=new) if parent.then is old else parent.replace(otherwise=new)
    if new is None:
        return None
    return parent.replace(body=new)


def edit(program: Program, old: Stmt, new: Stmt | None) -> Program:
    """The program with one statement replaced or removed."""
    body = replace_stmt(program.body, old, new)
    return program.replace(body=body if body is not None else Seq(()))


def allocate(program: Program, buffer: Buffer) -> Program:
    """The program with `buffer` allocated around its whole body (lowering moves and shrinks it)."""
    return program.replace(body=Allocate(buffer, program.body))


def deallocate(program: Program, buffer: Buffer) -> Program:
    """The program without the Allocate of `buffer`; nothing may use it any more."""
    for s in iterate(program.body):
        if isinstance(s, Allocate) and s.buffer is buffer:
            return edit(program, s, s.body)
    return program


def is_parameter(program: Program, buffer: Buffer) -> bool:
    return any(p is buffer for p in program.params)


def fresh_buffer_name(program: Program, wish: str) -> str:
    """`wish`, or wish_1, wish_2, … if a buffer has that name already: attributes of programs name buffers."""
    taken = {p.name for p in program.params} | {s.buffer.name for s in iterate(program.body) if isinstance(s, Allocate)}
    name, k = wish, 0
    while name in taken:
        k += 1
        name = f"{wish}_{k}"
    return name


def fresh_name(program: Program, wish: str) -> str:
    """`wish`, or wish_1, wish_2, … if a block has that name already."""
    taken = {b.name for b in blocks(program)}
    name, k = wish, 0
    while name in taken:
        k += 1
        name = f"{wish}_{k}"
    return name
