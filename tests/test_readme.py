"""README.md: its examples run, pasted one after another."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    command = tmp_path / "bin" / "tilewright"  # as an installation would put it there
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tilewright \"$@\"\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    names: dict[str, Any] = {}
    ran = []
    for language, text in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, "README.md", "exec"), names)
            ran.append(language)
        elif language == "sh" and not text.startswith("make"):
            for line in text.splitlines():
                done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
                ran.append(line.split()[0])
    assert ran.count("python") >= 5 and ran.count("tilewright") >= 5 and "cc" in ran


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]
    dead = [f"{page.name}: {link}" for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))
            if not (page.parent / link).exists()]
    assert not dead
