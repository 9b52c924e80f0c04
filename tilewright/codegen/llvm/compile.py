"""LLVM code generation, the compiler: IR text becomes an object file's bytes, by llvmlite, here or in worker processes.

LLVM's vectorizers and unroller are off: schedules have decided that. llvmlite holds a lock while it works, so several
kernels compile at once only in several processes: `CompilePool` forks them, and must be made before the process has
threads of its own.
"""
from __future__ import annotations

import functools
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable
from multiprocessing import connection
from types import TracebackType
from typing import Any, Self, TypeAlias

from tilewright.core.errors import InternalError
from tilewright.target.target import Target

SPEED_LEVEL = 2
"""LLVM's -O level of the middle end. Level 3 adds argument promotion and more inlining, which kernels have no use for."""


Job: TypeAlias = tuple[str, Target]
"""A module's LLVM IR, and what it is compiled for."""

_ENDED = "a compile worker ended (out of memory?)"


@functools.cache
def _initialize() -> Any:
    """llvmlite's binding, with all of LLVM's processors."""
    import llvmlite.binding as llvm
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm


@functools.cache
def _machine(target: Target) -> Any:
    llvm = _initialize()
    features = ",".join("+" + f for f in target.features)
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=features, opt=3, reloc="pic", codemodel="default", abiname=target.abi)


def _optimized(ir_text: str, target: Target) -> Any:
    import llvmlite.binding as llvm
    machine = _machine(target)
    try:
        module = llvm.parse_assembly(ir_text)
        module.verify()
    except RuntimeError as e:
        raise InternalError(f"LLVM refuses the emitted code: {e}") from e
    module.data_layout = str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=SPEED_LEVEL)
    options.loop_vectorization = options.slp_vectorization = False
    options.loop_interleaving = options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module


def compile_object(ir_text: str, target: Target) -> bytes:
    """The relocatable object file of an LLVM module. Raises InternalError if LLVM refuses the text."""
    return bytes(_machine(target).emit_object(_optimized(ir_text, target)))


def optimized_ir(ir_text: str, target: Target) -> str:
    """The module after LLVM's optimizations."""
    return str(_optimized(ir_text, target))


def assembly(ir_text: str, target: Target) -> str:
    """The assembly (AT&T syntax on x86) of what `compile_object` would give."""
    return str(_machine(target).emit_assembly(_optimized(ir_text, target)))


class CompilePool:
    """Worker processes that compile modules; a context manager.

    `workers` ≤ 1 compiles in this process, and so does a daemonic process, which may have no children. Make it before
    any thread is started: the workers are forked. If the parent dies or is interrupted, the workers end.
    """

    def __init__(self, workers: int) -> None:
        self._workers: list[tuple[Any, connection.Connection]] = []
        daemonic = multiprocessing.current_process().daemon
        if workers <= 1 or daemonic or "fork" not in multiprocessing.get_all_start_methods():
            return
        _initialize()
        context = multiprocessing.get_context("fork")
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until each worker ignores it
        try:
            for _ in range(workers):
                ours, theirs = context.Pipe()
                inherited = [c for _, c in self._workers] + [ours]
                process = context.Process(target=_work, args=(theirs, inherited), daemon=True)
                process.start()
                theirs.close()
                self._workers.append((process, ours))
        except BaseException:
            self.terminate()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def compile(self, jobs: Iterable[Job]) -> list[bytes]:
        """The object of each module, in order. `jobs` may be a generator: it runs while the workers compile."""
        if not self._workers:
            return [compile_object(text, target) for text, target in jobs]
        try:
            return self._compile(jobs)
        except BaseException:
            self.terminate()
            raise

    def _compile(self, jobs: Iterable[Job]) -> list[bytes]:
        done: dict[int, bytes] = {}
        idle = deque(c for _, c in self._workers)
        busy: dict[Any, int] = {}
        for number, job in enumerate(jobs):
            if not idle:
                idle.extend(_collect(busy, done))
            c = idle.popleft()
            try:
                c.send(job)
            except BrokenPipeError as e:
                raise InternalError(_ENDED) from e
            busy[c] = number
        while busy:
            _collect(busy, done)
        return [done[k] for k in range(len(done))]

    def terminate(self) -> None:
        """Stop the workers at once."""
        for process, c in self._workers:
            c.close()
            process.terminate()
        for process, _ in self._workers:
            process.join()
        self._workers = []

    def close(self) -> None:
        """Let the workers end; the pool then compiles in this process."""
        for _, c in self._workers:
            c.close()
        for process, _ in self._workers:
            process.join()
        self._workers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close() if kind is None else self.terminate()


def _collect(busy: dict[Any, int], done: dict[int, bytes]) -> list[Any]:
    """Wait for a result; the workers that have become idle."""
    ready: list[Any] = list(connection.wait(list(busy)))
    for c in ready:
        number = busy.pop(c)
        try:
            error, result = c.recv()
        except (EOFError, ConnectionResetError) as e:
            raise InternalError(_ENDED) from e
        if error:
            raise InternalError(error)
        done[number] = result
    return ready


def _work(pipe: connection.Connection, inherited: list[connection.Connection]) -> None:
    """A worker: objects for modules until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for c in inherited:  # else this process would hold its siblings' pipes open after the parent's death
        c.close()
    while True:
        try:
            text, target = pipe.recv()
        except (EOFError, ConnectionResetError):  # reset: the parent went with an answer unread
            return
        try:
            answer: tuple[str, bytes] = ("", compile_object(text, target))
        except InternalError as e:
            answer = (str(e), b"")
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return
