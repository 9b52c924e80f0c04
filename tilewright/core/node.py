"""The one machinery under both IRs: immutable nodes whose children, rebuilding, equality and hash follow from fields.

    @node
    class Add(Expr):
        a: Expr
        b: Expr

A field is a *child* if its type is a Node, an optional Node, or a tuple of Nodes; every other field is plain data.
Names listed in `binders` are definitions (a loop's variable, an allocated buffer): they are not visited as children,
and `alpha_equal` matches them up. A class with `by_identity = True` (variables, buffers) is equal only to itself and has
no children (a traversal sees it as a leaf).
`loc`, where a node came from in the user's model or program, is outside equality and inherited by replacements.
"""
from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar, cast, dataclass_transform

T = TypeVar("T", bound="Node")
_MISSING = object()
PRINTERS: dict[type, Callable[[Any], str]] = {}
"""How `repr` shows nodes of a class and its subclasses; each IR's printer enters its own."""


class Node:
    """Base of every IR node. Declare subclasses with `@node`; never assign to a field after construction."""

    __slots__ = ("loc", "_hash")
    fields: ClassVar[tuple[str, ...]] = ()
    _child_fields: ClassVar[tuple[str, ...] | None] = None
    binders: ClassVar[tuple[str, ...]] = ()
    by_identity: ClassVar[bool] = False
    loc: Any

    def children(self) -> Iterator[Node]:
        """Child nodes in field order (definitions are not children)."""
        for f in self._child_fields or _children_of(type(self)):
            v = getattr(self, f)
            if v is None:
                continue
            if isinstance(v, tuple):
                yield from v
            else:
                yield v

    def map(self: T, f: Callable[[Any], Any]) -> T:
        """This node with `f` applied to each child; the very same object when no child changed."""
        new: dict[str, Any] | None = None
        for name in self._child_fields or _children_of(type(self)):
            v = getattr(self, name)
            if v is None:
                continue
            if isinstance(v, tuple):
                w = tuple([f(c) for c in v])
                if all([x is y for x, y in zip(v, w, strict=True)]):
                    continue
            else:
                w = f(v)
                if w is v:
                    continue
            if new is None:
                new = {}
            new[name] = w
        return self if new is None else self.replace(**new)

    def replace(self: T, **changes: Any) -> T:
        """A copy with some fields changed; keeps `loc`."""
        cls = type(self)
        out = cls(*[changes[f] if f in changes else getattr(self, f) for f in cls.fields])
        out.loc = self.loc
        return out

    def at(self: T, loc: Any) -> T:
        """This node, marked as coming from `loc`, unless it already says where it came from."""
        if self.loc is None:
            self.loc = loc
        return self

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other) or self.by_identity or hash(self) != hash(other):
            return False
        return all(_same(getattr(self, f), getattr(other, f)) for f in self.fields)

    def __hash__(self) -> int:
        h: int | None = self._hash  # type: ignore[has-type]
        if h is None:
            h = id(self) >> 4 if self.by_identity else hash(
                (type(self).__name__, *[_nan_alike(getattr(self, f)) for f in self.fields]))
            self._hash = h
        return h

    def __repr__(self) -> str:
        for cls in type(self).__mro__:
            if cls in PRINTERS:
                return PRINTERS[cls](self)
        return f"{type(self).__name__}({', '.join(f'{f}={getattr(self, f)!r}' for f in self.fields)})"


def _nan_alike(v: Any) -> Any:
    """The value to hash for a field: Python hashes each NaN by identity, but they are equal fields."""
    return "nan" if type(v) is float and v != v else v


