/* A model on a device: its module and weights, loaded once, and a run's arena there. In: a model whose descriptor names a
 * device. Out: what the host program calls: launches and copies.
 *
 * The host program knows values by their addresses in the host's arena and weights, which for such a model stand for the
 * same places of the device's: an address is looked up and becomes (memory, offset). The host's own arena is address space
 * without pages, but for the few scalars that branches and loops read.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

/* The device of a name, opened. */
static int32_t find(const char *name, tw_device **device, char *message, size_t room) {
  for (int32_t i = 1; i < tw_device_count; ++i)
    if (strcmp(tw_devices[i]->name, name) == 0) {
      *device = tw_devices[i];
      int32_t status = (*device)->open(*device);
      if (status != TW_OK) snprintf(message, room, "%s", (*device)->error(*device));
      return status;
    }
  snprintf(message, room, "this runtime knows no device \"%s\"", name);
  return TW_ERROR_DRIVER;
}

int32_t tw_device_open(const tw_model *model, tw_device_model **out, char *message, size_t room) {
  *out = NULL;
  if (model->device == NULL) return TW_OK;
  tw_device *device;
  int32_t status = find(model->device, &device, message, room);
  if (status != TW_OK) return status;
  tw_device_model *self = calloc(1, sizeof *self);
  if (self == NULL) {
    snprintf(message, room, "no memory to open the device");
    return TW_ERROR_MEMORY;
  }
  self->device = device;
  status = device->load(device, model->image, model->image_bytes, &self->module);
  if (status == TW_OK && model->consts_bytes > 0) {
    status = device->alloc(device, model->consts_bytes, &self->consts);
    if (status == TW_OK)
      status = device->copy(device, TW_COPY_TO_DEVICE, self->consts, 0, model->consts, 0, model->consts_bytes);
  }
  if (status != TW_OK) {
    snprintf(message, room, "%s", device->error(device));
    tw_device_close(model, self);
    return status;
  }
  *out = self;
  return TW_OK;
}

void tw_device_close(const tw_model *model, tw_device_model *self) {
  if (self == NULL) return;
  if (self->consts != NULL) self->device->free(self->device, self->consts, model->consts_bytes);
  if (self->module != NULL) self->device->unload(self->device, self->module);
  free(self);
}

/* Where an address of the host program is on the device. */
static int32_t place(tw_ctx *ctx, const void *address, tw_argument *out) {
  const uint8_t *at = address;
  if (at >= ctx->arena && at < ctx->arena + ctx->model->arena_bytes) {
    *out = (tw_argument){ctx->device_arena, at - ctx->arena};
    return TW_OK;
  }
  if (at >= ctx->consts && at < ctx->consts + ctx->model->consts_bytes) {
    *out = (tw_argument){ctx->on_device->consts, at - ctx->consts};
    return TW_OK;
  }
  return tw_fail(ctx, TW_ERROR_DEVICE, "an address that is neither in the arena nor among the weights");
}

static int32_t failed(tw_ctx *ctx, int32_t status) {
  tw_device *device = ctx->on_device->device;
  return status == TW_OK ? TW_OK : tw_fail(ctx, status, device->error(device));
}

TW_EXPORT int32_t tw_launch(tw_ctx *ctx, const char *kernel, const int64_t *grid, void *const *buffers, int32_t buffer_count,
                            const int64_t *numbers, int32_t number_count) {
  tw_argument arguments[TW_MAX_ARGUMENTS];
  tw_device *device = ctx->on_device->device;
  if (ctx->code != TW_OK) return ctx->code;
  if (buffer_count + number_count > TW_MAX_ARGUMENTS) return tw_fail(ctx, TW_ERROR_DEVICE, "a kernel with too many arguments");
  for (int32_t i = 0; i < buffer_count; ++i)
    if (place(ctx, buffers[i], &arguments[i]) != TW_OK) return ctx->code;
  for (int32_t i = 0; i < number_count; ++i) arguments[buffer_count + i] = (tw_argument){NULL, numbers[i]};
  int32_t status = device->launch(device, ctx, ctx->on_device->module, kernel, grid, grid + 3, 0, (void **)arguments,
                                  buffer_count + number_count);
  if (status == TW_OK && ctx->flags & TW_PROFILE) status = device->sync(device); /* so that times are the kernel's own */
  return failed(ctx, status);
}

TW_EXPORT void tw_upload(tw_ctx *ctx, void *to, const void *from, int64_t bytes) {
  tw_argument target;
  tw_device *device = ctx->on_device->device;
  if (ctx->code == TW_OK && bytes > 0 && place(ctx, to, &target) == TW_OK)
    failed(ctx, device->copy(device, TW_COPY_TO_DEVICE, target.memory, target.number, from, 0, bytes));
}

TW_EXPORT void tw_download(tw_ctx *ctx, void *to, const void *from, int64_t bytes) {
  tw_argument source;
  tw_device *device = ctx->on_device->device;
  if (ctx->code == TW_OK && bytes > 0 && place(ctx, from, &source) == TW_OK)
    failed(ctx, device->copy(device, TW_COPY_TO_HOST, to, 0, source.memory, source.number, bytes));
}

TW_EXPORT void tw_move(tw_ctx *ctx, void *to, const void *from, int64_t bytes) {
  tw_argument target, source;
  tw_device *device = ctx->on_device->device;
  if (ctx->code == TW_OK && bytes > 0 && place(ctx, to, &target) == TW_OK && place(ctx, from, &source) == TW_OK)
    failed(ctx, device->copy(device, TW_COPY_ON_DEVICE, target.memory, target.number, source.memory, source.number, bytes));
}

/* The first run launches (drivers load kernels when they are first launched, which a capture may not do), the second
 * captures, later ones replay. Profiles, taps and poison want each launch by itself. */
TW_EXPORT int64_t tw_replay(tw_ctx *ctx) {
  tw_device *device = ctx->on_device->device;
  if (ctx->code != TW_OK) return 1;
  if (device->capture == NULL || ctx->flags != 0) return 0;
  if (ctx->graph != NULL) {
    failed(ctx, device->replay(device, ctx->graph));
    return 1;
  }
  if (!ctx->launched) return 0;
  ctx->capturing = failed(ctx, device->capture(device)) == TW_OK;
  return !ctx->capturing;
}

TW_EXPORT void tw_captured(tw_ctx *ctx) {
  tw_device *device = ctx->on_device->device;
  ctx->launched = 1;
  if (!ctx->capturing) return;
  ctx->capturing = 0;
  if (failed(ctx, device->captured(device, &ctx->graph)) == TW_OK) failed(ctx, device->replay(device, ctx->graph));
}

void tw_device_end(tw_ctx *ctx) {
  if (!ctx->capturing) return;
  ctx->capturing = 0;
  ctx->on_device->device->captured(ctx->on_device->device, NULL);
}
