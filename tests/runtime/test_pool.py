"""The thread pool: every task exactly once, by the threads asked for, also nested, from several threads and after a fork."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.build import SCALE_MODEL, load, scale
from tilewright.core.dtype import i64
from tilewright.runtime.descriptor import Descriptor, TensorSpec

X = np.arange(1000, dtype=np.float32)

# Runs in[0][0] tasks, in[0][1] times; out[0][t] = how often task t ran, out[1][w] = tasks of participant w.
COUNT = """
#include "tilewright_abi.h"
static int32_t body(tw_ctx *ctx, void *p, int64_t begin, int64_t end) {
  void *const *out = p;
  int64_t *seen = out[0], *by = out[1];
  for (int64_t t = begin; t < end; ++t) __atomic_fetch_add(&seen[t], 1, __ATOMIC_RELAXED);
  __atomic_fetch_add(&by[tw_worker(ctx)], end - begin, __ATOMIC_RELAXED);
  return TW_OK;
}
int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) {
  const int64_t *x = in[0];
  for (int i = 0; i < 5000; ++i) ((int64_t *)out[0])[i] = 0;
  for (int i = 0; i < 1024; ++i) ((int64_t *)out[1])[i] = 0;
  for (int64_t i = 0; i < x[1]; ++i) {
    int32_t status = tw_parallel_turn(ctx, body, (void *)out, x[0], i);
    if (status != TW_OK) return status;
  }
  return TW_OK;
}"""
COUNT_MODEL = Descriptor("count", (TensorSpec("x", i64, (2,)),),
                         (TensorSpec("seen", i64, (5000,)), TensorSpec("by", i64, (1024,))))


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 40])
def test_every_task_runs_once(threads):
    model = load(COUNT, COUNT_MODEL, threads=threads)
    for tasks in (0, 1, 2, 3, 5, 64, 1000, 5000):
        seen, by = model.run([np.array([tasks, 20])])
        assert (seen[:tasks] == 20).all() and not seen[tasks:].any(), tasks
        assert by.sum() == 20 * tasks and not by[threads:].any()


def test_odd_turns_go_backward():
    """What a participant did last, it does first in the next turn of the loop."""
    code = """
    #include "tilewright_abi.h"
    static int32_t body(tw_ctx *ctx, void *p, int64_t begin, int64_t end) {
      int64_t *out = p;
      for (int64_t t = begin; t < end; ++t) out[++out[0]] = t;
      return TW_OK;
    }
    int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) {
      *(int64_t *)out[0] = 0;
      for (int64_t turn = 0; turn < 4; ++turn) {
        int32_t status = tw_parallel_turn(ctx, body, out[0], 3, turn);
        if (status != TW_OK) return status;
      }
      return TW_OK;
    }"""
    model = load(code, Descriptor("turns", (TensorSpec("x", i64, (1,)),), (TensorSpec("y", i64, (13,)),)), threads=1)
    (order,) = model.run([np.array([0])])
    assert order.tolist() == [12, 0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0]


def test_many_small_regions():
    model = load(COUNT, COUNT_MODEL, threads=2)
    for tasks in (2, 3, 7):
        seen, _ = model.run([np.array([tasks, 10_000])])
        assert (seen[:tasks] == 10_000).all()


def test_work_is_shared():
    """Two participants that must meet: each task waits until the other one has begun."""
    source = """
      #include "tilewright_abi.h"
      int usleep(unsigned);
      static int32_t body(tw_ctx *ctx, void *p, int64_t begin, int64_t end) {
        int32_t *begun = p;
        __atomic_fetch_add(begun, (int32_t)(end - begin), __ATOMIC_SEQ_CST);
        for (int i = 0; i < 10000; ++i) {
          if (__atomic_load_n(begun, __ATOMIC_SEQ_CST) == 3) return TW_OK;
          usleep(1000);
        }
        return tw_fail(ctx, TW_ERROR_VALUE, "the others never came");
      }
      int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) {
        int32_t begun = 0; return tw_parallel(ctx, body, &begun, 3); }"""
    model = load(source, SCALE_MODEL, threads=3)
    for pause in (0, 0.002, 0.01):  # workers spin, fall asleep, sleep
        for _ in range(5):
            time.sleep(pause)
            model.run([X])


def test_tasks_of_a_slow_participant_are_stolen():
    """Task 0 waits until all others have run: those behind it in its owner's range must be taken by someone else."""
    source = """
      #include "tilewright_abi.h"
      int usleep(unsigned);
      static int32_t body(tw_ctx *ctx, void *p, int64_t begin, int64_t end) {
        int32_t *done = p;
        for (int64_t t = begin; t < end; ++t) {
          if (t == 0)
            for (int i = 0; __atomic_load_n(done, __ATOMIC_SEQ_CST) != 15; usleep(1000))
              if (++i == 5000) return tw_fail(ctx, TW_ERROR_VALUE, "nobody took the others");
          __atomic_fetch_add(done, 1, __ATOMIC_SEQ_CST);
        }
        return TW_OK;
      }
      int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) {
        int32_t done = 0; return tw_parallel(ctx, body, &done, 16); }"""
    load(source, SCALE_MODEL, threads=2).run([X])