def _same(a: Any, b: Any) -> bool:
    """Field equality that tells 1 from 1.0 from True, 0.0 from -0.0, and holds for NaN."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return repr(a) == repr(b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _children_of(cls: type[Node]) -> tuple[str, ...]:
    """The child fields of a class, found at its first use: annotations may name classes declared later."""
    if cls.__dict__.get("_child_fields") is None:
        hints: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            if base is not Node and issubclass(base, Node):
                own = {k: v for k, v in base.__dict__.get("__annotations__", {}).items() if k in cls.fields}
                scope = vars(sys.modules[base.__module__])
                hints |= {k: eval(v, scope) if isinstance(v, str) else v for k, v in own.items()}
        cls._child_fields = () if cls.by_identity else tuple(
            f for f in cls.fields if f not in cls.binders and _is_node_type(hints[f]))
    return cls._child_fields or ()


def _is_node_type(t: Any) -> bool:
    if isinstance(t, type):
        return issubclass(t, Node)
    origin = typing.get_origin(t)
    if origin is tuple or origin in (typing.Union, types.UnionType):
        return any(_is_node_type(a) for a in typing.get_args(t))
    return False


@dataclass_transform(eq_default=False, frozen_default=False)
def node(cls: type[T]) -> type[T]:
    """Class decorator: slots, a fast positional constructor and `match` support from the annotated fields."""
    own = {k: cls.__dict__.get(k, _MISSING) for k, v in cls.__dict__.get("__annotations__", {}).items()
           if "ClassVar" not in str(v)}
    fields = (*cls.fields, *own)
    body = {k: v for k, v in cls.__dict__.items() if k not in own and k not in ("__dict__", "__weakref__")}
    defaults = {**getattr(cls, "_defaults", {}), **{k: v for k, v in own.items() if v is not _MISSING}}
    body["__slots__"] = tuple(own)
    body["fields"], body["_defaults"], body["__match_args__"] = fields, defaults, fields
    body["_child_fields"] = None
    new: Any = cast(Any, type(cls))(cls.__name__, cls.__bases__, body)
    new.__qualname__ = cls.__qualname__
    if "__init__" not in cls.__dict__:
        args = ", ".join(f"{f}=_defaults[{f!r}]" if f in defaults else f for f in fields)
        lines = [f"def __init__(self, {args}):"] + [f"    self.{f} = {f}" for f in fields]
        lines += ["    self.loc = None", "    self._hash = None"]
        scope: dict[str, Any] = {"_defaults": defaults}
        exec("\n".join(lines), scope)
        new.__init__ = scope["__init__"]
    return cast("type[T]", new)


def walk(root: Node) -> Iterator[Node]:
    """Every node under `root`, parents before children, without recursion."""
    stack = [root]
    while stack:
        n = stack.pop()
        yield n
        stack.extend(reversed(list(n.children())))


def transform(root: T, f: Callable[[Any], Any]) -> T:
    """Rebuild bottom-up: `f(node)` sees each node after its children were rebuilt. Shared nodes are visited once."""
    done: dict[int, Any] = {}
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        n, ready = stack.pop()
        if id(n) in done:
            continue
        if ready:
            new = f(n.map(lambda c: done[id(c)]))
            if new is not n and isinstance(new, Node) and new.loc is None:
                new.loc = n.loc
            done[id(n)] = new
        else:
            stack.append((n, True))
            stack.extend((c, False) for c in n.children() if id(c) not in done)
    return typing.cast(T, done[id(root)])


def alpha_equal(a: Any, b: Any, names: dict[Any, Any] | None = None) -> bool:
    """Structural equality up to the identity of bound definitions (loop variables, allocated buffers, parameters).

    `names` maps definitions of `a` to those of `b` that are already matched; by-identity nodes that are bound nowhere
    must be the same object.
    """
    return _alpha(a, b, {} if names is None else names)


def _alpha(a: Any, b: Any, m: dict[Any, Any]) -> bool:
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(_alpha(x, y, m) for x, y in zip(a, b, strict=True))
    if not isinstance(a, Node):
        return _same(a, b)
    if type(a) is not type(b):
        return False
    if a.by_identity:
        return m.get(a, a) is b
    for f in a.binders:
        if not _bind(getattr(a, f), getattr(b, f), m):
            return False
    return all(f in a.binders or _alpha(getattr(a, f), getattr(b, f), m) for f in a.fields)


def _bind(a: Any, b: Any, m: dict[Any, Any]) -> bool:
    if isinstance(a, tuple):
        if not isinstance(b, tuple) or len(a) != len(b):
            return False
        pairs = list(zip(a, b, strict=True))
        # All first: the shape of a parameter may name a later one.
        m.update({x: y for x, y in pairs if isinstance(x, Node) and x.by_identity})
        return all(_bind(x, y, m) for x, y in pairs)
    if not isinstance(a, Node):
        return _same(a, b)
    if type(a) is not type(b):
        return False
    if a.by_identity:
        if not all(f == "name" or _alpha(getattr(a, f), getattr(b, f), m) for f in a.fields):
            return False
        m[a] = b
        return True
    return all(f in a.binders and _bind(getattr(a, f), getattr(b, f), m) or _alpha(getattr(a, f), getattr(b, f), m)
               for f in a.fields)


def structural_hash(root: Any) -> int:
    """A hash equal for alpha-equal trees (names of variables and buffers do not count); stable within a process."""
    if isinstance(root, tuple):
        return hash(tuple([structural_hash(x) for x in root]))
    if not isinstance(root, Node):
        return hash((type(root).__name__, repr(root) if isinstance(root, float) else root))
    skip = ("name",) if root.by_identity else ()
    return hash((type(root).__name__, *[structural_hash(getattr(root, f)) for f in root.fields if f not in skip]))


FRAMES = 20000
"""Calls that may be open at once: a walk takes about four per level, and the host program of a large model has one level
for each of its values."""


def allow_deep_programs() -> None:
    """Let walks of deeply nested programs recurse (never less deeply than Python's setting allows already)."""
    sys.setrecursionlimit(max(FRAMES, sys.getrecursionlimit()))
