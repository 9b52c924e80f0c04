/* The device table and its first user, the CPU. In: requests of contexts and host programs. Out: memory, copies, launches.
 *
 * A CPU module is a shared library given as bytes; a kernel in it is a tw_body whose closure is the argument array, run over
 * grid[0] * grid[1] * grid[2] tasks by the thread pool.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime.h"

static __thread char last_error[256];

static int32_t refuse(const char *what, const char *why) {
  snprintf(last_error, sizeof last_error, "cpu: %s: %s", what, why);
  return TW_ERROR_DEVICE;
}

static int32_t cpu_alloc(tw_device *self, int64_t bytes, void **memory) {
  (void)self;
  *memory = tw_map(bytes);
  if (*memory != NULL) return TW_OK;
  refuse("alloc", "out of memory");
  return TW_ERROR_MEMORY;
}

static int32_t cpu_free(tw_device *self, void *memory, int64_t bytes) {
  (void)self;
  tw_unmap(memory, bytes);
  return TW_OK;
}

static int32_t cpu_copy(tw_device *self, int32_t direction, void *to, int64_t to_offset, const void *from,
                        int64_t from_offset, int64_t bytes) {
  (void)self, (void)direction;
  memmove((uint8_t *)to + to_offset, (const uint8_t *)from + from_offset, (size_t)bytes);
  return TW_OK;
}

static int32_t cpu_load(tw_device *self, const void *image, int64_t bytes, void **module) {
  (void)self;
  char path[64];
  int file = memfd_create("tilewright-module", MFD_CLOEXEC);
  if (file < 0) return refuse("load", strerror(errno));
  for (int64_t done = 0; done < bytes;) {
    ssize_t n = write(file, (const uint8_t *)image + done, (size_t)(bytes - done));
    if (n < 0) {
      int32_t status = refuse("load", strerror(errno));
      close(file);
      return status;
    }
    done += n;
  }
  snprintf(path, sizeof path, "/proc/self/fd/%d", file);
  *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  /* The linker knows libraries by path: were the file closed, the next module could get its number and be taken for it. */
  if (*module != NULL) return TW_OK;
  close(file);
  return refuse("load", dlerror());
}

static int32_t cpu_launch(tw_device *self, tw_ctx *ctx, void *module, const char *kernel, const int64_t grid[3],
                          const int64_t block[3], int64_t shared_bytes, void **args, int32_t n) {
  (void)self, (void)block, (void)shared_bytes, (void)n;
  tw_body body;
  void *found = dlsym(module, kernel);
  if (found == NULL) return refuse("launch", dlerror());
  memcpy(&body, &found, sizeof body);
  return tw_parallel(ctx, body, args, grid[0] * grid[1] * grid[2]);
}

static int32_t cpu_sync(tw_device *self) {
  (void)self;
  return TW_OK;
}

static const char *cpu_error(tw_device *self) {
  (void)self;
  return last_error;
}

static int32_t cpu_unload(tw_device *self, void *module) {
  (void)self;
  return dlclose(module) == 0 ? TW_OK : refuse("unload", dlerror());
}

static tw_device cpu = {.name = "cpu", .open = cpu_sync, .alloc = cpu_alloc, .free = cpu_free, .copy = cpu_copy,
                        .load = cpu_load, .unload = cpu_unload, .launch = cpu_launch, .sync = cpu_sync, .error = cpu_error};

TW_EXPORT tw_device *tw_devices[] = {&cpu, &tw_opencl, &tw_webgpu, &tw_cuda};
TW_EXPORT const int32_t tw_device_count = sizeof tw_devices / sizeof *tw_devices;
