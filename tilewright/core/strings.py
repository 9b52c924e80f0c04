"""Strings as numbers: a dictionary gives every text an i64, so that the graph and its kernels move strings as they move
integers, and equal strings are equal numbers. In: arrays of text. Out: arrays of i64, and back.

0 is the empty string. Numbers from 0 are for good (a model's constants); within `scope()` new texts get negative ones, which
end with it, so that a server that sees ever new texts does not keep them.
"""
from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tilewright.core.errors import InternalError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_lock = threading.Lock()
_texts: list[str] = [""]
_numbers: dict[str, int] = {"": 0}


class _Passing(threading.local):
    """This thread's texts that end with its scope."""
    depth = 0

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.numbers: dict[str, int] = {}


_passing = _Passing()


@contextmanager
def scope() -> Iterator[None]:
    """Texts that are new within it are forgotten at its end (of the outermost one on this thread)."""
    _passing.depth += 1
    try:
        yield
    finally:
        _passing.depth -= 1
        if not _passing.depth:
            _passing.texts.clear()
            _passing.numbers.clear()


def number_of(text: str) -> int:
    """The number of a text."""
    n = _passing.numbers.get(text)
    if n is None:
        n = _numbers.get(text)
    if n is not None:
        return n
    if _passing.depth:
        _passing.texts.append(text)
        n = _passing.numbers[text] = -len(_passing.texts)
        return n
    with _lock:
        n = _numbers.setdefault(text, len(_texts))
        if n == len(_texts):
            _texts.append(text)
    return n


def text_of(number: int) -> str:
    """The text of a number. InternalError for one that was never given out, or whose scope has ended."""
    known, at = (_texts, number) if number >= 0 else (_passing.texts, -number - 1)
    if at >= len(known):
        raise InternalError(f"no string has the number {number}")
    return known[at]


def encode(texts: Any) -> Array:
    """Numbers for an array of str (or bytes, as UTF-8), of the same shape."""
    import numpy as np
    given = np.asarray(texts)
    flat = [number_of(t.decode("utf-8") if isinstance(t, bytes) else str(t)) for t in given.reshape(-1).tolist()]
    return np.array(flat, np.int64).reshape(given.shape)


def decode(numbers: Array) -> Array:
    """The texts of an array of numbers, as an array of objects."""
    import numpy as np
    out = np.empty(numbers.size, object)
    out[:] = [text_of(n) for n in numbers.reshape(-1).tolist()]
    return out.reshape(numbers.shape)
