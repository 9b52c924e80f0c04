"""The statements and programs of the loop IR, over its expressions; semantics in `loop/ir.py`."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tilewright.core.node import Node, node
from tilewright.loop.expressions import Buffer, Expr, Load, Var

HOST_CALL = "tw_host_call"
"""The callee of a Launch that calls a function of the process."""


# ---- statements ------------------------------------------------------------------------------------------------------
class Stmt(Node):
    __slots__ = ()


@node
class Store(Stmt):
    buffer: Buffer
    indices: tuple[Expr, ...]
    value: Expr


@node
class Evaluate(Stmt):
    """An effectful call: prefetch, assertion helpers, host calls."""
    value: Expr


@node
class Seq(Stmt):
    stmts: tuple[Stmt, ...]


LoopKind = Literal["serial", "parallel", "vectorized", "unrolled", "vthread",
                   "blockIdx.x", "blockIdx.y", "blockIdx.z", "threadIdx.x", "threadIdx.y", "threadIdx.z"]


@node
class For(Stmt):
    """`for var in start .. start+extent`. `attrs` are (key, value) pairs of plain data for later passes and emission."""
    binders = ("var",)
    var: Var
    start: Expr
    extent: Expr
    body: Stmt
    kind: str = "serial"
    attrs: tuple[tuple[str, Any], ...] = ()


@node
class If(Stmt):
    cond: Expr
    then: Stmt
    otherwise: Stmt | None = None


@node
class While(Stmt):
    """Repeat `body` as long as `cond` (evaluated before each turn) holds."""
    cond: Expr
    body: Stmt


@node
class Let(Stmt):
    binders = ("var",)
    var: Var
    value: Expr
    body: Stmt


@node
class Allocate(Stmt):
    """`buffer` exists within `body`. For scope "arena", `offset` is its planned byte offset."""
    binders = ("buffer",)
    buffer: Buffer
    body: Stmt
    offset: Expr | None = None


@node
class IterVar(Node):
    """An iteration variable of a block: its domain is [0, extent), `kind` "spatial" or "reduce"."""
    binders = ("var",)
    var: Var
    extent: Expr
    kind: str = "spatial"


@node
class Block(Stmt):
    """One compute statement. `bindings[i]` is the value of `iters[i].var` in terms of the loops around the block.

    `name` is unique within a program: it is the block's handle. `init` runs before `body` when every reduction variable
    is at its first value. Instances where `predicate` is false do nothing.
    """
    binders = ("iters",)
    name: str
    iters: tuple[IterVar, ...]
    bindings: tuple[Expr, ...]
    predicate: Expr
    body: Stmt
    init: Stmt | None = None
    attrs: tuple[tuple[str, Any], ...] = ()


@node
class TensorCall(Stmt):
    """One application of the tensor intrinsic `name` (`loop/tensor_intrinsics.py`) to tiles in memory.

    `body` is what it does, as ordinary loops: passes and the interpreter look at it; code generators write the
    intrinsic's instructions instead. `tiles` says where these find their operands, as places that are not read: for each
    operand the first element of its tile, then for each of its dimensions the element one step further (the first again
    in a dimension of one).
    """
    name: str
    tiles: tuple[Load, ...]
    body: Stmt


@node
class ExternCall(Stmt):
    """A call of the C function `symbol`, of which nothing is known but what it may touch (`loop/externs.py`).

    `args` are what it is passed, in order: numbers, which contain no loads, and Loads, which are places that are not read:
    the function gets their addresses. `body` reads and writes, by ordinary loops, all that the function may read and write:
    passes look at it, nobody runs it. With `status` the function returns an int, which ends the run unless it is 0.
    """
    symbol: str
    args: tuple[Expr, ...]
    body: Stmt
    status: bool = False


@node
class Launch(Stmt):
    """Call a program of the module: a kernel from the host, or (`tasks` given) a parallel region's body for 0 … tasks-1.

    `args` are scalars and Addresses, matching the callee's parameters. A region has one parameter before them, the task,
    or two, a range: then it is called for disjoint ranges begin <= task < end that together are all tasks.
    The callee HOST_CALL is a function of the process that runs the program: `args` are its slot and Addresses.
    `grid` makes it the launch of a device's kernel: its blocks along x, y, z, then the threads of a block along x, y, z.
    The kernel's own loops over blockIdx and threadIdx say the same.
    """
    callee: str
    args: tuple[Expr, ...]
    tasks: Expr | None = None
    grid: tuple[Expr, ...] = ()


@node
class Assert(Stmt):
    """Return the error `code` with `message` to the caller of the entry point unless `cond` holds. Each {} of the message
    is one of `values`: up to three i64, which are evaluated in any case."""
    cond: Expr
    code: int
    message: str
    values: tuple[Expr, ...] = ()


# ---- programs --------------------------------------------------------------------------------------------------------
@node
class Program(Node):
    """A function over buffers and scalars: what one fused group computes, or the host's main.

    `params` in ABI order; outputs are the buffers that the body writes. `attrs`: ("noalias", True), ("params", names of
    buffers that hold weights and may be prepacked), …
    """
    binders = ("params",)
    name: str
    params: tuple[Var | Buffer, ...]
    body: Stmt
    attrs: tuple[tuple[str, Any], ...] = ()

    def attr(self, key: str, default: Any = None) -> Any:
        return dict(self.attrs).get(key, default)


@node
class Module(Node):
    """Programs that call each other by name; the unit of code generation."""
    programs: tuple[Program, ...]


def seq(*stmts: Stmt | Sequence[Stmt] | None) -> Stmt:
    """The statements in order, nested sequences flattened, None left out."""
    flat: list[Stmt] = []
    for s in stmts:
        for t in ([s] if isinstance(s, Stmt) else s or ()):
            flat.extend(t.stmts if isinstance(t, Seq) else (t,))
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))
