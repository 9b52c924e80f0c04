"""ONNX's node cases as libraries, in a process without Tilewright, on inputs that were not there when they were compiled."""
from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.frontend.onnx.expected_failures import EXPECTED_FAILURES
from tests.frontend.onnx.onnx_check import case_value
from tests.frontend.onnx.test_conformance import cases
from tilewright.core.errors import TilewrightError, UserError
from tilewright.frontend.onnx import backend
from tilewright.graph import interpret

WANTED = 300
FAILING = {name for names in EXPECTED_FAILURES.values() for name in names}


def spread(count: int) -> list[Any]:
    """That many cases, taking turns among the operators, of those that compiled code passes."""
    by_operator = defaultdict(list)
    for case in cases():
        if case.name not in FAILING:
            by_operator[case.model.graph.node[-1].op_type].append(case)
    out: list[Any] = []
    while len(out) < count and any(by_operator.values()):
        for waiting in by_operator.values():
            if waiting and len(out) < count:
                out.append(waiting.pop(0))
    return out


def unseen(given: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Other values of the same kind: the elements in another order, floats also of other sizes. Each stays in the range
    in which the operator is defined for its neighbours; short lists of integers, which may be sizes, stay."""
    if given.dtype.kind == "i" and given.ndim <= 1 and given.size <= 8:
        return given
    mixed = rng.permutation(given.reshape(-1)).reshape(given.shape)
    return (mixed * given.dtype.type(0.9)).astype(given.dtype) if given.dtype.kind == "f" else mixed


def check(count: int, folder: Path) -> None:
    jobs, wanted, names = [], [], []
    for case in spread(count * 5 // 4):  # some read no input at run time, or are drawn at random
        arrays = [case_value(x) for x in case.data_sets[0][0]]
        try:
            made = backend.compile_for(case.model, arrays)
        except UserError:
            continue
        if not made.model.inputs or made.model.signature is not None or len(jobs) == count:
            continue
        rng = np.random.default_rng(len(jobs))
        feeds = {n: np.asarray(a) if n in made.specialized else unseen(np.asarray(a), rng)
                 for n, a in zip(made.names, arrays, strict=False) if a is not None}
        prefix, at = f"case{len(jobs)}", folder / f"case{len(jobs)}"
        at.mkdir()
        made.model.save(at / f"{prefix}.so")
        live = {spec.name: np.array(feeds[spec.name], order="C") for spec in made.model.inputs}
        for n, a in live.items():
            (at / f"in_{len(n)}_{list(live).index(n)}").write_bytes(a.tobytes())
        files = [[str(at / f"in_{len(n)}_{k}"), list(a.shape)] for k, (n, a) in enumerate(live.items())]
        jobs.append({"library": str(at / f"{prefix}.so"), "prefix": prefix, "inputs": files,
                     "outputs": [str(at / f"out{k}") for k in range(len(made.model.outputs))]})
        try:
            here: Any = made.model.run(live)
        except TilewrightError as e:
            here = e
        wanted.append((here, made.model.graph, live))
        names.append(case.name)
        made.model.close()
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("run_saved.py")
    command = [sys.executable, "-I", "-S", str(script), str(folder / "jobs.json")]
    ran = subprocess.run(command, cwd=folder, capture_output=True,
                         text=True, check=False)
    assert ran.returncode == 0, f"case {len(ran.stdout.splitlines())}: {ran.stderr}"
    wrong = []
    for name, job, line, (here, graph, live) in zip(names, jobs, ran.stdout.splitlines(), wanted, strict=True):
        said = json.loads(line)
        if isinstance(here, TilewrightError):  # a clear error here is the same clear error there
            if "error" not in said:
                wrong.append(f"{name}: runs, where this process says {here}")
            continue
        if said.get("shapes") != [list(a.shape) for a in here]:
            wrong.append(f"{name}: {said}")
            continue
        if [Path(f).read_bytes() for f in job["outputs"]] != [a.tobytes() for a in here]:
            wrong.append(f"{name}: other bytes than in the process that compiled it")
        for got, want in zip(here, interpret.run(graph, live), strict=True):
            rtol = 2e-2 if got.dtype.itemsize < 4 and got.dtype.kind not in "iub" else 1e-3
            if not np.allclose(got.astype(np.float64), np.asarray(want).astype(np.float64), rtol, 1e-5, equal_nan=True):
                wrong.append(f"{name}: not what the operator means")
    assert not wrong, f"{len(wrong)} of {len(jobs)}:\n" + "\n".join(wrong)
    assert len(jobs) == count


@pytest.mark.filterwarnings("ignore")
def test_some_cases_saved_and_run_without_the_compiler(tmp_path: Path) -> None:
    check(12, tmp_path)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_three_hundred_cases_saved_and_run_without_the_compiler(tmp_path: Path) -> None:
    check(WANTED, tmp_path)
