"""First step of reading: a path, bytes or ModelProto becomes a parsed ModelProto and the folder of its external data.

Files are opened once and must be regular ones, so that no device or pipe can keep the reader waiting.
"""
from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from tilewright.core.errors import UserError

MAX_PROTO = 2**31 - 1
"""Protocol buffers cannot be longer than this (bytes)."""


def open_regular(path: Path, *, follow: bool = True) -> int:
    """A descriptor of a regular file, for reading; OSError if it is none (or, with follow=False, a symbolic link)."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(f"{path} is no regular file")


def read_model(model: Any) -> tuple[Any, Path | None]:
    """The ModelProto and the folder beside it (None where the model came without a path).

    Raises UserError `onnx-missing-file` or `onnx-malformed`.
    """
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        return _parse(_file_bytes(path), str(path)), path.parent
    if isinstance(model, bytes | bytearray | memoryview):
        return _parse(bytes(model), "the given bytes"), None
    if hasattr(model, "graph") and hasattr(model, "opset_import"):
        return model, None
    raise UserError("onnx-malformed", f"a model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}")


def _file_bytes(path: Path) -> bytes:
    try:
        fd = open_regular(path)
    except (OSError, ValueError) as e:
        raise UserError("onnx-missing-file", f"there is no file that can be read at {str(path)!r}: {e}",
                        hint="give a file" if path.is_dir() else "check the path" if not path.exists() else "") from e
    with os.fdopen(fd, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        if size > MAX_PROTO:
            raise UserError("onnx-malformed", f"{size} bytes are more than a protocol buffer can hold", where=str(path),
                            hint="save the weights as external data")
        return f.read()


def _parse(data: bytes, where: str) -> Any:
    import onnx
    from google.protobuf.message import DecodeError
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as e:
        raise UserError("onnx-malformed", f"this is no ONNX model, or it was cut off ({len(data)} bytes): {e}",
                        where=where, hint="it is a library: give the ONNX file that it was made from"
                        if data.startswith(b"\x7fELF") else "download or export it again") from e
    if not model.HasField("graph") or not model.opset_import:
        raise UserError("onnx-malformed", f"this is no ONNX model, or it was cut off ({len(data)} bytes): "
                        "it holds no graph or no operator set", where=where, hint="download or export it again")
    return model
