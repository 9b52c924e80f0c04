/* An open model: its pool of contexts, and what its user calls. In: a model descriptor. Out: runs. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

/* A context and the argument arrays of its runs. */
typedef struct slot {
  struct slot *next;
  tw_ctx *ctx;
  void **in;  /* data, then shapes */
  void **out;
  int64_t *sizes; /* of the symbols */
  int32_t *first; /* the input that says each symbol's size first, or -1 */
} slot;

struct tw_instance {
  const tw_model *model;
  tw_device_model *on_device;
  slot *idle;
  int32_t threads, flags, running, closed, generation;
  int64_t contexts;
  tw_tap_fn tap;
  void *tap_user;
  tw_host_slot *host_calls;
  uint64_t *profile; /* of the runs that have ended */
};

/* One lock for all models: it is held for a few instructions, and a fork has one lock to take. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t one_ended = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static __thread char last_message[TW_MESSAGE_BYTES];
static __thread int32_t last_code;
static __thread tw_instance *current; /* whose run this thread is in */

static void lock_all(void) { pthread_mutex_lock(&lock); }
static void unlock_all(void) { pthread_mutex_unlock(&lock); }

/* A forked child has none of its parent's other threads: their runs never end there. */
static int32_t generation;
static void unlock_child(void) {
  ++generation;
  one_ended = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
  unlock_all();
}
static void guard_forks(void) { pthread_atfork(lock_all, unlock_all, unlock_child); }
static void forget_parents_runs(tw_instance *self) {
  if (self->generation != generation) self->running = 0;
  self->generation = generation;
}

static int32_t report(int32_t code, const char *message) {
  last_code = code;
  snprintf(last_message, sizeof last_message, "%s", message);
  return code;
}

TW_EXPORT const char *tw_error(void) { return last_message; }
TW_EXPORT int32_t tw_error_code(void) { return last_code; }

/* ---- open and close ---- */

static int32_t check_model(const tw_model *model) {
  char text[TW_MESSAGE_BYTES];
  if (model->abi_version != TW_ABI_VERSION) {
    snprintf(text, sizeof text, "%s was made for version %d of the runtime, this is version %d", model->name,
             model->abi_version, TW_ABI_VERSION);
    return report(TW_ERROR_ABI, text);
  }
  uint64_t missing = model->cpu_features & ~tw_cpu_features();
  if (missing == 0) return TW_OK;
  int length = snprintf(text, sizeof text, "%s needs a CPU with", model->name);
  for (int32_t i = 0; i < 64; ++i) {
    if (!(missing >> i & 1) || length < 0 || length >= (int)sizeof text) continue;
    const char *name = tw_cpu_feature_name(i);
    length += snprintf(text + length, sizeof text - (size_t)length, " %s", name != NULL ? name : "(an unknown feature)");
  }
  return report(TW_ERROR_CPU, text);
}

TW_EXPORT int32_t tw_set_threads(tw_instance *self, int32_t threads) {
  if (threads < 1 || threads > TW_MAX_THREADS)
    return report(TW_ERROR_ARGUMENT, "the number of threads is from 1 to 1024");
  pthread_mutex_lock(&lock);
  self->threads = threads;
  pthread_mutex_unlock(&lock);
  return TW_OK;
}

TW_EXPORT tw_instance *tw_open(const tw_model *model, int32_t threads) {
  if (check_model(model) != TW_OK) return NULL;
  pthread_once(&once, guard_forks);
  if (threads == 0) threads = model->threads;
  if (threads == 0) threads = tw_default_threads();
  if (threads == 0) {
    report(TW_ERROR_ARGUMENT, "TILEWRIGHT_THREADS is not a number from 1 to 1024");
    return NULL;
  }
  tw_instance *self = calloc(1, sizeof *self);
  if (self != NULL) {
    tw_use_outputs(1);
    self->model = model;
    self->generation = generation;
    self->host_calls = calloc((size_t)model->host_count + 1, sizeof *self->host_calls);
    self->profile = calloc(2 * (size_t)model->kernel_count + 1, sizeof *self->profile);
  }
  if (self == NULL || self->host_calls == NULL || self->profile == NULL) {
    if (self != NULL) tw_destroy(self);
    report(TW_ERROR_MEMORY, "no memory to open the model");
    return NULL;
  }
  char message[TW_MESSAGE_BYTES];
  int32_t status = tw_device_open(model, &self->on_device, message, sizeof message);
  if (status != TW_OK) {
    tw_destroy(self);
    report(status, message);
    return NULL;
  }
  if (tw_set_threads(self, threads) == TW_OK) return self;
  tw_destroy(self);
  return NULL;
}

