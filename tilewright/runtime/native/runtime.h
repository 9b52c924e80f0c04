/* The runtime's inside: what its C files share. Nothing here is seen by generated code or by users. */
#ifndef TILEWRIGHT_RUNTIME_H
#define TILEWRIGHT_RUNTIME_H

#include "tilewright_abi.h"

#define TW_EXPORT __attribute__((visibility("default")))
#define TW_MAX_THREADS 1024
#define TW_MAX_ARGUMENTS 128

/* ---- memory.c ---- */
/* Zeroed pages, aligned to a page; to 2 MiB and asked to be huge from 4 MiB on. NULL when there are none. */
void *tw_map(int64_t bytes);
void tw_unmap(void *memory, int64_t bytes);

/* ---- outputs.c ---- */
/* A block for an output, aligned to TW_ALIGNMENT, not zeroed; NULL when there is no memory. */
void *tw_take(int64_t bytes);
/* Gives it back: it may be kept for the next output of its size. */
void tw_release(void *data);
/* Whoever runs models says so by 1, and that it ends by -1, which gives what is kept back to the system. */
void tw_use_outputs(int32_t more);
/* Gives the kept blocks back to the system. */
void tw_release_kept(void);

/* ---- cpu.c ---- */
/* Features of this CPU that the system lets programs use, one bit each; names as LLVM spells them. */
uint64_t tw_cpu_features(void);
const char *tw_cpu_feature_name(int32_t bit);
/* CPUs in the process's affinity mask, at least 1. */
int32_t tw_affinity(void);
/* CPUs granted by the control groups named in the file `membership` (/proc/self/cgroup) and mounted at `root`, rounded
 * down, at least 1; 0 when there is no limit. */
int32_t tw_quota(const char *root, const char *membership);
/* Threads to use: TILEWRIGHT_THREADS, else min(affinity, quota). 0 when the variable is no number from 1 to 1024. */
int32_t tw_default_threads(void);

/* ---- pool.c ---- */
/* The process's pool; its workers start with the first region that needs them. */
tw_pool *tw_shared_pool(void);
/* Sets tw_worker's answer on this thread and returns the previous one. */
int32_t tw_swap_worker(int32_t index);

/* ---- context.c ---- */
/* NULL when there is no memory, here or on the device. */
tw_ctx *tw_context_new(const tw_model *model, tw_device_model *on_device);
void tw_context_free(tw_ctx *ctx);

/* ---- device.c ---- */
extern tw_device *tw_devices[];
extern const int32_t tw_device_count;

/* ---- opencl.c ---- */
extern tw_device tw_opencl;

/* ---- webgpu.c ---- */
extern tw_device tw_webgpu;

/* ---- cuda.c ---- */
extern tw_device tw_cuda;

/* ---- device_model.c ---- */
struct tw_device_model {
  tw_device *device;
  void *module;
  void *consts;
};
/* Opens the model's device, loads its kernels and weights. *out is NULL for a model without a device. */
int32_t tw_device_open(const tw_model *model, tw_device_model **out, char *message, size_t room);
void tw_device_close(const tw_model *model, tw_device_model *self);
/* After a run: drops what a failed run was capturing. */
void tw_device_end(tw_ctx *ctx);

/* ---- model.c ---- */
/* Everything that a user of the runtime calls, as one table: the in-process binding and a loaded library look the same. */
typedef struct tw_runtime {
  int32_t abi_version;
  int32_t bytes; /* of this table */
  const tw_model *model; /* the saved model; NULL in-process */
  tw_instance *(*open)(const tw_model *model, int32_t threads);
  int32_t (*close)(tw_instance *self);
  void (*destroy)(tw_instance *self);
  int32_t (*run)(tw_instance *self, const void *const *in, const int64_t *const *in_shapes, void *const *out,
                 tw_result *results);
  const char *(*error)(void);
  int32_t (*error_code)(void);
  int32_t (*set_threads)(tw_instance *self, int32_t threads);
  int32_t (*get_threads)(tw_instance *self);
  void (*set_flags)(tw_instance *self, int32_t flags);
  void (*set_tap)(tw_instance *self, tw_tap_fn tap, void *user);
  int32_t (*set_host_call)(tw_instance *self, int32_t slot, tw_host_fn call, void *user);
  void (*profile)(tw_instance *self, uint64_t *pairs, int32_t reset);
  int64_t (*memory)(tw_instance *self);
  void (*release)(void *memory);
  uint64_t (*cpu_features)(void);
  const char *(*cpu_feature_name)(int32_t bit);
} tw_runtime;

const tw_runtime *tilewright_runtime(void);

/* A handle for `model`, which must outlive it. threads = 0: as the model, TILEWRIGHT_THREADS or the machine says.
 * NULL on failure: tw_error and tw_error_code say why. Calls none of the model's code. */
tw_instance *tw_open(const tw_model *model, int32_t threads);
/* Waits for running calls, gives the contexts' memory back; later runs fail with TW_ERROR_CLOSED. */
int32_t tw_close(tw_instance *self);
/* tw_close, and frees the handle. */
void tw_destroy(tw_instance *self);
/* One run. `in_shapes` may be NULL if all inputs have fixed shapes; `results` (one per output) if all outputs have. */
int32_t tw_run(tw_instance *self, const void *const *in, const int64_t *const *in_shapes, void *const *out,
               tw_result *results);
/* This thread's last failure: never NULL. */
const char *tw_error(void);
int32_t tw_error_code(void);
int32_t tw_set_threads(tw_instance *self, int32_t threads);

#endif
