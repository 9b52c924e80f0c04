"""An index map: where the element at some indices goes, as data that a trace holds, prints and replays.

In: a function of a buffer's indices, `lambda n, k: [n // 16, k, n % 16]`. Out: an `IndexMap`, which is called like it.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tilewright.core.errors import UserError
from tilewright.loop.ir import Expr, IntoExpr, Var, expr
from tilewright.loop.printer import print_expr
from tilewright.loop.substitute import substitute

IndexFunction = Callable[..., Sequence[Any]]


@dataclass(frozen=True)
class IndexMap:
    """Index (axes[0], axes[1], …) goes to (places[0], places[1], …)."""
    axes: tuple[Var, ...]
    places: tuple[Expr, ...]

    @staticmethod
    def of(f: IndexFunction, rank: int) -> IndexMap:
        """The map that `f` is on `rank` indices. Raises UserError if it takes another number of them or returns no list."""
        if isinstance(f, IndexMap):
            if len(f.axes) != rank:
                raise UserError("index-map", f"the map takes {len(f.axes)} indices, not {rank}")
            return f
        parameters = inspect.signature(f).parameters.values()
        named = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
        axes = tuple([Var(p.name) for p in parameters] if named and len(parameters) == rank
                     else [Var(f"x{k}") for k in range(rank)])
        try:
            inspect.signature(f).bind(*axes)
        except TypeError as e:
            raise UserError("index-map", f"the map does not take {rank} indices ({e})") from e
        places = f(*axes)
        if not isinstance(places, list | tuple) or not places:
            raise UserError("index-map", f"the map must return a list of indices, not {places!r}")
        return IndexMap(axes, tuple([expr(e) for e in places]))

    def __call__(self, *indices: IntoExpr) -> list[Expr]:
        at = dict(zip(self.axes, [expr(i) for i in indices], strict=True))
        return [substitute(e, at) for e in self.places]

    def then(self, other: IndexMap) -> IndexMap:
        """This map followed by another one."""
        return IndexMap(self.axes, tuple(other(*self.places)))

    def renamed(self, sizes: Mapping[Var, Var]) -> IndexMap:
        """The map with other variables for the symbolic sizes that it mentions."""
        return IndexMap(self.axes, tuple([substitute(e, sizes) for e in self.places]))

    def __repr__(self) -> str:
        return f"({', '.join(v.name for v in self.axes)}) -> ({', '.join(map(print_expr, self.places))})"
