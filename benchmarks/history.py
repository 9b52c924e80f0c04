"""Rates kept from run to run: one line of JSON per kernel, and what became slower since.

In: records. Out: a file that only grows, and the regressions. Compared are shares of the roof that the same run measured, so
that another clock rate or a busy machine does not look like a change of the code; only records of the same machine, number
of threads and kernel are compared.
"""
from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REGRESSION = 0.9
"""A share below this part of the last one is a regression."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Regression:
    kernel: str
    threads: int
    before: float
    now: float


def machine() -> Record:
    """What identifies the machine: processor, number of CPUs, kernel of the system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"cpu": name, "cpus": os.cpu_count(), "system": platform.platform()}


def git_version() -> str:
    """The checkout's commit, with a + if files differ from it; "" outside of one."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True,
                              check=True).stdout.strip()
    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def read(path: Path) -> list[Record]:
    """The records of a file, oldest first; none if there is no file. Lines that are no records (a run that was cut off) are
    left out."""
    out: list[Record] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and {"kernel", "threads", "share", "machine"} <= record.keys():
            out.append(record)
    return out


def append(path: Path, records: Iterable[Record]) -> None:
    """Add records, each with the time, the machine and the version of the code."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "git": git_version(), "machine": machine()}
    whole = not path.exists() or not path.stat().st_size or path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        if not whole:  # the last run was cut off in a line
            file.write("\n")
        for r in records:
            file.write(json.dumps({**facts, **r}) + "\n")


def regressions(past: Iterable[Record], now: Iterable[Record], here: Record) -> list[Regression]:
    """Kernels whose share of their roof is lower than in the last record of this machine by more than a tenth."""
    last = {(r["kernel"], r["threads"]): r["share"] for r in past if r["machine"].get("cpu") == here["cpu"]
            and r["machine"].get("cpus") == here["cpus"]}
    found = [Regression(r["kernel"], r["threads"], last[key], r["share"]) for r in now
             if (key := (r["kernel"], r["threads"])) in last and r["share"] < REGRESSION * last[key]]
    return sorted(found, key=lambda x: x.now / x.before)