def test_nested_regions_run_on_their_caller():
    source = """
      #include "tilewright_abi.h"
      static int32_t inner(tw_ctx *ctx, void *p, int64_t begin, int64_t end) {
        __atomic_fetch_add((int64_t *)p, end - begin, __ATOMIC_RELAXED); return TW_OK; }
      static int32_t outer(tw_ctx *ctx, void *p, int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) { int32_t s = tw_parallel(ctx, inner, p, 50); if (s) return s; }
        return TW_OK; }
      int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) {
        *(int64_t *)out[0] = 0; return tw_parallel(ctx, outer, out[0], 40); }"""
    model = load(source, Descriptor("nested", (), (TensorSpec("n", i64, ()),)), threads=3)
    for _ in range(50):
        assert model.run([])[0] == 2000


def test_regions_of_several_threads_at_once():
    model = load(COUNT, COUNT_MODEL, threads=3)
    wrong = []

    def work():
        for tasks in (3, 100, 4000) * 20:
            seen, _ = model.run([np.array([tasks, 30])])
            if not (seen[:tasks] == 30).all():
                wrong.append(tasks)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_huge_task_counts():
    source = """
      #include "tilewright_abi.h"
      static int32_t body(tw_ctx *ctx, void *p, int64_t begin, int64_t end) {
        __atomic_fetch_add((int64_t *)p, end - begin, __ATOMIC_RELAXED); return TW_OK; }
      int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) {
        *(int64_t *)out[0] = 0; return tw_parallel(ctx, body, out[0], *(const int64_t *)in[0]); }"""
    model = load(source, Descriptor("huge", (TensorSpec("n", i64, ()),), (TensorSpec("n", i64, ()),)), threads=2)
    for tasks in ((1 << 30) - 1, 1 << 30, (1 << 40) + 7, (1 << 62) + 1):
        assert model.run([np.array(tasks)])[0] == tasks


def test_sleeping_workers_use_no_cpu():
    model = scale(threads=2)
    model.run([X])
    time.sleep(0.02)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.05


# ---- fork and signals ----
def test_forked_child_runs_and_closes():
    model = scale(threads=3)
    model.run([X])
    stop = threading.Event()

    def keep_running():
        while not stop.is_set():
            model.run([X])

    threads = [threading.Thread(target=keep_running) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                signal.alarm(20)  # a deadlock ends the child and fails the test
                good = all((model.run([X])[0] == 2 * X + 1).all() for _ in range(50))
                model.close()
                os._exit(0 if good else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_ctrl_c_during_a_run_raises_and_the_model_stays_usable():
    source = """
      #include "tilewright_abi.h"
      int usleep(unsigned);
      static int32_t body(tw_ctx *ctx, void *p, int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) usleep(2000);
        return TW_OK; }
      int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) {
        *(float *)out[0] = 1;
        return tw_parallel(ctx, body, 0, 200); }"""
    model = load(source, SCALE_MODEL, threads=2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it otherwise
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        model.run([X])
        time.sleep(1)  # the interrupt arrives at the latest here
    timer.join()
    signal.signal(signal.SIGINT, before)
    assert model.run([X])[0][0] == 1


def test_process_ends_cleanly_with_workers_spinning():
    script = ("import numpy as np; from tests.runtime.build import scale\n"
              "m = scale(threads=4); m.run([np.zeros(1000, np.float32)])")
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], timeout=60, check=False)
    assert done.returncode == 0


def test_more_threads_than_the_system_gives():
    """Under a limit of processes the pool makes do with the threads that it got."""
    script = ("import resource, numpy as np\n"
              "from tests.runtime.build import scale\n"
              "m = scale(threads=600)\n"
              "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
              "assert (m.run([np.ones(1000, np.float32)])[0] == 3).all()\n")
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], timeout=60, check=False)
    assert done.returncode == 0


def test_arenas_of_concurrent_runs_are_distinct():
    source = """
      #include "tilewright_abi.h"
      int usleep(unsigned);
      int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) {
        float *a = (float *)ctx->arena; const float *x = in[0]; float *y = out[0];
        for (int i = 0; i < 1000; ++i) a[i] = x[i];
        usleep(20000);
        for (int i = 0; i < 1000; ++i) y[i] = a[i];
        return TW_OK; }"""
    model = load(source, replace(SCALE_MODEL, arena_bytes=4000))
    results = {}
    threads = [threading.Thread(target=lambda i=i: results.__setitem__(i, model.run([X * i])[0])) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(results[i], X * i) for i in range(5))
