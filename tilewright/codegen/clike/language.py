"""What one C-like kernel language is, as a table: `printer.py` writes every language by asking one of these.

A language is data and a few templates. What differs beyond words (a vector copy, the memory of a parameter) is a template
too, so that adding a language is adding a table.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

HELPERS: Mapping[str, str] = {
    "floordiv": "{i} r = a / b; return (r * b != a && (a < 0) != (b < 0)) ? r - 1 : r;",
    "floormod": "{i} r = a % b; return (r != 0 && (r < 0) != (b < 0)) ? r + b : r;",
    "min": "return (a != a || a < b) ? a : b;",
    "max": "return (a != a || a > b) ? a : b;",
    "sign": "return a > 0 ? 1 : a < 0 ? -1 : a;",
}
"""Bodies of the helper functions that the loop IR's meaning needs, of the operands a and b of type {i}."""


@dataclass(frozen=True)
class Language:
    """A C-like language.

    `types`: what each element type is called; one that is missing cannot be used on such devices. `prelude` opens a module.
    `kernel`: the head of a kernel, from {name}, {params}, {x}, {y}, {z} (threads) and {threads} (in all); `buffer` and
    `number`: a parameter, from {type}, {name}, {const}; `begin`: a line per buffer that goes before the body, e.g. to add
    its offset ("" for none). `index`: expressions of the bound axes. `shared`: an array shared by a block's threads;
    `local`: a private one, both from {type}, {name}, {n}. `barrier` is a statement. `functions`: intrinsic → a template
    of its operands {0}, {1}, … for f32; `double` has those of f64. `helper`: the head of a helper function, from {type},
    {name}, {params}. `wide`: copies {n} elements of {type} from {source} to {to}; "" if there is no such thing.
    `suffix`: what a literal ends with, by type.
    """

    name: str
    types: Mapping[str, str]
    kernel: str
    buffer: str
    index: Mapping[str, str]
    functions: Mapping[str, str]
    number: str = "const {type} {name}"
    begin: str = ""
    prelude: str = ""
    shared: str = "{type} {name}[{n}];"
    local: str = "{type} {name}[{n}];"
    barrier: str = ""
    helper: str = "static inline {type} {name}({params})"
    table: str = "static const {type} {name}[{n}] = {{{values}}};"
    wide: str = ""
    suffix: Mapping[str, str] = field(default_factory=lambda: {"f32": "f", "i64": "L"})
    infinity: str = "INFINITY"
    nan: str = "NAN"
    double: Mapping[str, str] = field(default_factory=dict)