static void free_slot(slot *s) {
  if (s->ctx != NULL) tw_context_free(s->ctx);
  free(s->in);
  free(s->out);
  free(s->sizes);
  free(s->first);
  free(s);
}

TW_EXPORT int32_t tw_close(tw_instance *self) {
  if (current == self) return report(TW_ERROR_ARGUMENT, "a model cannot be closed from within its own run");
  pthread_mutex_lock(&lock);
  forget_parents_runs(self);
  int32_t was_closed = self->closed;
  self->closed = 1;
  while (self->running > 0) pthread_cond_wait(&one_ended, &lock);
  slot *idle = self->idle;
  self->idle = NULL;
  self->contexts = 0;
  pthread_mutex_unlock(&lock);
  while (idle != NULL) {
    slot *next = idle->next;
    free_slot(idle);
    idle = next;
  }
  if (!was_closed) tw_use_outputs(-1);
  return TW_OK;
}

TW_EXPORT void tw_destroy(tw_instance *self) {
  if (self == NULL || tw_close(self) != TW_OK) return;
  tw_device_close(self->model, self->on_device);
  free(self->host_calls);
  free(self->profile);
  free(self);
}

/* ---- contexts ---- */

static slot *new_slot(const tw_model *model, tw_device_model *on_device) {
  slot *s = calloc(1, sizeof *s);
  if (s == NULL) return NULL;
  s->in = calloc(2 * (size_t)model->input_count + 1, sizeof *s->in);
  s->out = calloc((size_t)model->output_count + 1, sizeof *s->out);
  s->sizes = calloc((size_t)model->symbol_count + 1, sizeof *s->sizes);
  s->first = calloc((size_t)model->symbol_count + 1, sizeof *s->first);
  s->ctx = tw_context_new(model, on_device);
  if (s->in != NULL && s->out != NULL && s->sizes != NULL && s->first != NULL && s->ctx != NULL) return s;
  free_slot(s);
  return NULL;
}

/* A context for one run: an idle one or a new one. */
static slot *acquire(tw_instance *self) {
  pthread_mutex_lock(&lock);
  if (self->closed) {
    pthread_mutex_unlock(&lock);
    report(TW_ERROR_CLOSED, "the model was closed");
    return NULL;
  }
  forget_parents_runs(self);
  ++self->running;
  slot *s = self->idle;
  if (s != NULL) self->idle = s->next;
  pthread_mutex_unlock(&lock);
  int fresh = s == NULL;
  if (fresh) s = new_slot(self->model, self->on_device);
  pthread_mutex_lock(&lock);
  if (s == NULL) {
    --self->running;
    pthread_cond_broadcast(&one_ended);
    pthread_mutex_unlock(&lock);
    char text[128];
    snprintf(text, sizeof text, "no memory for the model's arena: %lld bytes on %.40s", (long long)self->model->arena_bytes,
             self->model->device != NULL ? self->model->device : "cpu");
    report(TW_ERROR_MEMORY, text);
    return NULL;
  }
  self->contexts += fresh;
  tw_ctx *ctx = s->ctx;
  ctx->threads = self->threads;
  ctx->flags = self->flags;
  ctx->tap = self->tap;
  ctx->tap_user = self->tap_user;
  ctx->host_calls = self->host_calls;
  pthread_mutex_unlock(&lock);
  return s;
}

