"""`import tilewright` is quick: the compiler, LLVM and onnx are loaded when they are first used."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROBE = """
import json, sys, time
start = time.perf_counter()
import tilewright
took = time.perf_counter() - start
names = set(sys.modules)
tilewright.UserError
print(json.dumps({"seconds": took, "loaded": sorted(names), "then": sorted(set(sys.modules) - names)}))
"""


def probe() -> dict[str, object]:
    out = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True,
                         cwd=Path(__file__).parents[1])
    return dict(json.loads(out.stdout))


def test_import_loads_neither_llvm_nor_onnx_nor_the_compiler() -> None:
    found = probe()
    print(f"import tilewright: {found['seconds']:.3f} s")
    loaded = found["loaded"]
    assert isinstance(loaded, list)
    heavy = {"llvmlite", "onnx", "numpy", "ml_dtypes", "onnxruntime", "torch", "rich", "typer"}
    assert not heavy & set(loaded)
    assert [m for m in loaded if m.startswith("tilewright.")] == []


def test_a_name_loads_what_it_needs_and_no_more() -> None:
    then = probe()["then"]
    assert isinstance(then, list)
    assert "tilewright.core.errors" in then and "llvmlite" not in then and "onnx" not in then
