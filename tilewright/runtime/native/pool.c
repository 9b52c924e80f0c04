/* The thread pool: one per process (per copy of the runtime), shared by all models. In: a parallel region. Out: its status.
 *
 * A region is published by one 64-bit word, the gate: epoch, participants, closed bit, number of workers that joined.
 * Workers see the epoch change (spinning for about half a millisecond after their last work, then asleep on a futex),
 * join by adding one to the gate, and work. The caller works too; when no task is left it closes the gate and waits only
 * for the workers that joined, so a worker that is slow to wake never delays a region that is already done.
 *
 * Every participant owns a contiguous range of tasks in a cache line of its own and takes chunks from its front; who has
 * none left takes small chunks from the back of the others' ranges. In odd turns of a loop front and back change places.
 *
 * A region started while another one runs (nested, or from another thread) runs on its caller alone.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "runtime.h"

#define SPIN_NANOSECONDS 500000   /* a worker, for the next region */
#define AWAIT_NANOSECONDS 2000000 /* the caller, for the last workers of its region */
#define YIELD_AFTER 4096          /* pauses, about a tenth of a millisecond */
#define STACK_BYTES ((size_t)8 << 20)
#define CHUNKS_PER_RANGE 32

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

/* The gate: [epoch 32][participants 15][closed 1][joined 16]. */
#define JOINED(gate) ((uint32_t)((gate) & 0xffff))
#define CLOSED ((uint64_t)1 << 16)
#define PARTICIPANTS(gate) ((int32_t)((gate) >> 17 & 0x7fff))
#define EPOCH(gate) ((uint32_t)((gate) >> 32))
#define STOP 0x7fff /* as participants: the workers shall end */

/* A range of groups of tasks, low half the first, high half one past the last. */
typedef struct share {
  _Alignas(64) _Atomic uint64_t range;
} share;

struct tw_pool {
  _Alignas(64) _Atomic uint64_t gate;
  _Alignas(64) _Atomic uint32_t finished; /* workers that left the current region */
  _Atomic uint32_t caller_sleeps;
  _Alignas(64) _Atomic int32_t busy;
  _Atomic int32_t sleepers;
  _Alignas(64) _Atomic int32_t status; /* of the current region: the first failure */
  /* Written by the caller before the gate opens, read by workers that joined. */
  tw_ctx *ctx;
  tw_body body;
  void *closure;
  int64_t tasks;
  int64_t group; /* tasks per unit of a range: 1 unless there are more than 2^30 */
  int32_t participants;
  int32_t chunk;
  int32_t backward;
  /* Written while busy. */
  int32_t workers;
  _Atomic int32_t spins; /* whether waiting threads spin */
  pthread_t threads[TW_MAX_THREADS];
  share shares[TW_MAX_THREADS];
};

static tw_pool pool;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static __thread int32_t worker_index;

static void futex_wait(void *word, uint32_t seen) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}
static void futex_wake(void *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0); }

/* The half of the gate that holds the epoch: what sleeping workers wait on. */
static uint32_t *epoch_word(void) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  return (uint32_t *)&pool.gate + 1;
#else
  return (uint32_t *)&pool.gate;
#endif
}

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- one participant's work ---- */

/* Takes up to `chunk` units from the front or the back of a share. Returns how many. */
static int64_t take(share *from, int32_t chunk, int front, int64_t *first) {
  uint64_t range = atomic_load_explicit(&from->range, memory_order_relaxed);
  for (;;) {
    uint64_t low = range & 0xffffffff, high = range >> 32;
    if (low >= high) return 0;
    uint64_t n = high - low < (uint64_t)chunk ? high - low : (uint64_t)chunk;
    uint64_t rest = front ? high << 32 | (low + n) : (high - n) << 32 | low;
    if (atomic_compare_exchange_weak_explicit(&from->range, &range, rest, memory_order_relaxed,
                                              memory_order_relaxed)) {
      *first = (int64_t)(front ? low : high - n);
      return (int64_t)n;
    }
  }
}

