"""Convolution by Winograd's minimal filtering, F(m×m, 3×3): fewer multiplications for 3×3 windows of stride 1.

Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A on tiles of m×m outputs (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks,
2016); the matrices come from the points by the Toom–Cook construction, in exact fractions. The weights' transform is an
operation of its own on constants, done while compiling. The order of sums differs from the direct form: m = 2 with the
points 0, ±1 loses about a digit less than m = 4, for which 0, ±3/4, ±3/2 are better conditioned than 0, ±1, ±2.

A window of three axes, k×3×3, is filtered so plane by plane: the product sums over its k planes as over channels.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from tilewright.graph.infer import ceil_div, dim, expect, expect_rank, operands
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops.layout import from_blocked, to_blocked
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import Expr, Select, as_int, const
from tilewright.tensor import compute as tc
from tilewright.tensor.compute import Tensor, compute, reduce_axis

KERNEL = 3
POINTS = {2: (Fraction(0), Fraction(1), Fraction(-1)),
          4: (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2))}
"""The finite evaluation points for each tile size; infinity is one more."""

Matrix = tuple[tuple[Fraction, ...], ...]


@functools.cache
def matrices(m: int) -> tuple[Matrix, Matrix, Matrix]:
    """(Aᵀ [m, n], G [n, 3], Bᵀ [n, n]) for n = m + 2. Rows of Bᵀ are scaled to integers over a small power of two, and the
    rows of G inversely."""
    points = POINTS[m]
    n = m + KERNEL - 1
    at = [[p**i for p in points] + [Fraction(int(i == m - 1))] for i in range(m)]
    g: list[list[Fraction]] = []
    bt: list[list[Fraction]] = []
    for j, p in enumerate(points):
        others = points[:j] + points[j + 1:]
        scale = Fraction(1)
        for q in others:
            scale *= p - q
        g.append([p**k / scale for k in range(KERNEL)])
        bt.append([*_product(others), Fraction(0)])
    g.append([Fraction(0)] * (KERNEL - 1) + [Fraction(1)])
    bt.append(_product(points))
    assert len(bt) == n
    return tuple(map(tuple, at)), tuple(map(tuple, g)), tuple(map(tuple, bt))


def _product(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (x - root), lowest power first."""
    out = [Fraction(1)]
    for r in roots:
        out = [a - r * b for a, b in zip([Fraction(0), *out], [*out, Fraction(0)], strict=True)]
    return out


def _array(matrix: Matrix) -> Array:
    return np.array([[float(x) for x in row] for row in matrix])


# ---- weights ---------------------------------------------------------------------------------------------------------
def transform_weights(w: Array, m: int, group: int = 1) -> Array:
    """[O, I, 3, 3] → G w Gᵀ as [n*n, I, O], or [O, I, K, 3, 3] → [n*n, K*I, O]; of several groups [n*n, group, I, O/group];
    computed in f64."""
    g = _array(matrices(m)[1])
    both = np.kron(g, g)  # rows (i, j), columns (a, b)
    planes = w.reshape(*w.shape[:2], -1, KERNEL**2)
    pairs = np.ascontiguousarray(planes.transpose(3, 2, 1, 0)).astype(np.float64)
    u = both @ pairs.reshape(pairs.shape[0], -1)
    u = u.astype(w.dtype).reshape(len(both), -1, w.shape[0])
    return u if group == 1 else np.ascontiguousarray(u.reshape(*u.shape[:2], group, -1).swapaxes(1, 2))


def _infer_weights(op: Operation) -> Sequence[TensorType]:
    (w,) = operands(op, 1)
    expect(w.rank in (4, 5) and [as_int(d) for d in w.shape[-2:]] == [KERNEL, KERNEL], "shape-mismatch",
           f"winograd_weights: a kernel of 3×3 or k×3×3 is needed, not {w.type}")
    n, planes = op.attrs["m"] + KERNEL - 1, w.shape[2] if w.rank == 5 else const(1)
    return [TensorType(w.dtype, (const(n * n), dim(planes * w.shape[1]), w.shape[0]))]


# ---- convolution -----------------------------------------------------------------------------------------------------
def _planes(attrs: dict[str, Any], depth: int) -> tuple[int, int, int, int]:
    """(Planes of the window, their distance, the distance of its positions, number of positions) over `depth` planes."""
    size, apart, stride = attrs["planes"] or (1, 1, 1)
    return size, apart, stride, (depth - (size - 1) * apart - 1) // stride + 1


