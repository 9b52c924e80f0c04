"""Tensor intrinsics in C-like languages, and how the threads of a warp hold its buffers.

In: TensorCalls, and buffers of scope "warp" with the fragments that the calls of a kernel give them. Out: the text of a
call's template, its operands as pointers and strides; for an element of a warp's buffer, the place among its thread's own.
A buffer of a warp holds whole fragments, one behind the other; a thread has `registers` elements of each.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tilewright.core.errors import UserError
from tilewright.core.node import walk
from tilewright.loop import ir
from tilewright.loop.lower.linear import from_linear, linear
from tilewright.loop.match_tensor import strides_of
from tilewright.loop.simplify import simplify
from tilewright.loop.tensor_intrinsics import Fragment, TensorIntrinsic, fill, template_for, tensor_intrinsic_named


@dataclass(frozen=True)
class Held:
    """How a warp holds a buffer: fragments along two of its dimensions, `tile` elements along each dimension."""
    fragment: Fragment
    dims: tuple[int, ...]
    tile: tuple[int, ...]
    threads: int

    def size(self, b: ir.Buffer) -> int:
        """Elements that one thread has of a buffer."""
        n = self.fragment.registers(self.threads)
        for extent, step in zip(b.shape, self.tile, strict=True):
            n *= (ir.as_int(extent) or 0) // step
        return n

    def first(self, b: ir.Buffer, indices: Sequence[ir.Expr]) -> ir.Expr | None:
        """The place of the fragment that begins at some indices among the elements of a thread; None between two."""
        place: ir.Expr = ir.ZERO
        for i, extent, step in zip(indices, b.shape, self.tile, strict=True):
            terms, constant = linear(i)
            if constant % step or any(c % step for c in terms.values()):
                return None
            tiles = (ir.as_int(extent) or 0) // step
            place = place * tiles + from_linear([(a, c // step) for a, c in terms.items()], constant // step, i)
        return simplify(place * self.fragment.registers(self.threads))

    def element(self, b: ir.Buffer, indices: Sequence[ir.Expr]) -> tuple[ir.Expr, ir.Expr]:
        """The thread that has an element, and its place there."""
        own = [indices[d] % step for d, step in zip(self.dims, self.fragment.shape, strict=True)]
        place: ir.Expr = ir.ZERO
        for i, extent, step in zip(indices, b.shape, self.tile, strict=True):
            place = place * ((ir.as_int(extent) or 0) // step) + i // step
        place = place * self.fragment.registers(self.threads) + self.fragment.register(*own)
        return self.fragment.lane(*own), place


def held_buffers(p: ir.Program) -> dict[ir.Buffer, Held]:
    """How the buffers of a kernel's warps are held. Raises UserError "intrinsic-layout" where two intrinsics disagree, or
    fragments do not fit a buffer, and "kernel-warp" for a buffer that several kernels share."""
    out: dict[ir.Buffer, Held] = {}
    for n in walk(p.body):
        if not isinstance(n, ir.TensorCall):
            continue
        intrinsic = tensor_intrinsic_named(n.name)
        for operand, first, further in operands_of(n, intrinsic):
            if operand.scope != "warp":
                continue
            if first.buffer.scope != "warp":
                raise UserError("kernel-warp", f"no warp can hold {first.buffer.name}: several kernels use it", where=p.name,
                                hint="let one loop over blocks hold all blocks that use it")
            held = _held(n, intrinsic, operand, first, further)
            if out.setdefault(first.buffer, held) != held:
                raise UserError("intrinsic-layout", f"{first.buffer.name} is held as {out[first.buffer].fragment.name} and "
                                f"as {held.fragment.name}", where=str(n), hint="let each buffer of a warp be one operand's")
    return out


def operands_of(s: ir.TensorCall, intrinsic: TensorIntrinsic) -> list[tuple[ir.Buffer, ir.Load, list[ir.Load]]]:
    """Each operand, the first element of its tile, and its neighbours along each dimension."""
    places = iter(s.tiles)
    return [(b, next(places), [next(places) for _ in range(b.rank)]) for b in intrinsic.operands]


def _held(s: ir.TensorCall, intrinsic: TensorIntrinsic, operand: ir.Buffer, first: ir.Load, further: list[ir.Load]) -> Held:
    b, dims = first.buffer, []
    tile = [1] * b.rank
    for near, extent in zip(further, operand.shape, strict=True):
        moved = [linear(simplify(j - i)) for i, j in zip(first.indices, near.indices, strict=True)]
        along = [d for d, m in enumerate(moved) if m != ({}, 0)]
        if len(along) != 1 or moved[along[0]] != ({}, 1) or (ir.as_int(b.shape[along[0]]) or 1) % (ir.as_int(extent) or 1):
            raise UserError("intrinsic-layout", f"{b!r} is not made of whole fragments of {operand!r}", where=str(s),
                            hint="split its loops by the fragment's shape")
        dims.append(along[0])
        tile[along[0]] = ir.as_int(extent) or 1
    return Held(intrinsic.fragments[operand.name], tuple(dims), tuple(tile), intrinsic.threads)


def tensor_text(s: ir.TensorCall, language: str, lane: str, address: Callable[[ir.Load], str],
                expr: Callable[[ir.Expr], str]) -> list[str]:
    """The lines of a call. `address` is the text of an element's address, `expr` that of an index."""
    intrinsic = tensor_intrinsic_named(s.name)
    template = template_for(intrinsic, (language,))
    words: dict[str, Callable[[int | None], str]] = {"lane": lambda d: lane}
    for operand, first, further in operands_of(s, intrinsic):
        steps = [] if operand.scope == "warp" else _steps(s, intrinsic, operand, first, further)
        at, sizes = address(first), [expr(e) for e in steps]
        words[operand.name] = lambda d, at=at, sizes=sizes: at if d is None else sizes[d]  # type: ignore[misc]
    return [line.strip() for line in fill(template, words).strip().splitlines()]


def _steps(s: ir.TensorCall, intrinsic: TensorIntrinsic, operand: ir.Buffer, first: ir.Load,
           further: list[ir.Load]) -> list[ir.Expr]:
    """The strides of an operand's tile. Raises UserError "intrinsic-layout" for others than the intrinsic asks for."""
    def wrong(what: str) -> UserError:
        return UserError("intrinsic-layout", f"the tensor intrinsic {s.name} wants {what} of its operand {operand.name}, "
                         f"which is not so of {first.buffer.name}", where=str(s),
                         hint="transform_layout or storage_align the buffer, or take another intrinsic")

    base = position(first)
    steps = [simplify(position(p) - base) for p in further]
    for d, want in enumerate(operand.strides or ()):
        if ir.as_int(want) and ir.as_int(steps[d]) != ir.as_int(want) and ir.as_int(operand.shape[d]) != 1:
            raise wrong(f"a stride of {ir.as_int(want)} along dimension {d}")
    n = intrinsic.aligned.get(operand.name, 1)
    for e in (base, *[e for e in steps if ir.as_int(e) != 1]):
        terms, constant = linear(e)
        if constant % n or any(c % n for c in terms.values()):
            raise wrong(f"rows at multiples of {n} elements")
    return steps


def position(n: Any) -> ir.Expr:
    """The element of its buffer's memory that an access means."""
    total: ir.Expr = ir.ZERO
    for i, step in zip(n.indices, strides_of(n.buffer), strict=True):
        total = total + i * step
    return simplify(total)
