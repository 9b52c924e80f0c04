/* Pages from the system: arenas, weights and growable allocations. In: a size. Out: aligned, zeroed memory. */
#define _GNU_SOURCE
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime.h"

#define HUGE_PAGE ((int64_t)2 << 20)
#define HUGE_FROM ((int64_t)4 << 20)

static int64_t round_up(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

static int64_t mapped_bytes(int64_t bytes) {
  if (bytes < 1) bytes = 1;
  return round_up(bytes, bytes >= HUGE_FROM ? HUGE_PAGE : (int64_t)sysconf(_SC_PAGESIZE));
}

TW_EXPORT void *tw_map(int64_t bytes) {
  if (bytes < 0 || bytes > INT64_MAX / 2) return NULL;
  int64_t size = mapped_bytes(bytes);
  int64_t slack = size >= HUGE_FROM ? HUGE_PAGE : 0;
  uint8_t *base = mmap(NULL, (size_t)(size + slack), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return NULL;
  if (slack == 0) return base;
  uint8_t *aligned = (uint8_t *)(uintptr_t)round_up((int64_t)(uintptr_t)base, HUGE_PAGE);
  int64_t before = aligned - base;
  if (before > 0) munmap(base, (size_t)before);
  if (slack - before > 0) munmap(aligned + size, (size_t)(slack - before));
  madvise(aligned, (size_t)size, MADV_HUGEPAGE); /* a wish: systems without huge pages refuse it harmlessly */
  return aligned;
}

TW_EXPORT void tw_unmap(void *memory, int64_t bytes) {
  if (memory != NULL) munmap(memory, (size_t)mapped_bytes(bytes));
}
