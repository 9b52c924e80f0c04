"""What is needed to reproduce a fault of the compiler: a folder with the model, the programs so far, the traceback.

In: an exception and what the driver had in hand. Out: the folder, under that of the
cache or, failing that, among the temporary ones.
"""
from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tilewright.core.config import config

MODEL_BYTES = 64 << 20
"""Models up to this size are copied into the bundle."""


def write_bundle(error: BaseException, *, options: Mapping[str, Any], versions: Mapping[str, str],
                 texts: Mapping[str, Callable[[], str]], model: Any = None) -> Path | None:
    """Write `traceback.txt`, `facts.json`, one file per text and `model.onnx`; None if no folder can be
    written. Nothing here raises: the error at hand is the one to report."""
    folder = _folder()
    if folder is None:
        return None
    facts = {"error": f"{type(error).__name__}: {error}", "command": sys.argv, "versions": dict(versions),
             "machine": platform.platform(), "options": {k: repr(v) for k, v in options.items()}}
    files = {"traceback.txt": lambda: "".join(traceback.format_exception(error)),
             "facts.json": lambda: json.dumps(facts, indent=1)}
    for name, text in {**files, **texts}.items():
        try:
            (folder / name).write_text(text() + "\n", encoding="utf-8")
        except Exception as failure:  # noqa: BLE001 – printing a broken program may fail in any way
            print(f"bundle: {name} was not written: {failure}", file=sys.stderr)
    _copy_model(model, folder / "model.onnx")
    return folder


def _folder() -> Path | None:
    name = time.strftime("%Y%m%d-%H%M%S-")
    for in_cache in (True, False):
        try:
            place = config.cache_dir / "faults" if in_cache else Path(tempfile.gettempdir())
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=f"tilewright-{name}", dir=place))
        except (OSError, RuntimeError):  # RuntimeError: no home folder
            continue
    return None


def _copy_model(model: Any, target: Path) -> None:
    try:
        if hasattr(model, "SerializeToString"):
            data = model.SerializeToString() if model.ByteSize() <= MODEL_BYTES else b""
        elif isinstance(model, bytes | bytearray):
            data = bytes(model) if len(model) <= MODEL_BYTES else b""
        else:
            path = Path(model)
            data = path.read_bytes() if path.stat().st_size <= MODEL_BYTES else b""
        if data:
            target.write_bytes(data)
    except Exception as failure:  # noqa: BLE001 – a proto beyond 2 GiB, a file that has gone
        print(f"bundle: the model was not copied: {failure}", file=sys.stderr)