def _groups(u: Sequence[Expr]) -> int:
    """Groups by the shape of transformed weights."""
    return as_int(u[1]) or 1 if len(u) == 4 else 1


def _infer(op: Operation) -> Sequence[TensorType]:
    x, u = operands(op, 2)
    m = op.attrs["m"]
    expect(x.rank == (6 if op.attrs["planes"] else 5), "shape-mismatch",
           f"winograd_conv: an operand of rank {6 if op.attrs['planes'] else 5} is needed, not {x.type}")
    block = x.shape[-1]
    if u.rank != 3:
        expect_rank(op, u, 4)
        expect(x.rank == 5 and all((as_int(d) or 0) % (as_int(block) or 1) == 0 for d in u.shape[2:]), "shape-mismatch",
               f"winograd_conv: groups of {u.shape[2]} and {u.shape[3]} channels are no whole blocks of {block}")
    for axis, out in ((-3, op.attrs["height"]), (-2, op.attrs["width"])):
        need = -(-out // m) * m + KERNEL - 1
        expect(as_int(x.shape[axis]) == need, "shape-mismatch",
               f"winograd_conv: {out} outputs in tiles of {m} read {need} inputs, the padded axis has {x.shape[axis]}")
    depth = [const(_planes(op.attrs, as_int(d) or 1)[3]) for d in x.shape[2:-3]]
    blocks = ceil_div(u.shape[-1] * _groups(u.shape), as_int(block) or 1)
    return [TensorType(x.dtype, (x.shape[0], blocks, *depth, const(op.attrs["height"]), const(op.attrs["width"]), block))]


def _numpy(attrs: dict[str, Any], x: Array, u: Array) -> Array:
    if u.ndim == 4:
        parts = np.split(x, u.shape[1], axis=1)
        return np.concatenate([_numpy(attrs, part, u[:, g]) for g, part in enumerate(parts)], axis=1)
    m, height, width = attrs["m"], attrs["height"], attrs["width"]
    at, _, bt = (_array(a) for a in matrices(m))
    n, b = m + KERNEL - 1, x.shape[-1]
    size, apart, stride, depth = _planes(attrs, x.shape[2] if attrs["planes"] else 1)
    channels = u.shape[1] // size
    plain = from_blocked(x, channels).astype(np.float64).reshape(x.shape[0], channels, -1, *x.shape[-3:-1])
    th, tw = -(-height // m), -(-width // m)
    out = np.zeros((x.shape[0], u.shape[2], depth, th * m, tw * m))
    uu = u.reshape(n, n, size, channels, -1).astype(np.float64)
    for z in range(depth):
        near = plain[:, :, z * stride:z * stride + (size - 1) * apart + 1:apart]
        for ty in range(th):
            for tx in range(tw):
                d = near[..., ty * m:ty * m + n, tx * m:tx * m + n]
                v = np.einsum("ia,Nckab,jb->Nijkc", bt, d, bt, optimize=True)
                y = np.einsum("Nijkc,ijkco->Noij", v, uu, optimize=True)
                tile = np.einsum("ai,Noij,bj->Noab", at, y, at, optimize=True)
                out[:, :, z, ty * m:(ty + 1) * m, tx * m:(tx + 1) * m] = tile
    out = out[..., :height, :width].astype(x.dtype)
    return to_blocked(out if attrs["planes"] else out[:, :, 0], b)


def combination(row: Sequence[Fraction], terms: Callable[[int], Expr]) -> Expr:
    """The sum of row[k] * terms(k) without the zeros; factors of ±1 cost no product."""
    out: Expr | None = None
    for k, c in enumerate(row):
        if not c:
            continue
        t = terms(k)
        if out is None:
            out = t if c == 1 else -t if c == -1 else t * float(c)
        else:
            out = out + t if c == 1 else out - t if c == -1 else out + t * float(c)
    assert out is not None
    return out


def linear(matrix: Matrix, i: Expr, terms: Callable[[int], Expr]) -> Expr:
    """Row `i` of a constant matrix times a vector; a constant `i` (an unrolled loop) leaves one sum."""
    out = combination(matrix[-1], terms)
    for k in range(len(matrix) - 2, -1, -1):
        out = Select(i.eq(k), combination(matrix[k], terms), out)
    return out


def _compute(op: Operation, x: Tensor, u: Tensor) -> Tensor:
    """Input transform by columns and rows, one product per frequency, output transform by columns and rows."""
    m, height, width = op.attrs["m"], op.attrs["height"], op.attrs["width"]
    at, _, bt = matrices(m)
    n, b = m + KERNEL - 1, as_int(x.shape[-1]) or 1
    th, tw = -(-height // m), -(-width // m)
    planes = bool(op.attrs["planes"])
    size, apart, stride, depth = _planes(op.attrs, as_int(x.shape[2]) or 1 if planes else 1)
    batch, blocks = x.shape[0], as_int(x.shape[1]) or 0
    blocks_in = const(size * blocks)
    tiles = dim(batch * (depth * th * tw))
    groups, in_c, out_c = _groups(u.shape), as_int(u.shape[-2]) or 0, as_int(u.shape[-1]) or 0

    # d[p, c, i, a]: rows combined; v[(i, j), p, c]: columns combined; channels of all planes of a window
    def rows(p: Expr, co: Expr, i: Expr, a: Expr, ci: Expr) -> Expr:
        ty, tx = p // tw % th, p % tw
        if planes:
            z = p // (th * tw) % depth * stride + co // blocks * apart
            at_plane: tuple[Expr, ...] = (p // (depth * th * tw), co % blocks, z)
        else:
            at_plane = (p // (th * tw), co)
        return linear(bt, i, lambda k: x[*at_plane, ty * m + k, tx * m + a, ci])
    d = compute((tiles, blocks_in, n, n, b), rows, name="wino_rows")
    v = compute((n, n, tiles, blocks_in, b),
                lambda i, j, p, co, ci: linear(bt, j, lambda k: d[p, co, i, k, ci]), name="wino_input")
    ico, ici, ic = reduce_axis(dim(blocks_in // groups), "ico"), reduce_axis(b, "ici"), reduce_axis(in_c, "ic")
    blocks_out = as_int(op.output.shape[1] // groups) or 0

    def product(f: Expr, *at: Expr) -> Any:
        """Sums what is of the last block; whole blocks of results, since zeros go into packed weights and guards do not."""
        *g, p, o = at
        c: Expr = ic.var if in_c % b else ico.var * b + ici.var
        block, lane = (ic.var // b, ic.var % b) if in_c % b else (ico.var, ici.var)
        weight: Expr = u[(f, *g, c, o)]
        if out_c % b:
            weight = tc.if_then_else(o < out_c, weight, 0.0)
        return tc.sum(v[f // n, f % n, p, g[0] * (in_c // b) + block if g else block, lane] * weight,
                      axis=[ic] if in_c % b else [ico, ici])
    prod = compute((n * n, *u.shape[1:-2], tiles, blocks_out * b), product, name="wino_product")

    def back_rows(p: Expr, oo: Expr, i: Expr, j: Expr, oi: Expr) -> Expr:
        g, block = ((oo // blocks_out,), oo % blocks_out) if groups > 1 else ((), oo)
        return linear(at, i, lambda k: prod[(k * n + j, *g, p, block * b + oi)])
    s = compute((tiles, op.output.shape[1], m, n, b), back_rows, name="wino_back")

    def back(img: Expr, oo: Expr, *at_output: Expr) -> Expr:
        *z, h, w, oi = at_output
        p = ((img * depth + z[0] if z else img) * th + h // m) * tw + w // m
        return linear(at, w % m, lambda k: s[p, oo, h % m, k, oi])
    return compute(op.output.shape, back, name="wino_output")


_M = Attr("int", doc="outputs per tile and axis: 2 or 4")
RECORDS = (
    OpRecord("winograd_weights", "opaque", _infer_weights, lambda a, w: transform_weights(w, a["m"]), None, {"m": _M},
             doc="[O, I, 3, 3] → [(m+2)², I, O]: G w Gᵀ; [O, I, K, 3, 3] → [(m+2)², K·I, O]."),
    OpRecord("winograd_conv", "anchor", _infer, _numpy, _compute,
             {"m": _M, "height": Attr("int", doc="of the output"), "width": Attr("int", doc="of the output"),
              "planes": Attr("ints", None, doc="of a window k×3×3: k, the distance of its planes, its stride over planes")},
             doc="x [N, C/b, H, W, b] or [N, C/b, D, H, W, b], padded to whole tiles, over transformed weights; 3×3 of "
                 "stride 1, in groups where these are whole blocks, or k×3×3 (then C is a multiple of b)."),
)
