"""split_kernels: the nests of a program for a device become kernels, launched one after another.

In: a flat program, its loops bound to blocks and threads. Out: one program per outermost statement, and where the buffers
that they share live: buffers that several kernels use, and those of scope "global", are the caller's workspaces; the
others are allocated in the one kernel that uses them. A nest without bound loops is a kernel of one thread.

    alloc t[n]; alloc s[8] shared           f_0(A, t), f_1(t, C), workspaces (t,)
    for i blockIdx.x: t[i] = …A…      →         f_0: for i blockIdx.x: t[i] = …A…
    for i blockIdx.x: C[i] = …t, s…             f_1: alloc s[8] shared; for i blockIdx.x: C[i] = …t, s…
"""
from __future__ import annotations

from dataclasses import dataclass

from tilewright.loop.ir import Address, Allocate, Buffer, Expr, Launch, Program, Seq, Stmt, Var, as_int, const
from tilewright.loop.substitute import free_buffers, free_vars, substitute


@dataclass(frozen=True)
class Kernels:
    """The kernels in the order of their launches, and the buffers that the caller keeps for them."""
    programs: tuple[Program, ...]
    workspaces: tuple[Buffer, ...]


def split_kernels(program: Program) -> Kernels:
    """One kernel per outermost statement."""
    allocated: list[Buffer] = []
    body = program.body
    while isinstance(body, Allocate) and body.offset is None and body.buffer.data is None:
        allocated.append(body.buffer)
        body = body.body
    stmts = [s for s in (body.stmts if isinstance(body, Seq) else (body,)) if not (isinstance(s, Seq) and not s.stmts)]
    users = {b: [s for s in stmts if b in free_buffers(s)] for b in allocated}
    moved = {b: b if b.scope == "global" else b.replace(scope="global") for b in allocated
             if len(users[b]) > 1 or users[b] and b.scope == "global" and _is_constant(b)}
    changed = {old: new for old, new in moved.items() if old is not new}
    kernels = []
    for k, s in enumerate(stmts):
        own = [b for b in allocated if b not in moved and s in users[b]]
        inner: Stmt = substitute(s, changed) if changed else s
        for b in own:
            inner = Allocate(b, inner)
        kernels.append(_kernel(program, f"{program.name}_{k}", inner, list(moved.values())))
    return Kernels(tuple(kernels), tuple(moved.values()))


def _kernel(program: Program, name: str, body: Stmt, workspaces: list[Buffer]) -> Program:
    used = free_buffers(body)
    buffers = [b for b in (*program.params, *workspaces) if isinstance(b, Buffer) and b in used]
    needed: dict[Var, None] = dict(free_vars(body))
    for b in buffers:
        for e in (*b.shape, *(b.strides or ())):
            needed.update(free_vars(e))
    attrs = tuple([(k, v) for k, v in program.attrs if k in ("noalias", "storage_align", "in_turn")])
    return Program(name, (*buffers, *[p for p in program.params if isinstance(p, Var) and p in needed]), body,
                   (*attrs, ("device", True)))


def launch_of(kernel: Program, grid: tuple[Expr, ...]) -> Launch:
    """The host's launch of a kernel with its own parameters as arguments."""
    args = [Address(p, (const(0),) * p.rank) if isinstance(p, Buffer) else p for p in kernel.params]
    return Launch(kernel.name, tuple(args), None, grid)


def _is_constant(b: Buffer) -> bool:
    return all(as_int(d) is not None for d in b.shape)