static void give_back(tw_instance *self, slot *s) {
  tw_ctx *ctx = s->ctx;
  pthread_mutex_lock(&lock);
  if (ctx->flags & TW_PROFILE) {
    size_t numbers = 2 * (size_t)self->model->kernel_count;
    for (size_t i = 0; i < numbers; ++i) self->profile[i] += ctx->profile[i];
    memset(ctx->profile, 0, numbers * sizeof *ctx->profile);
  }
  s->next = self->idle;
  self->idle = s;
  --self->running;
  if (self->closed) pthread_cond_broadcast(&one_ended);
  pthread_mutex_unlock(&lock);
}

/* ---- run ---- */

static void poison(const tw_ctx *ctx) {
  memset(ctx->arena, 0xff, (size_t)ctx->model->arena_bytes);
  for (int32_t i = 0; i < ctx->grown_count; ++i)
    if (ctx->grown[i] != NULL) memset(ctx->grown[i], 0xff, (size_t)ctx->grown_bytes[i]);
}

/* The shapes of a run's inputs against what the model takes: fixed dimensions, ranges, equal symbols. */
static int32_t check_shapes(const tw_model *model, slot *s, const int64_t *const *shapes) {
  char text[TW_MESSAGE_BYTES];
  if (shapes == NULL) {
    if (model->symbol_count == 0) return TW_OK;
    return report(TW_ERROR_ARGUMENT, "the model has symbolic sizes: a run needs the shapes of its inputs");
  }
  for (int32_t k = 0; k < model->symbol_count; ++k) s->first[k] = -1;
  for (int32_t i = 0; i < model->input_count; ++i) {
    const tw_tensor_info *info = &model->inputs[i];
    for (int32_t axis = 0; axis < info->rank; ++axis) {
      long long n = (long long)shapes[i][axis], want = (long long)info->shape[axis];
      int32_t k = info->symbols != NULL ? info->symbols[axis] : -1;
      if (k < 0 && want >= 0 && n != want) {
        snprintf(text, sizeof text, "input '%s': dimension %d is %lld, the model takes %lld", info->name, axis, n, want);
        return report(TW_ERROR_INPUT, text);
      }
      if (k < 0) continue;
      const tw_symbol *symbol = &model->symbols[k];
      if (s->first[k] >= 0 && s->sizes[k] != n) {
        snprintf(text, sizeof text, "input '%s': dimension %d is %lld, but '%s' is %lld in input '%s'", info->name, axis,
                 n, symbol->name, (long long)s->sizes[k], model->inputs[s->first[k]].name);
        return report(TW_ERROR_INPUT, text);
      }
      if (n < symbol->least || (symbol->most >= 0 && n > symbol->most) || n % symbol->multiple != 0) {
        int length = snprintf(text, sizeof text, "input '%s': dimension %d is %lld, '%s' is from %lld", info->name, axis, n,
                              symbol->name, (long long)symbol->least);
        if (symbol->most >= 0 && length < (int)sizeof text)
          length += snprintf(text + length, sizeof text - (size_t)length, " to %lld", (long long)symbol->most);
        if (symbol->multiple != 1 && length < (int)sizeof text)
          snprintf(text + length, sizeof text - (size_t)length, ", a multiple of %lld", (long long)symbol->multiple);
        return report(TW_ERROR_INPUT, text);
      }
      if (s->first[k] < 0) s->first[k] = i;
      s->sizes[k] = n;
    }
  }
  return TW_OK;
}

