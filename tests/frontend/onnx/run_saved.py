"""Runs saved libraries by their C functions alone: no NumPy, no Tilewright, only the standard library.

    python -I -S run_saved.py JOBS.json

In: a list of {"library", "prefix", "inputs": [[file, shape], ...], "outputs": [file, ...]}. Out: every output's bytes in its
file, and a line of JSON per job: the outputs' shapes, or the error.
"""
import ctypes
import json
import sys
from pathlib import Path

MAX_RANK = 16


class Info(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("shape", ctypes.POINTER(ctypes.c_int64)), ("dtype", ctypes.c_int32),
                ("rank", ctypes.c_int32)]


class Result(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_int64), ("rank", ctypes.c_int32),
                ("shape", ctypes.c_int64 * MAX_RANK)]


BYTES = {1: 8, 2: 4, 3: 2, 4: 2, 16: 8, 17: 4, 18: 2, 32: 8, 33: 4, 34: 2}
"""Bytes of an element by type code; all others have one."""


def run(job):
    library = ctypes.CDLL(job["library"])

    def function(name, result=ctypes.c_int32):
        found = getattr(library, f"{job['prefix']}_{name}")
        found.restype = result
        return found
    handle = ctypes.c_void_p(function("open", ctypes.c_void_p)())
    if not handle.value:
        return {"error": function("error", ctypes.c_char_p)().decode()}
    m = len(job["outputs"])
    data = [ctypes.create_string_buffer(Path(file).read_bytes() + b"\0" * 64) for file, _ in job["inputs"]]
    shapes = [(ctypes.c_int64 * max(1, len(shape)))(*shape) for _, shape in job["inputs"]]
    infos = [function("output", ctypes.POINTER(Info))(k).contents for k in range(m)]
    sizes, outs = [], []
    for info in infos:
        shape = [info.shape[d] for d in range(info.rank)]
        size = BYTES.get(info.dtype, 1)
        for d in shape:
            size *= d
        open_ended = any(d < 0 for d in shape)
        sizes.append((shape, size))
        outs.append(None if open_ended else ctypes.create_string_buffer(max(size, 1)))
    address = lambda items, of: (ctypes.c_void_p * max(1, len(items)))(*[of(x) for x in items])  # noqa: E731
    ins = address(data, ctypes.addressof)
    dims = address(shapes, ctypes.addressof)
    to = address(outs, lambda b: None if b is None else ctypes.addressof(b))
    results = (Result * max(1, m))()
    status = function("run_shapes")(handle, ins, dims, to, results)
    if status != 0:
        return {"error": function("error", ctypes.c_char_p)().decode(), "status": status}
    found = []
    for k, (shape, size) in enumerate(sizes):
        if outs[k] is None:
            r = results[k]
            shape = list(r.shape[:r.rank])
            content = ctypes.string_at(r.data, r.bytes) if r.bytes else b""
            function("release", None)(ctypes.c_void_p(r.data))
        else:
            content = outs[k].raw[:size]
        Path(job["outputs"][k]).write_bytes(content)
        found.append(shape)
    function("close", None)(handle)
    return {"shapes": found}


if __name__ == "__main__":
    assert "tilewright" not in sys.modules and "numpy" not in sys.modules
    for one in json.loads(Path(sys.argv[1]).read_text()):
        print(json.dumps(run(one)), flush=True)
