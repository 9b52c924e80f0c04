"""Scheduled nests that the tests of the lowering passes share, and the comparison by interpreting before and after."""
from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.core.dtype import f32
from tilewright.loop.interpret import run
from tilewright.loop.ir import (
    TRUE,
    ZERO,
    Allocate,
    Block,
    Buffer,
    Expr,
    For,
    Guard,
    IterVar,
    Module,
    Program,
    Stmt,
    Store,
    Var,
    const,
    seq,
)


def loops(body: Stmt, *specs: tuple[Var, int, str]) -> Stmt:
    """`body` inside loops, the first spec outermost."""
    for v, extent, kind in reversed(specs):
        body = For(v, ZERO, const(extent), body, kind)
    return body


def block(name: str, iters: list[tuple[str, int, str, Expr]], make: Any, predicate: Expr = TRUE) -> Block:
    """A block; `make(*iteration variables)` gives (init or None, body)."""
    ivs = tuple(IterVar(Var(n), const(extent), kind) for n, extent, kind, _ in iters)
    init, body = make(*[iv.var for iv in ivs])
    return Block(name, ivs, tuple(b for *_, b in iters), predicate, body, init)


def variables(names: str) -> list[Var]:
    return [Var(n) for n in names.split()]


def matmul(m: int, n: int, k: int, tm: int, tn: int, uk: int = 4, lanes: int = 16, decomposed: bool = True) -> Program:
    """C = relu(A·B + bias): tiles of tm by tn accumulate in a local copy; predicates where tiles do not divide."""
    a, b = Buffer("A", f32, (const(m), const(k))), Buffer("B", f32, (const(k), const(n)))
    bias, c = Buffer("bias", f32, (const(n),)), Buffer("C", f32, (const(m), const(n)))
    acc = Buffer("C_local", f32, (const(m), const(n)), "local")
    mt, nt, kt, vt = -(-m // tm), -(-n // tn), -(-k // uk), -(-tn // lanes)

    def nest(what: str) -> Stmt:
        mi, nv, nl, ko, ki = variables("mi nv nl ko ki")
        i, j, r = mo * tm + mi, no * tn + nv * lanes + nl, ko * uk + ki
        predicate: Expr = TRUE
        for e, extent, tile in ((i, m, tm), (j, n, tn), (r, k, uk)):
            if extent % tile and not (e is r and what != "update"):
                predicate = e < extent if predicate == TRUE else predicate & (e < extent)
        spatial = [("vi", m, "spatial", i), ("vj", n, "spatial", j)]
        if what == "update":
            blk = block("C_update", [*spatial, ("vk", k, "reduce", r)],
                        lambda x, y, z: (None if decomposed else Store(acc, (x, y), const(0, f32)),
                                         Store(acc, (x, y), acc[x, y] + a[x, z] * b[z, y])), predicate)
            return loops(blk, (ko, kt, "serial"), (ki, uk, "unrolled"), (mi, tm, "unrolled"), (nv, vt, "unrolled"),
                         (nl, lanes, "vectorized"))
        if what == "init":
            blk = block("C_init", spatial, lambda x, y: (None, Store(acc, (x, y), const(0, f32))), predicate)
        else:
            def write(x: Var, y: Var) -> tuple[None, Stmt]:
                v = acc[x, y] + bias[y]
                return None, Store(c, (x, y), Guard(v < 0.0, const(0, f32), v))
            blk = block("C", spatial, write, predicate)
        return loops(blk, (mi, tm, "unrolled"), (nv, vt, "unrolled"), (nl, lanes, "vectorized"))

    mo, no = variables("mo no")
    parts = ["init"] * decomposed + ["update", "write"]
    body = loops(seq([nest(p) for p in parts]), (no, nt, "parallel"), (mo, mt, "serial"))
    return Program("matmul", (a, b, bias, c), Allocate(acc, body))


def conv(h: int, tile: int) -> Program:
    """3x3 convolution of 4 channels into 2 blocks of 8, rows parallel, `tile` columns at a time, borders by a Guard."""
    ic, lanes = 4, 8
    x = Buffer("X", f32, (const(ic), const(h), const(h)))
    w = Buffer("W", f32, (const(2), const(ic), const(3), const(3), const(lanes)))
    out = Buffer("Y", f32, (const(2), const(h), const(h), const(lanes)))
    acc = Buffer("Y_local", f32, out.shape, "local")
    oc, oh, owo = variables("oc oh owo")
    parts: list[Stmt] = []
    for what in ("init", "update", "write"):
        owi, v, c, kh, kw = variables("owi v c kh kw")
        ow = owo * tile + owi
        predicate = ow < h if h % tile else TRUE
        spatial = [("o", 2, "spatial", oc), ("y", h, "spatial", oh), ("x", h, "spatial", ow),
                   ("l", lanes, "spatial", v)]
        if what == "update":
            def update(o: Var, y: Var, xx: Var, lane: Var, ci: Var, i: Var, j: Var) -> tuple[None, Stmt]:
                r, s = y + i - 1, xx + j - 1
                inside = (ZERO <= r) & (r < h) & (ZERO <= s) & (s < h)
                value = Guard(inside, x[ci, r, s], const(0, f32))
                return None, Store(acc, (o, y, xx, lane), acc[o, y, xx, lane] + value * w[o, ci, i, j, lane])
            blk = block("Y_update", [*spatial, ("c", ic, "reduce", c), ("i", 3, "reduce", kh), ("j", 3, "reduce", kw)],
                        update, predicate)
            parts.append(loops(blk, (c, ic, "serial"), (kh, 3, "serial"), (kw, 3, "serial"), (owi, tile, "unrolled"),
                               (v, lanes, "vectorized")))
        elif what == "init":
            blk = block("Y_init", spatial, lambda *at: (None, Store(acc, at, const(0, f32))), predicate)
            parts.append(loops(blk, (owi, tile, "unrolled"), (v, lanes, "vectorized")))
        else:
            blk = block("Y", spatial, lambda *at: (None, Store(out, at, acc[at])), predicate)
            parts.append(loops(blk, (owi, tile, "unrolled"), (v, lanes, "vectorized")))
    body = loops(seq(parts), (oc, 2, "serial"), (oh, h, "parallel"), (owo, -(-h // tile), "serial"))
    return Program("conv", (x, w, out), Allocate(acc, body))


def outputs(p: Program | Module, seed: int = 0, order: Any = "forward") -> list[Any]:
    """The buffers after a run on random data (floats from the integers -4..4, so that sums are exact in any order)."""
    params = (p.programs[0] if isinstance(p, Module) else p).params
    rng = np.random.default_rng(seed)
    args = []
    for b in params:
        assert isinstance(b, Buffer)
        args.append(rng.integers(-4, 5, [e.value for e in b.shape]).astype(b.dtype.numpy()))  # type: ignore[attr-defined]
    run(p, args, order=order)
    return args


def same(before: Program | Module, after: Program | Module) -> None:
    for x, y in zip(outputs(before), outputs(after, order="reverse"), strict=True):
        np.testing.assert_array_equal(x, y)