static void work(int32_t me) {
  int32_t n = pool.participants;
  for (int32_t k = 0; k < n; ++k) {
    int32_t victim = me + k < n ? me + k : me + k - n;
    int64_t first, units;
    while ((units = take(&pool.shares[victim], pool.chunk, (k == 0) != pool.backward, &first)) > 0) {
      if (atomic_load_explicit(&pool.status, memory_order_relaxed) != TW_OK) return;
      int64_t begin = first * pool.group, end = (first + units) * pool.group;
      int32_t status = pool.body(pool.ctx, pool.closure, begin, end < pool.tasks ? end : pool.tasks);
      if (status != TW_OK) {
        int32_t none = TW_OK;
        atomic_compare_exchange_strong(&pool.status, &none, status);
        return;
      }
    }
  }
}

/* ---- workers ---- */

/* Returns the gate once its epoch is not `seen`. */
static uint64_t await_epoch(uint32_t seen) {
  uint64_t gate;
  int64_t until = 0;
  for (uint32_t i = 0; pool.spins; ++i) {
    gate = atomic_load_explicit(&pool.gate, memory_order_acquire);
    if (EPOCH(gate) != seen) return gate;
    RELAX();
    if ((i & 63) == 63) {
      int64_t t = now();
      if (until == 0) until = t + SPIN_NANOSECONDS;
      if (t > until) break;
    }
  }
  atomic_fetch_add(&pool.sleepers, 1);
  while (EPOCH(gate = atomic_load(&pool.gate)) == seen) futex_wait(epoch_word(), seen);
  atomic_fetch_sub(&pool.sleepers, 1);
  return gate;
}

/* Joins the region that `gate` publishes, unless it is over, replaced, or without a place for this worker. */
static int join_region(uint64_t gate, int32_t me) {
  uint32_t epoch = EPOCH(gate);
  if (me >= PARTICIPANTS(gate)) return 0;
  while (!(gate & CLOSED) && EPOCH(gate) == epoch)
    if (atomic_compare_exchange_weak_explicit(&pool.gate, &gate, gate + 1, memory_order_acq_rel,
                                              memory_order_acquire))
      return 1;
  return 0;
}

typedef struct start {
  int32_t index;
  uint32_t epoch;
} start;

static void *worker_main(void *argument) {
  start at = *(start *)argument;
  free(argument);
  worker_index = at.index;
  uint32_t seen = at.epoch;
  for (;;) {
    uint64_t gate = await_epoch(seen);
    seen = EPOCH(gate);
    if (PARTICIPANTS(gate) == STOP) return NULL;
    if (!join_region(gate, at.index)) continue;
    work(at.index);
    atomic_fetch_add(&pool.finished, 1);
    if (atomic_load(&pool.caller_sleeps)) futex_wake(&pool.finished);
  }
}

/* Starts workers until there are `count`, or as many as the system gives. Signals stay with the program's own threads. */
static void start_workers(int32_t count) {
  sigset_t all, before;
  pthread_attr_t attr;
  if (pthread_attr_init(&attr) != 0) return;
  pthread_attr_setstacksize(&attr, STACK_BYTES);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (pool.workers < count) {
    start *at = malloc(sizeof *at);
    if (at == NULL) break;
    at->index = pool.workers + 1;
    at->epoch = EPOCH(atomic_load(&pool.gate));
    if (pthread_create(&pool.threads[pool.workers], &attr, worker_main, at) != 0) {
      free(at);
      break;
    }
    ++pool.workers;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attr);
  /* Spinning pays only if every thread has a CPU to itself: not under a quota, not with more threads than CPUs. */
  int32_t cpus = tw_affinity();
  pool.spins = tw_quota("/sys/fs/cgroup", "/proc/self/cgroup") == 0 && pool.workers + 1 <= cpus;
}

/* A forked child has none of its parent's threads: it begins with an empty pool. */
static void after_fork(void) {
  atomic_store(&pool.gate, CLOSED);
  atomic_store(&pool.finished, 0);
  atomic_store(&pool.caller_sleeps, 0);
  atomic_store(&pool.sleepers, 0);
  pool.workers = 0;
  worker_index = 0;
  atomic_store(&pool.busy, 0);
}

static void prepare_pool(void) {
  atomic_store(&pool.gate, CLOSED);
  pthread_atfork(NULL, NULL, after_fork);
}

tw_pool *tw_shared_pool(void) {
  pthread_once(&once, prepare_pool);
  return &pool;
}

static void publish(int32_t participants) {
  uint64_t gate = atomic_load_explicit(&pool.gate, memory_order_relaxed);
  atomic_store(&pool.gate, (uint64_t)(EPOCH(gate) + 1) << 32 | (uint64_t)participants << 17);
  if (atomic_load(&pool.sleepers) > 0) futex_wake(epoch_word());
}

