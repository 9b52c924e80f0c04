/* Memory for outputs, used again. In: a size. Out: an aligned block, not zeroed.
 *
 * malloc maps a large block anew each time, and the kernel that writes it waits for a fault on every page: a copy into it
 * takes twice as long. So large blocks that were given back are kept for the next runs, until they have not been of use for
 * a while, a model is closed, or there is no other memory; never more than what was in use at once, and none while nobody
 * runs models. Their sizes are rounded up to an eighth, for outputs that grow from run to run. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

#include "runtime.h"

#define KEPT_FROM ((int64_t)64 << 10)
#define MOST_KEPT 256
#define PATIENCE 1024 /* blocks that may be taken before one that was given back is */

/* Stands TW_ALIGNMENT bytes before each block. */
typedef struct header {
  int64_t bytes; /* of the mapping that begins here; 0: from malloc */
} header;

static struct {
  header *block;
  int64_t since;
} kept[MOST_KEPT];
static int count, users;
static int64_t taken;
static int64_t kept_bytes, used_bytes, most_used; /* of large blocks; kept_bytes <= most_used */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void hold(void) { pthread_mutex_lock(&lock); }
static void let_go(void) { pthread_mutex_unlock(&lock); }
static void guard_forks(void) { pthread_atfork(hold, let_go, let_go); }

static header *forget(int k) {
  header *block = kept[k].block;
  kept_bytes -= block->bytes;
  kept[k] = kept[--count];
  return block;
}

static void unmap_all(header **blocks, int n) {
  for (int k = 0; k < n; ++k) tw_unmap(blocks[k], blocks[k]->bytes);
}

static int oldest(void) {
  int found = 0;
  for (int k = 1; k < count; ++k)
    if (kept[k].since < kept[found].since) found = k;
  return found;
}

static int64_t rounded(int64_t bytes) {
  int64_t step = KEPT_FROM / 8;
  while (step * 16 < bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

/* A kept block of this size, or NULL. */
static header *take_kept(int64_t size) {
  header *found = NULL, *old[MOST_KEPT];
  int olds = 0;
  hold();
  ++taken;
  used_bytes += size;
  if (used_bytes > most_used) most_used = used_bytes;
  for (int k = count - 1; k >= 0; --k) {
    if (found == NULL && kept[k].block->bytes == size)
      found = forget(k);
    else if (taken - kept[k].since > PATIENCE)
      old[olds++] = forget(k);
  }
  let_go();
  unmap_all(old, olds);
  return found;
}

static void not_used(int64_t size) {
  hold();
  used_bytes -= size;
  let_go();
}

TW_EXPORT void *tw_take(int64_t bytes) {
  if (bytes < 0 || bytes > INT64_MAX / 4) return NULL;
  pthread_once(&once, guard_forks);
  int64_t size = bytes < KEPT_FROM ? 0 : rounded(bytes) + TW_ALIGNMENT;
  void *start = NULL;
  if (size == 0) {
    if (posix_memalign(&start, TW_ALIGNMENT, (size_t)(bytes + TW_ALIGNMENT)) != 0) return NULL;
  } else {
    start = take_kept(size);
    if (start == NULL) start = tw_map(size);
    if (start == NULL) {
      tw_release_kept();
      start = tw_map(size);
    }
    if (start == NULL) {
      not_used(size);
      return NULL;
    }
  }
  ((header *)start)->bytes = size;
  return (uint8_t *)start + TW_ALIGNMENT;
}

TW_EXPORT void tw_release(void *data) {
  if (data == NULL) return;
  header *block = (header *)((uint8_t *)data - TW_ALIGNMENT);
  if (block->bytes == 0) {
    free(block);
    return;
  }
  header *old[MOST_KEPT + 1];
  int olds = 0;
  hold();
  used_bytes -= block->bytes;
  if (users > 0 && count < MOST_KEPT) {
    kept_bytes += block->bytes;
    kept[count].block = block;
    kept[count++].since = taken;
    while (kept_bytes > most_used) old[olds++] = forget(oldest());
  } else {
    old[olds++] = block;
  }
  let_go();
  unmap_all(old, olds);
}

TW_EXPORT void tw_use_outputs(int32_t more) {
  hold();
  users += more;
  if (users == 0) most_used = used_bytes;
  let_go();
  if (more < 0) tw_release_kept();
}

void tw_release_kept(void) {
  header *old[MOST_KEPT];
  int olds = 0;
  hold();
  while (count > 0) old[olds++] = forget(count - 1);
  let_go();
  unmap_all(old, olds);
}
