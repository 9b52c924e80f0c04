"""wait_for_copies: asynchronous copies have arrived when a barrier says that they have.

In: kernels with barriers, some tensor intrinsics in them asynchronous. Out: each thread waits for its own copies before it
waits for the others. Kernels without such copies stay as they are.

    tensor cp_async_f32(S[…], …, A[…], …): …                tensor cp_async_f32(S[…], …, A[…], …): …
    barrier                                            →    wait_copies(0); barrier

In a loop that loads several steps ahead (attribute "ahead") a step's copies are a group, which is closed behind them, and a
barrier waits for all but the newest groups: wherever in the body it stands, what is computed behind it has arrived. What
follows the loop may read the rest.

    for k in 2..14 {ahead=1}:                               for k in 2..14:
      barrier                                                 wait_copies(1); barrier
      tensor cp_async_f32(S[k % 3, …], …, A[k, …]): …  →      tensor cp_async_f32(S[k % 3, …], …, A[k, …]): …
                                                              commit_copies()
      … S[(k - 2) % 3, …] …                                   … S[(k - 2) % 3, …] …
                                                            wait_copies(0); barrier
"""
from __future__ import annotations

from tilewright.core.dtype import i32, i64
from tilewright.core.node import walk
from tilewright.loop.ir import Call, Evaluate, For, Program, Seq, Stmt, TensorCall, const, seq
from tilewright.loop.lower.split_pipelines import AHEAD
from tilewright.loop.lower.thread_nests import is_barrier
from tilewright.loop.tensor_intrinsics import tensor_intrinsic_named


def wait_for_copies(program: Program) -> Program:
    """A kernel whose threads wait for their copies before each barrier, if it has any."""
    return program.replace(body=_waiting(program.body, 0)) if _copies(program.body) else program


def _copies(s: Stmt) -> bool:
    return any(isinstance(n, TensorCall) and tensor_intrinsic_named(n.name).asynchronous for n in walk(s))


def _waiting(s: Stmt, flying: int) -> Stmt:
    """A statement in which barriers wait for all groups of copies but the `flying` newest."""
    if is_barrier(s):
        return seq(*_all_waiting(flying))
    if isinstance(s, For) and AHEAD in dict(s.attrs):
        ahead = dict(s.attrs)[AHEAD]
        s = s.replace(body=_grouped(s.body), attrs=tuple([(k, v) for k, v in s.attrs if k != AHEAD]))
        assert isinstance(ahead, int)
        inside = s.map(lambda c: _waiting(c, ahead) if isinstance(c, Stmt) else c)
        return seq(inside, *_all_waiting()) if ahead else inside
    if isinstance(s, Seq):
        return _once(seq([_waiting(t, flying) for t in s.stmts]))
    return s.map(lambda c: _waiting(c, flying) if isinstance(c, Stmt) else c)


def _once(s: Stmt) -> Stmt:
    """A sequence in which nobody waits for all twice at one place."""
    out: list[Stmt] = []
    for t in s.stmts if isinstance(s, Seq) else (s,):
        out.append(t)
        if (*out[-4:],) == (*_all_waiting(), *_all_waiting()):
            del out[-2:]
    return seq(out)


def _all_waiting(flying: int = 0) -> tuple[Stmt, Stmt]:
    """Each thread waits for its copies, then for the others."""
    return Evaluate(Call("wait_copies", (const(flying, i32),), i64)), Evaluate(Call("barrier", (), i64))


def _grouped(body: Stmt) -> Stmt:
    """A step, its copies closed as a group."""
    parts = list(body.stmts) if isinstance(body, Seq) else [body]
    last = max((k for k, t in enumerate(parts) if _copies(t)), default=None)
    if last is None:
        return body
    return seq([*parts[:last + 1], Evaluate(Call("commit_copies", (), i64)), *parts[last + 1:]])
