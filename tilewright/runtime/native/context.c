/* The context of one run and what generated code asks of it: errors, memory, host calls, profile, taps. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime.h"

tw_ctx *tw_context_new(const tw_model *model, tw_device_model *on_device) {
  size_t kernels = (size_t)model->kernel_count, grown = (size_t)model->grown_count;
  tw_ctx *ctx = calloc(1, sizeof *ctx);
  if (ctx == NULL) return NULL;
  ctx->model = model;
  ctx->consts = model->consts;
  ctx->on_device = on_device;
  ctx->grown_count = model->grown_count;
  ctx->devices = tw_devices;
  ctx->device_count = tw_device_count;
  ctx->host_count = model->host_count;
  ctx->pool = tw_shared_pool();
  ctx->profile = calloc(2 * kernels + 1, sizeof *ctx->profile);
  ctx->profile_start = calloc(kernels + 1, sizeof *ctx->profile_start);
  ctx->grown = calloc(grown + 1, sizeof *ctx->grown);
  ctx->grown_bytes = calloc(grown + 1, sizeof *ctx->grown_bytes);
  void *arena = NULL;
  int failed = tw_devices[0]->alloc(tw_devices[0], model->arena_bytes, &arena);
  ctx->arena = arena;
  if (!failed && on_device != NULL)
    failed = on_device->device->alloc(on_device->device, model->arena_bytes, &ctx->device_arena);
  if (failed || !ctx->profile || !ctx->profile_start || !ctx->grown || !ctx->grown_bytes) {
    tw_context_free(ctx);
    return NULL;
  }
  return ctx;
}

void tw_context_free(tw_ctx *ctx) {
  tw_device *cpu = tw_devices[0];
  for (int32_t i = 0; ctx->grown != NULL && ctx->grown_bytes != NULL && i < ctx->grown_count; ++i)
    cpu->free(cpu, ctx->grown[i], ctx->grown_bytes[i]);
  cpu->free(cpu, ctx->arena, ctx->model->arena_bytes);
  if (ctx->graph != NULL) ctx->on_device->device->forget(ctx->on_device->device, ctx->graph);
  if (ctx->device_arena != NULL)
    ctx->on_device->device->free(ctx->on_device->device, ctx->device_arena, ctx->model->arena_bytes);
  free(ctx->profile);
  free(ctx->profile_start);
  free(ctx->grown);
  free(ctx->grown_bytes);
  free(ctx);
}

TW_EXPORT int32_t tw_fail(tw_ctx *ctx, int32_t code, const char *message) {
  int32_t none = TW_OK;
  /* Participants of a region may fail at once: the first one writes, and is read only after the region has ended. */
  if (__atomic_compare_exchange_n(&ctx->code, &none, code, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
    snprintf(ctx->message, sizeof ctx->message, "%s", message);
  return code;
}

TW_EXPORT int32_t tw_fail_values(tw_ctx *ctx, int32_t code, const char *message, int64_t a, int64_t b, int64_t c) {
  const int64_t values[] = {a, b, c};
  char text[sizeof ctx->message];
  size_t at = 0, used = 0;
  while (*message != 0 && at + 1 < sizeof text) {
    if (message[0] == '{' && message[1] == '}' && used < 3) {
      int n = snprintf(text + at, sizeof text - at, "%lld", (long long)values[used++]);
      at = at + (size_t)n < sizeof text ? at + (size_t)n : sizeof text - 1;
      message += 2;
    } else {
      text[at++] = *message++;
    }
  }
  text[at] = 0;
  return tw_fail(ctx, code, text);
}

static void *fail_memory(tw_ctx *ctx, int64_t bytes) {
  char text[96];
  snprintf(text, sizeof text, "no memory for %lld bytes", (long long)bytes);
  tw_fail(ctx, TW_ERROR_MEMORY, text);
  return NULL;
}

TW_EXPORT void *tw_grow(tw_ctx *ctx, int32_t slot, int64_t bytes) { return tw_grow_kept(ctx, slot, bytes, 0); }

TW_EXPORT void *tw_grow_kept(tw_ctx *ctx, int32_t slot, int64_t bytes, int64_t used) {
  if (slot < 0 || slot >= ctx->grown_count) {
    tw_fail(ctx, TW_ERROR_ARGUMENT, "the model has no such growable allocation");
    return NULL;
  }
  if (ctx->grown[slot] != NULL && ctx->grown_bytes[slot] >= bytes) return ctx->grown[slot];
  tw_device *cpu = ctx->devices[0];
  void *old = ctx->grown[slot];
  int64_t old_bytes = ctx->grown_bytes[slot];
  if (old == NULL) used = 0;
  if (used == 0) cpu->free(cpu, old, old_bytes);
  ctx->grown[slot] = NULL;
  /* Half as much again, so that a slowly growing size is not copied each time; exactly the size if that is too much. */
  int64_t roomy = bytes + bytes / 2;
  if (cpu->alloc(cpu, roomy, &ctx->grown[slot]) != TW_OK && cpu->alloc(cpu, roomy = bytes, &ctx->grown[slot]) != TW_OK)
    roomy = 0;
  if (ctx->grown[slot] != NULL && ctx->flags & TW_POISON) memset(ctx->grown[slot], 0xff, (size_t)roomy);
  if (used > 0) {
    if (ctx->grown[slot] != NULL) memcpy(ctx->grown[slot], old, (size_t)(used < old_bytes ? used : old_bytes));
    cpu->free(cpu, old, old_bytes);
  }
  ctx->grown_bytes[slot] = roomy;
  return ctx->grown[slot] != NULL ? ctx->grown[slot] : fail_memory(ctx, bytes);
}

TW_EXPORT void *tw_output(tw_ctx *ctx, int32_t output, int32_t rank, const int64_t *shape, int64_t bytes) {
  if (ctx->results == NULL || output < 0 || output >= ctx->model->output_count || rank < 0 || rank > TW_MAX_RANK) {
    tw_fail(ctx, TW_ERROR_ARGUMENT, "an output of symbolic shape needs results to be given to the run");
    return NULL;
  }
  tw_result *result = &ctx->results[output];
  tw_release(result->data); /* an output that is asked for twice has its last size */
  result->data = tw_take(bytes);
  if (result->data == NULL) return fail_memory(ctx, bytes);
  result->bytes = bytes;
  result->rank = rank;
  memcpy(result->shape, shape, (size_t)rank * sizeof *shape);
  return result->data;
}

TW_EXPORT int32_t tw_host_call(tw_ctx *ctx, int32_t slot, void **args, int32_t n) {
  char text[96];
  if (slot < 0 || slot >= ctx->host_count || ctx->host_calls == NULL || ctx->host_calls[slot].call == NULL) {
    snprintf(text, sizeof text, "host call %d has no function", slot);
    return tw_fail(ctx, TW_ERROR_HOST_CALL, text);
  }
  int32_t status = ctx->host_calls[slot].call(ctx->host_calls[slot].user, args, n);
  if (status == TW_OK) return TW_OK;
  snprintf(text, sizeof text, "host call %d returned %d", slot, status);
  return tw_fail(ctx, TW_ERROR_HOST_CALL, text);
}

static uint64_t nanoseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

TW_EXPORT void tw_profile_begin(tw_ctx *ctx, int32_t kernel) {
  if (ctx->flags & TW_PROFILE) ctx->profile_start[kernel] = nanoseconds();
}

TW_EXPORT void tw_profile_end(tw_ctx *ctx, int32_t kernel) {
  if (!(ctx->flags & TW_PROFILE)) return;
  ctx->profile[2 * kernel] += nanoseconds() - ctx->profile_start[kernel];
  ctx->profile[2 * kernel + 1] += 1;
}

TW_EXPORT void tw_tap(tw_ctx *ctx, int32_t value, const void *data, int64_t bytes) {
  if (!(ctx->flags & TW_TAP) || ctx->tap == NULL) return;
  if (ctx->on_device != NULL) tw_download(ctx, (void *)(uintptr_t)data, data, bytes);
  ctx->tap(ctx->tap_user, value, data, bytes);
}