TW_EXPORT int32_t tw_run(tw_instance *self, const void *const *in, const int64_t *const *in_shapes, void *const *out,
                         tw_result *results) {
  const tw_model *model = self->model;
  slot *s = acquire(self);
  if (s == NULL) return last_code;
  tw_ctx *ctx = s->ctx;
  int32_t refused = check_shapes(model, s, in_shapes);
  if (refused != TW_OK) {
    give_back(self, s);
    return refused;
  }
  for (int32_t i = 0; i < model->input_count; ++i) {
    s->in[i] = (void *)(uintptr_t)in[i];
    s->in[model->input_count + i] = (void *)(uintptr_t)(in_shapes != NULL ? in_shapes[i] : model->inputs[i].shape);
  }
  for (int32_t i = 0; i < model->output_count; ++i) s->out[i] = out[i];
  ctx->results = results;
  for (int32_t i = 0; results != NULL && i < model->output_count; ++i) results[i].data = NULL;
  ctx->code = TW_OK;
  ctx->message[0] = '\0';
  if (ctx->flags & TW_POISON) poison(ctx);

  tw_instance *outer = current;
  int32_t outer_worker = tw_swap_worker(0);
  current = self;
  int32_t status = model->entry(ctx, s->in, s->out);
  current = outer;
  tw_swap_worker(outer_worker);
  tw_device_end(ctx);

  if (status == TW_OK && ctx->code != TW_OK) status = ctx->code;
  if (status != TW_OK) {
    for (int32_t i = 0; results != NULL && i < model->output_count; ++i) {
      tw_release(results[i].data);
      results[i].data = NULL;
    }
    report(status, ctx->message[0] != '\0' ? ctx->message : "the model failed without a message");
  }
  give_back(self, s);
  return status;
}

/* ---- settings and measurements ---- */

static int32_t tw_get_threads(tw_instance *self) { return self->threads; }

static void tw_set_flags(tw_instance *self, int32_t flags) {
  pthread_mutex_lock(&lock);
  self->flags = flags;
  pthread_mutex_unlock(&lock);
}

static void tw_set_tap(tw_instance *self, tw_tap_fn tap, void *user) {
  pthread_mutex_lock(&lock);
  self->tap = tap;
  self->tap_user = user;
  pthread_mutex_unlock(&lock);
}

static int32_t tw_set_host_call(tw_instance *self, int32_t at, tw_host_fn call, void *user) {
  if (at < 0 || at >= self->model->host_count) return report(TW_ERROR_ARGUMENT, "the model has no such host call");
  self->host_calls[at] = (tw_host_slot){call, user};
  return TW_OK;
}

static void tw_profile(tw_instance *self, uint64_t *pairs, int32_t reset) {
  size_t bytes = 2 * (size_t)self->model->kernel_count * sizeof *pairs;
  pthread_mutex_lock(&lock);
  memcpy(pairs, self->profile, bytes);
  if (reset) memset(self->profile, 0, bytes);
  pthread_mutex_unlock(&lock);
}

/* Bytes of the contexts that exist: their arenas and the growable allocations of the idle ones. */
static int64_t tw_memory(tw_instance *self) {
  pthread_mutex_lock(&lock);
  int64_t bytes = self->contexts * self->model->arena_bytes;
  for (slot *s = self->idle; s != NULL; s = s->next)
    for (int32_t i = 0; i < s->ctx->grown_count; ++i) bytes += s->ctx->grown_bytes[i];
  pthread_mutex_unlock(&lock);
  return bytes;
}

#ifdef TW_SAVED_MODEL
/* A saved library: its generated part defines the model. */
extern const tw_model tw_saved_model;
#define SAVED_MODEL (&tw_saved_model)
#else
#define SAVED_MODEL NULL
#endif

static const tw_runtime functions = {
    .abi_version = TW_ABI_VERSION,
    .bytes = sizeof(tw_runtime),
    .model = SAVED_MODEL,
    .open = tw_open,
    .close = tw_close,
    .destroy = tw_destroy,
    .run = tw_run,
    .error = tw_error,
    .error_code = tw_error_code,
    .set_threads = tw_set_threads,
    .get_threads = tw_get_threads,
    .set_flags = tw_set_flags,
    .set_tap = tw_set_tap,
    .set_host_call = tw_set_host_call,
    .profile = tw_profile,
    .memory = tw_memory,
    .release = tw_release,
    .cpu_features = tw_cpu_features,
    .cpu_feature_name = tw_cpu_feature_name,
};

/* How Python finds its way into the library, in-process and saved. Calls nothing of the model. */
TW_EXPORT __attribute__((weak)) const tw_runtime *tilewright_runtime(void) { return &functions; }
