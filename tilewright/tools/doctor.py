"""What this machine and installation offer, and what is wrong with them.

In: nothing. Out: facts by name in sections, and problems (empty when all is well).
"""
from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
import warnings
from pathlib import Path

import tilewright
from tilewright.core.config import config
from tilewright.core.errors import InternalError, UserError
from tilewright.runtime import drivers, native
from tilewright.runtime.cache import Cache
from tilewright.runtime.toolchain import find_compiler
from tilewright.target import host

REQUIRED = ("numpy", "llvmlite", "onnx", "ml_dtypes")
OPTIONAL = ("typer", "rich", "onnxruntime", "openvino", "pillow", "scikit-learn", "islpy", "wgpu", "ziglang")

Section = dict[str, str]


def examine() -> tuple[dict[str, Section], list[str]]:
    """All sections and problems."""
    problems: list[str] = []
    sections = {"versions": _versions(problems), "processor": _processor(), "threads": _threads(problems),
                "code": _code(problems), "devices": _devices(), "cache": _cache(problems), "settings": _settings(problems)}
    return sections, problems


def _versions(problems: list[str]) -> Section:
    out = {"tilewright": tilewright.__version__, "python": platform.python_version(), "system": platform.platform()}
    for name in (*REQUIRED, *OPTIONAL):
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "not installed"
            if name in REQUIRED:
                problems.append(f"{name} is not installed: pip install {name}")
    return out


def _processor() -> Section:
    target = host.native()
    caches = host.cache_sizes()
    return {"name": _processor_name(), "level": target.cpu, "vectors": f"{target.vector_bits} bits",
            "features": " ".join(target.features),
            "caches": ", ".join(f"{k} {v >> 10} KiB" for k, v in caches.items() if k != "line") or "unknown"}


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _threads(problems: list[str]) -> Section:
    online, affinity = os.cpu_count() or 1, config_cores()
    out = {"processors": str(online), "affinity": str(affinity)}
    out["TILEWRIGHT_THREADS"] = os.environ.get("TILEWRIGHT_THREADS") or "not set"
    try:
        chosen = native.default_threads()
    except UserError as error:
        problems.append(error.message)
        return out
    why = "TILEWRIGHT_THREADS says so" if os.environ.get("TILEWRIGHT_THREADS") else \
        "the control group's quota leaves no more" if chosen < affinity else \
        "the affinity of this process leaves no more" if affinity < online else "all processors"
    return {**out, "a model uses": f"{chosen} ({why})"}


def config_cores() -> int:
    """Processors in this process's affinity mask."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _code(problems: list[str]) -> Section:
    out = {}
    try:
        import llvmlite.binding as llvm
        out["LLVM"] = ".".join(map(str, llvm.llvm_version_info))
    except (ImportError, OSError) as error:
        problems.append(f"llvmlite does not load: {error}")
    try:
        native.runtime()
        out["runtime"] = "loads"
    except (UserError, InternalError, OSError) as error:
        problems.append(f"the runtime in C does not load: {error}")
    try:
        out["C compiler"] = " ".join(find_compiler())
    except UserError as error:
        out["C compiler"] = f"none ({error.hint}): models run, but cannot be saved"
    return out


def _devices() -> Section:
    """Which devices beside the processor open, or why not: that is no problem of the installation."""
    try:
        return {name: drivers.problem(name) or "opens" for name in native.DEVICES}
    except UserError:
        return {}  # the runtime does not load, which is said above


def _cache(problems: list[str]) -> Section:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        usable = Cache(config.cache_dir).usable
    problems.extend(str(w.message) for w in told)
    out = {"folder": str(config.cache_dir), "usable": "yes" if usable else "no"}
    if usable:
        entries = [p.stat().st_size for p in config.cache_dir.glob("??/*") if p.is_file()]
        out["holds"] = f"{len(entries)} entries, {sum(entries) >> 20} MiB"
    out["temporary files"] = tempfile.gettempdir()
    return out


def _settings(problems: list[str]) -> Section:
    out = {}
    for setting in config.settings():
        try:
            out[setting.env] = f"{getattr(config, setting.name)}"
        except UserError as error:
            problems.append(error.message)
    return out
