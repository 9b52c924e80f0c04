"""Tables of named things (operators, targets, frontends): duplicates are errors, a miss suggests what was meant."""
from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from tilewright.core.errors import InternalError, UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one `kind` ("operator", "target") by name; iterates over the names in sorted order."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str, value: T) -> T:
        """Enter `value`; InternalError if the name is taken."""
        if name in self._entries:
            raise InternalError(f"the {self.kind} {name!r} is registered twice")
        self._entries[name] = value
        return value

    def get(self, name: str) -> T:
        """The entry. Raises UserError `<kind>-unknown` with the nearest names."""
        found = self._entries.get(name)
        if found is None and name not in self._entries:
            near = get_close_matches(name, self._entries, n=3, cutoff=0.5)
            known = sorted(self._entries)
            hint = f"did you mean {' or '.join(repr(x) for x in near)}?" if near else "known: " + (
                ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "") or "none")
            raise UserError(f"{self.kind.replace(' ', '-')}-unknown", f"there is no {self.kind} {name!r}", hint=hint)
        return found  # type: ignore[return-value]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        """(name, entry) in the order of the names."""
        return iter([(name, self._entries[name]) for name in self])
