"""Schedules as a page to look at: the program after each primitive, with what it changed marked, in one HTML file.

In: Schedules, or a compiled model's kernels. Out: the text of a page that needs nothing else: it works from a file, without
a network, in light and in dark, by keys, on a phone. What comes from a model (names of layers, of values, …) gets there as
JSON that the page's script writes as text, so none of it is ever read as HTML; the page itself is schedule_page.html.

A line of a program is [kind, number of its text, marks]: "=" unchanged (but for its indentation), "+" new, "-" gone; marks
are the [begin, end) of what is new within a line that replaces another.
"""
from __future__ import annotations

import difflib
import html
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilewright.loop.printer import Names, print_program
from tilewright.model import Model
from tilewright.tensor.schedule.primitives import primitive_named
from tilewright.tensor.schedule.schedule import Schedule, Step, steps
from tilewright.tensor.schedule.state import BlockRef
from tilewright.tensor.schedule.trace import UNDECIDED, show
from tilewright.tensor.stages import StageSchedule
from tilewright.tools import inspect as looking

TEMPLATE = Path(__file__).with_name("schedule_page.html")
MOST_LINES = 1500
"""Of a text beside the schedule (lowered program, source): longer ones are cut."""

Row = list[Any]


@dataclass
class _Page:
    """The page's data: every line of text once, and the kernels that use them."""
    lines: dict[str, int] = field(default_factory=dict)
    kernels: list[dict[str, Any]] = field(default_factory=list)

    def line(self, text: str) -> int:
        return self.lines.setdefault(text, len(self.lines))

    def kernel(self, name: str, schedule: Schedule, facts: dict[str, str], texts: dict[str, str]) -> None:
        """Add a schedule with facts about it, and further texts to read below its steps."""
        names: Names = {}
        before = print_program(schedule.unscheduled, names=names).split("\n")
        done = [{"text": "unscheduled", "doc": "The program before any primitive.", "added": 0, "removed": 0,
                 "rows": [["=", self.line(t)] for t in before]}]
        for step in steps(schedule.trace, schedule.unscheduled):
            after = print_program(step.program, names=names).split("\n")
            rows = self.changes(before, after) if after != before else []
            done.append({"text": _call(step, names), "doc": _sentence(primitive_named(step.instruction.name)), "rows": rows,
                         "added": sum(r[0] == "+" for r in rows), "removed": sum(r[0] == "-" for r in rows)})
            before = after
        if schedule.fallback:
            facts = {**facts, "fallback": schedule.fallback}
        self.kernels.append({"name": name, "facts": facts, "steps": done, "texts": [
            {"title": title, "rows": [["=", self.line(t)] for t in _cut(text)]} for title, text in texts.items()]})

    def changes(self, before: Sequence[str], after: Sequence[str]) -> list[Row]:
        """The lines of `after`, those that are new marked, with those of `before` that are gone. A body that moves in under
        a new loop has not changed."""
        rows: list[Row] = []
        matcher = difflib.SequenceMatcher(None, [t.strip() for t in before], [t.strip() for t in after], autojunk=False)
        for tag, a, b, c, d in matcher.get_opcodes():
            if tag == "equal":
                rows += [["=", self.line(t)] for t in after[c:d]]
                continue
            rows += [["-", self.line(t)] for t in before[a:b]]
            paired = dict(zip(after[c:d], before[a:b], strict=False)) if b - a == d - c else {}
            for text in after[c:d]:
                marks = new_parts(paired[text], text) if text in paired else []
                rows.append(["+", self.line(text), marks] if marks else ["+", self.line(text)])
        return rows

    def text(self, title: str) -> str:
        data = {"title": title, "lines": list(self.lines), "kernels": self.kernels}
        # within <script> only "</script" and "<!--" mean anything: no "<" is left
        encoded = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        encoded = encoded.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
        page = TEMPLATE.read_text(encoding="utf-8")
        values = {"title": html.escape(title), "data": encoded}
        return re.sub(r"\{\{(title|data)\}\}", lambda m: values[m[1]], page)


_WORDS = re.compile(r"\w+|\s+|.")


def new_parts(before: str, after: str) -> list[list[int]]:
    """The [begin, end) of what is in `after` and was not in `before`, word by word and without their indentation; none where
    little is left of it."""
    old, new = _WORDS.findall(before.lstrip()), _WORDS.findall(after.lstrip())
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    if matcher.ratio() < 0.4:
        return []
    at = len(after) - len(after.lstrip())
    ends = [at]
    for w in new:
        at += len(w)
        ends.append(at)
    return [[ends[c], ends[d]] for tag, _, _, c, d in matcher.get_opcodes() if tag != "equal" and d > c]


def _cut(text: str) -> list[str]:
    lines = text.rstrip("\n").split("\n")
    return lines if len(lines) <= MOST_LINES else [*lines[:MOST_LINES], f"… {len(lines) - MOST_LINES} more lines"]


def _sentence(primitive: Callable[..., Any]) -> str:
    """The first sentence of a primitive's docstring."""
    return re.split(r"(?<=\.) ", " ".join((primitive.__doc__ or "").split()))[0].replace("`", "")


def _call(step: Step, names: Names) -> str:
    """An instruction with the names that the program has now."""
    ins = step.instruction
    parts = [*[show(a, names) for a in step.args], *[f"{k}={show(v, names)}" for k, v in step.kwargs]]
    results = ", ".join([r.name if isinstance(r, BlockRef) else show(r, names) for r in step.results])
    decided = "" if ins.decision is UNDECIDED else f"  # decided {ins.decision!r}"
    left = f"{results} = " if results and ins.decision is UNDECIDED and ins.name != "block" else ""
    return f"{left}{ins.name}({', '.join(parts)}){decided}"


def schedule_html(*schedules: Schedule | StageSchedule, title: str = "") -> str:
    """A page of one or more schedules, those in the stage style as the primitives that they become."""
    page = _Page()
    made = [s.schedule() if isinstance(s, StageSchedule) else s for s in schedules]
    for sch in made:
        page.kernel(sch.program.name, sch, {}, {})
    return page.text(title or ", ".join([sch.program.name for sch in made]))


def model_html(model: Model) -> str:
    """A page of all kernels of a compiled model in order of first launch, each with its lowered program and, on a device,
    its source and barriers. Raises UserError "no-stages" for a loaded library."""
    page = _Page()
    stages, target = looking.stages_of(model), model.target
    assert target is not None
    kernels = {k.name: k for k in stages.kernels.values()}
    launches: dict[str, list[str]] = {}
    for use in model.kernels:
        launches.setdefault(use.kernel, []).append(use.label)
    for name, labels in launches.items():
        sch = looking.schedule_of(model, kernels[name])
        texts = {"lowered program": kernels[name].record["lowered"]}
        if target.is_gpu:
            texts[f"{target.language} source"] = looking.source_of(kernels[name], target)
            texts["barriers"] = "\n\n".join(map(str, looking.barriers(sch, target, name)))
        page.kernel(name, sch, {"layers": _few(labels), "target": target.name}, texts)
    return page.text(f"{model.descriptor.name} for {target.name}")


def _few(labels: Iterable[str]) -> str:
    found = list(labels)
    return ", ".join(found[:4]) + (f", … ({len(found)} launches)" if len(found) > 4 else "")
