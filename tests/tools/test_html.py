"""The page of schedules: what it says of every step, and that nothing in a model's names is ever read as HTML."""
from __future__ import annotations

import functools
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

import tilewright
from tests.loop.lower.test_device import product
from tests.small_models import mlp
from tests.tools.test_cli import refused
from tests.tools.test_cli import tilewright as command
from tilewright.loop.parser import parse_program
from tilewright.loop.printer import print_program
from tilewright.tensor import compute as te
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tools.html import MOST_LINES, new_parts

HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)> {{data}} \u2028 & \"'"


class _Tags(html.parser.HTMLParser):
    """What a browser would see: tags, and the text of the data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.title = self.data = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["title"]:
            self.title += data
        elif self.tags[-1:] == ["script"] and not self.data:
            self.data = data


def data_of(page: str) -> dict[str, Any]:
    return json.loads(_Tags(page).data)


def program_after(data: dict[str, Any], step: dict[str, Any]) -> str:
    """The text that a step shows, without what is gone."""
    return "\n".join(data["lines"][row[1]] for row in step["rows"] if row[0] != "-")


def test_every_step_is_there_with_what_it_changed() -> None:
    sch = product()
    data = data_of(tilewright.schedule_html(sch))
    (kernel,) = data["kernels"]
    steps = kernel["steps"]
    assert data["title"] == "product" and len(steps) == 1 + len(sch.trace.instructions)
    assert [s["text"] for s in steps[:4]] == ["unscheduled", "block('C')", "i0, j1, k = loops('C')",
                                             "C_store = cache_write('C', 0, 'local')"]
    assert steps[3]["doc"].startswith("Let block write") and steps[2]["rows"] == []
    first, last = steps[0], [s for s in steps if s["rows"]][-1]
    for step, program in ((first, sch.unscheduled), (last, sch.program)):
        shown = parse_program(program_after(data, step))
        assert print_program(shown, canonical=True) == print_program(program, canonical=True)
    before = program_after(data, first)
    for s in steps[1:]:
        if s["rows"]:
            gone = [data["lines"][r[1]].strip() for r in s["rows"] if r[0] != "+"]
            assert [t.strip() for t in before.split("\n")] == gone  # the last step's program
            before = program_after(data, s)
            assert (s["added"], s["removed"]) == tuple(sum(r[0] == k for r in s["rows"]) for k in "+-") != (0, 0)


def test_a_bound_loop_is_marked_where_it_changed() -> None:
    a = te.placeholder((8,), name="A")
    sch = Schedule(te.create_program("twice", [a], [te.compute((8,), lambda i: a[i] * 2.0, name="B")]))
    sch.bind(sch.loops(sch.block("B"))[0], "threadIdx.x")
    data = data_of(tilewright.schedule_html(sch))
    step = data["kernels"][0]["steps"][-1]
    (gone,), ((_, text, marks),) = ([r for r in step["rows"] if r[0] == k] for k in "-+")
    text = data["lines"][text]
    assert data["lines"][gone[1]] == "    for i0 in 0..8:" and text == "    for i0 in 0..8 threadIdx.x:"
    assert "".join(text[b:e] for b, e in marks) == " threadIdx.x" and step["text"] == "bind(i0, 'threadIdx.x')"


def test_a_body_that_moves_in_is_unchanged() -> None:
    a = te.placeholder((8,), name="A")
    sch = Schedule(te.create_program("twice", [a], [te.compute((8,), lambda i: a[i] * 2.0, name="B")]))
    sch.split(sch.loops(sch.block("B"))[0], [None, 4])
    data = data_of(tilewright.schedule_html(sch))
    shown = [(r[0], data["lines"][r[1]]) for r in data["kernels"][0]["steps"][-1]["rows"]]
    assert [text for kind, text in shown if kind == "-"] == ["    for i0 in 0..8:",
                                                            "        block B(i0_1: spatial 8 = i0):"]
    assert shown[-1] == ("=", "                B[i0_1] = A[i0_1] * 2.0")


def test_marks_are_the_words_that_are_new() -> None:
    assert new_parts("for i in 0..64:", "for i in 0..64 parallel:") == [[14, 23]]
    assert new_parts("x = a[i]", "x = a[i]") == []
    assert new_parts("  y[i] = x[i]", "      y[i] = x[i + 1]") == [[16, 20]]
    assert new_parts("pass", "for i in 0..8:") == []  # nothing is left of it: the line is new


def test_names_are_text() -> None:
    a = te.placeholder((4,), name=HOSTILE)
    program = te.create_program(HOSTILE, [a], [te.compute((4,), lambda i: a[i] + 1.0, name=HOSTILE)])
    sch = Schedule(program)
    sch.split(sch.loops(sch.block(HOSTILE))[0], [None, 2])
    page = tilewright.schedule_html(sch)
    seen = _Tags(page)
    assert seen.tags.count("script") == 2 and "img" not in seen.tags
    assert seen.title.strip() == HOSTILE and json.loads(seen.data)["title"] == HOSTILE
    assert json.loads(seen.data)["kernels"][0]["name"] == HOSTILE
    assert not re.search(r"https?://|@import|url\(", page)  # it needs nothing but itself


def hostile_model() -> onnx.ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"], name=HOSTILE)
    f32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph([node], HOSTILE, [helper.make_tensor_value_info("x", f32, [64])],
                              [helper.make_tensor_value_info("y", f32, [64])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_a_page_of_a_model(tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "mlp.onnx")
    look = functools.partial(command, "inspect", tmp_path / "mlp.onnx", "--target", "opencl", "--json")
    said = json.loads(look("--html", tmp_path / "out.html"))
    assert said["html"] == str(tmp_path / "out.html")
    data = data_of((tmp_path / "out.html").read_text(encoding="utf-8"))
    launches = json.loads(look())["launches"]
    assert [k["name"] for k in data["kernels"]] == list(dict.fromkeys(u["kernel"] for u in launches))
    kernel = data["kernels"][0]
    assert kernel["facts"]["target"] == "opencl" and launches[0]["layer"] in kernel["facts"]["layers"]
    texts = {t["title"]: program_after(data, t) for t in kernel["texts"]}
    assert "__kernel" in texts["opencl source"] and "launch k_" in texts["lowered program"]
    assert "barrier" in texts["barriers"]
    assert all(len(t.split("\n")) <= MOST_LINES + 1 for t in texts.values())
    assert "opencl" not in command("inspect", tmp_path / "mlp.onnx", "--html", tmp_path / "cpu.html")
    assert [t["title"] for t in data_of((tmp_path / "cpu.html").read_text())["kernels"][0]["texts"]] == ["lowered program"]
    assert refused("inspect", tmp_path / "mlp.onnx", "--html", tmp_path / "no" / "out.html")["code"] == "output-file"


def test_names_of_a_model_are_text(tmp_path: Path) -> None:
    onnx.save(hostile_model(), tmp_path / "net.onnx")
    command("inspect", tmp_path / "net.onnx", "--html", tmp_path / "out.html")
    seen = _Tags((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert seen.tags.count("script") == 2 and "img" not in seen.tags
    assert "alert(2)" in json.loads(seen.data)["kernels"][0]["facts"]["layers"]


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no browser: Debian's chromium, or Chrome")
def test_a_browser_shows_it(tmp_path: Path) -> None:
    a = te.placeholder((8,), name="A")
    sch = Schedule(te.create_program("<b>twice</b>", [a], [te.compute((8,), lambda i: a[i] * 2.0, name="<i>B")]))
    sch.bind(sch.loops(sch.block("<i>B"))[0], "threadIdx.x")
    (tmp_path / "page.html").write_text(tilewright.schedule_html(sch), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    shown = subprocess.run([BROWSER or "", *options, "--virtual-time-budget=2000", f"file://{tmp_path}/page.html#0.3"],
                           capture_output=True, text=True, check=True, timeout=60).stdout
    assert "<h1>&lt;b&gt;twice&lt;/b&gt;</h1>" in shown and '<div class="row new">' in shown
    assert "<mark> <span class=\"k\">threadIdx.x</span></mark>" in shown and "3 / 3" in shown and "<i>" not in shown