/* Ends the workers when the library is unloaded: their code is about to go away. */
__attribute__((destructor)) static void stop_workers(void) {
  int32_t idle = 0;
  if (pool.workers == 0 || !atomic_compare_exchange_strong(&pool.busy, &idle, 1)) return;
  publish(STOP);
  for (int32_t i = 0; i < pool.workers; ++i) pthread_join(pool.threads[i], NULL);
  pool.workers = 0;
}

/* ---- regions ---- */

static void await_workers(uint32_t joined) {
  uint32_t done;
  int64_t until = 0;
  for (int32_t i = 0; pool.spins || i < 64; ++i) {
    if (atomic_load_explicit(&pool.finished, memory_order_acquire) == joined) return;
    RELAX();
    if ((i & 63) != 63) continue;
    int64_t t = now();
    if (until == 0) until = t + AWAIT_NANOSECONDS;
    if (t > until) break;
    if (i >= YIELD_AFTER) sched_yield(); /* perhaps a worker waits for this very CPU */
  }
  atomic_store(&pool.caller_sleeps, 1);
  while ((done = atomic_load(&pool.finished)) != joined) futex_wait(&pool.finished, done);
  atomic_store(&pool.caller_sleeps, 0);
}

static void share_out(int64_t tasks, int32_t participants) {
  pool.group = (tasks >> 30) + 1;
  int64_t units = (tasks + pool.group - 1) / pool.group, low = 0;
  int64_t each = units / participants, more = units % participants;
  for (int32_t i = 0; i < participants; ++i) {
    int64_t high = low + each + (i < more);
    atomic_store_explicit(&pool.shares[i].range, (uint64_t)high << 32 | (uint64_t)low, memory_order_relaxed);
    low = high;
  }
  pool.chunk = (int32_t)(each / CHUNKS_PER_RANGE > 1 ? each / CHUNKS_PER_RANGE : 1);
}

/* A region on its caller alone. */
static int32_t run_alone(tw_ctx *ctx, tw_body body, void *closure, int64_t tasks, int32_t backward) {
  if (!backward) return body(ctx, closure, 0, tasks);
  for (int64_t t = tasks; t-- > 0;) {
    int32_t status = body(ctx, closure, t, t + 1);
    if (status != TW_OK) return status;
  }
  return TW_OK;
}

static int32_t run_region(tw_ctx *ctx, tw_body body, void *closure, int64_t tasks, int32_t backward) {
  int32_t participants = tasks < ctx->threads ? (int32_t)tasks : ctx->threads, idle = 0;
  if (tasks <= 0) return TW_OK;
  if (participants == 1 || ctx->pool == NULL ||
      !atomic_compare_exchange_strong_explicit(&pool.busy, &idle, 1, memory_order_acquire, memory_order_relaxed))
    return run_alone(ctx, body, closure, tasks, backward);
  if (pool.workers < participants - 1) start_workers(participants - 1);
  if (participants > pool.workers + 1) participants = pool.workers + 1;
  pool.ctx = ctx;
  pool.body = body;
  pool.closure = closure;
  pool.tasks = tasks;
  pool.participants = participants;
  pool.backward = backward;
  share_out(tasks, participants);
  atomic_store_explicit(&pool.status, TW_OK, memory_order_relaxed);
  atomic_store_explicit(&pool.finished, 0, memory_order_relaxed);
  publish(participants);
  work(0);
  await_workers(JOINED(atomic_fetch_or(&pool.gate, CLOSED)));
  int32_t status = atomic_load_explicit(&pool.status, memory_order_relaxed);
  atomic_store_explicit(&pool.busy, 0, memory_order_release);
  return status;
}

TW_EXPORT int32_t tw_parallel(tw_ctx *ctx, tw_body body, void *closure, int64_t tasks) {
  return run_region(ctx, body, closure, tasks, 0);
}

TW_EXPORT int32_t tw_parallel_turn(tw_ctx *ctx, tw_body body, void *closure, int64_t tasks, int64_t turn) {
  return run_region(ctx, body, closure, tasks, (int32_t)(turn & 1));
}

TW_EXPORT int32_t tw_worker(tw_ctx *ctx) {
  (void)ctx;
  return worker_index;
}

int32_t tw_swap_worker(int32_t index) {
  int32_t before = worker_index;
  worker_index = index;
  return before;
}
