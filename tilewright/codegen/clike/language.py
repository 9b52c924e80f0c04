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
    "abs": "return a < 0 ? -a : a;",
    "reinterpret": "union {{ {a} a; {i} b; }} bits; bits.a = a; return bits.b;",
}
"""Bodies of the helper functions that the loop IR's meaning needs: operands a and b of type {a}, a result of type {i}."""


@dataclass(frozen=True)
class Language:
    """A C-like language.

    `types`: what each element type is called; one that is missing cannot be used on such devices. `prelude` opens a module.
    `kernel`: the head of a kernel, from {name}, {params}, {x}, {y}, {z} (threads), {threads} (in all) and {blocks}, how many
    a multiprocessor of `registers` should hold at once, its threads having those that they need; `buffer` and
    `number`: a parameter, from {type}, {name}, {const} and {at}, its place; `extra`: parameters behind these; `begin`: a
    line per buffer that goes before the body, e.g. to add its offset ("" for none). `index`: expressions of the bound axes.
    `shared`: an array shared by a block's threads; `warp`: a thread's part of an array of its warp ("" where there are
    none); `local`: a private one, all from {type}, {name}, {n}. `barrier` is a statement, as are `wait` (for all copies that
    are asynchronous), `wait_group` (but those of the {n} newest groups) and `commit` (a group). `functions`: intrinsic → a
    template of its operands {0}, {1}, … for f32; `double` has those of f64. `helper`: the head of a helper function, from
    {type}, {name}, {params}, each one a `param`. `wide`: copies {n} elements of {type} from {source} to {to}, {vector} is
    the type's name in those of vectors (`vectors`, where it is another); "" if there is none. `suffix`: what a literal ends
    with, by type. `reinterpret`: the bits of {0} as a {type}; "" for a helper function.

    What is C's way unless a language says otherwise: `define` names a value, `loop` heads a loop from {start} to {end},
    `cast`, `select` (of {cond}, {a}, {b}), `shift` ({0} and {2} around the sign {1}), `truth` (what false and true are
    called), `unequal` (of floats; "" where != is true of NaN). `helpers` are bodies of helper functions that differ from
    `HELPERS`, for all types or (min_f32) for one, and those of functions that it lacks.

    A language whose kernels are modules of their own has an `opening`, from {name} and {arguments} (see `word_memory`). Its
    parameters are `declare`d there, {at} is a buffer's number, {access} read or read_write, as are shared arrays if
    `shared_outside`; a kernel begins with a `begin_number` per number, {row} and {column} its place among them in fours.
    `atomic`: of buffers whose words threads change in part, the "type", and how to "load", "store" and "put" bits.
    """

    name: str
    types: Mapping[str, str]
    kernel: str
    buffer: str
    index: Mapping[str, str]
    functions: Mapping[str, str]
    number: str = "const {type} {name}"
    extra: tuple[str, ...] = ()
    begin: str = ""
    prelude: str = ""
    shared: str = "{type} {name}[{n}];"
    local: str = "{type} {name}[{n}];"
    barrier: str = ""
    helper: str = "static inline {type} {name}({params})"
    table: str = "static const {type} {name}[{n}] = {{{values}}};"
    wide: str = ""
    vectors: Mapping[str, str] = field(default_factory=dict)
    registers: int = 0
    warp: str = ""
    wait: str = ""
    wait_group: str = ""
    commit: str = ""
    suffix: Mapping[str, str] = field(default_factory=lambda: {"f32": "f", "i64": "L"})
    infinity: str = "INFINITY"
    nan: str = "NAN"
    double: Mapping[str, str] = field(default_factory=dict)
    reinterpret: str = ""
    define: str = "const {type} {name} = {value};"
    loop: str = "for ({type} {name} = {start}; {name} < {end}; ++{name})"
    cast: str = "({type}){0}"
    select: str = "{cond} ? {a} : {b}"
    shift: str = "{0} {1} {2}"
    param: str = "{type} {name}"
    unequal: str = ""
    truth: tuple[str, str] = ("0", "1")
    helpers: Mapping[str, str] = field(default_factory=dict)
    reserved: frozenset[str] = frozenset()
    opening: str = ""
    declare: str = ""
    shared_outside: bool = False
    begin_number: str = ""
    atomic: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_separate(self) -> bool:
        """Whether each kernel is a module of its own."""
        return bool(self.opening)
