/* The host ABI: what generated code sees of the runtime, and what the runtime must be told about a model.
 *
 * In: nothing. Out: the context that every call of a model runs in, the functions that generated code may call, the
 * model descriptor, the device table. The same header serves in-process models and saved libraries. The offsets checked
 * at the end are compiled into models: a change of any of them is a new TW_ABI_VERSION.
 */
#ifndef TILEWRIGHT_ABI_H
#define TILEWRIGHT_ABI_H

#include <stddef.h>
#include <stdint.h>

#include "tilewright.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TW_ABI_VERSION 3
#define TW_MESSAGE_BYTES 512
#define TW_ALIGNMENT 64

/* tw_ctx.flags */
enum {
  TW_PROFILE = 1, /* measure each kernel */
  TW_TAP = 2,     /* report intermediate values */
  TW_POISON = 4   /* fill the arena with 0xFF (NaN in every float type) before each run */
};

typedef struct tw_ctx tw_ctx;
typedef struct tw_pool tw_pool;
typedef struct tw_model tw_model;
typedef struct tw_device tw_device;
typedef struct tw_device_model tw_device_model;

/* The entry of a model. in[0..n) are the inputs' elements and in[n..2n) their shapes (int64_t[rank] each); out[0..m) are
 * the outputs' elements. An output of symbolic shape has out[i] = NULL: the model asks tw_output for its memory. */
typedef int32_t (*tw_entry)(tw_ctx *ctx, void *const *in, void *const *out);

/* The body of a parallel region: tasks begin <= t < end. */
typedef int32_t (*tw_body)(tw_ctx *ctx, void *closure, int64_t begin, int64_t end);

typedef int32_t (*tw_host_fn)(void *user, void **args, int32_t n);
typedef void (*tw_tap_fn)(void *user, int32_t value, const void *data, int64_t bytes);

typedef struct tw_host_slot {
  tw_host_fn call;
  void *user;
} tw_host_slot;

/* One run of a model, from entry to return. Re-entrant: every concurrent call has its own. */
struct tw_ctx {
  uint8_t *arena;          /*  0: planned temporaries, undefined at entry */
  const uint8_t *consts;   /*  8: the weights */
  int32_t flags;           /* 16: TW_PROFILE | TW_TAP | TW_POISON */
  int32_t threads;         /* 20: participants of a parallel region, at least 1 */
  uint64_t *profile;       /* 24: per kernel two numbers: nanoseconds, calls */
  void **grown;            /* 32: growable allocations, by slot */
  int64_t *grown_bytes;    /* 40: their capacities */
  int32_t grown_count;     /* 48 */
  int32_t code;            /* 52: error record: the first failure's code … */
  tw_host_slot *host_calls; /* 56 */
  tw_device **devices;     /* 64: devices[0] is the CPU */
  tw_pool *pool;           /* 72 */
  tw_tap_fn tap;           /* 80 */
  void *tap_user;          /* 88 */
  const tw_model *model;   /* 96 */
  uint64_t *profile_start; /* 104: per kernel, when the running call began */
  tw_result *results;      /* 112: outputs of symbolic shape, by output */
  int32_t host_count;      /* 120 */
  int32_t device_count;    /* 124 */
  char message[TW_MESSAGE_BYTES]; /* 128: … and its text */
  tw_device_model *on_device; /* 640: NULL for a model that runs on the CPU */
  void *device_arena;         /* 648: the device's memory behind `arena` */
  void *graph;                /* 656: what a run launches, captured on the device; NULL: not yet */
  int32_t launched;           /* 664: whether a run has launched it all without a graph */
  int32_t capturing;          /* 668: whether launches are being captured */
};

/* What the runtime knows of a model: filled by Python in-process, emitted as constants into a saved library. */
struct tw_model {
  int32_t abi_version; /* TW_ABI_VERSION */
  int32_t input_count;
  int32_t output_count;
  int32_t kernel_count;
  const char *name;
  const tw_tensor_info *inputs;
  const tw_tensor_info *outputs;
  const char *const *kernels; /* names, for the profile */
  int64_t arena_bytes;
  const uint8_t *consts; /* aligned to TW_ALIGNMENT at least */
  int64_t consts_bytes;
  uint64_t cpu_features; /* bits of tw_cpu_features that the code needs */
  tw_entry entry;
  const char *metadata; /* JSON */
  int32_t grown_count;  /* slots of tw_grow */
  int32_t host_count;   /* slots of tw_host_call */
  int32_t threads;      /* participants by default; 0: all that the process may use */
  int32_t symbol_count;
  const tw_symbol *symbols; /* sizes that the inputs' shapes choose */
  const char *device;   /* name of the device that runs the kernels; NULL: the CPU */
  const uint8_t *image; /* its module: source text or code */
  int64_t image_bytes;
};

/* A device: what GPU drivers and the CPU have in common. Functions return a status; `error` gives the last one's text. */
enum { TW_COPY_TO_DEVICE = 0, TW_COPY_TO_HOST = 1, TW_COPY_ON_DEVICE = 2 };

/* An argument of a kernel: a place in memory that `alloc` gave, or (memory NULL) a number. */
typedef struct tw_argument {
  void *memory;
  int64_t number; /* the offset in bytes, or the number */
} tw_argument;

/* Opening is quick the second time. Launches and copies on a device run in the order of the calls, copies to the host and
 * `sync` wait. For all but the CPU, `args` of `launch` are n tw_arguments. */

struct tw_device {
  const char *name;
  void *state;
  int32_t (*open)(tw_device *self);
  int32_t (*alloc)(tw_device *self, int64_t bytes, void **memory);
  int32_t (*free)(tw_device *self, void *memory, int64_t bytes);
  int32_t (*copy)(tw_device *self, int32_t direction, void *to, int64_t to_offset, const void *from, int64_t from_offset,
                  int64_t bytes);
  int32_t (*load)(tw_device *self, const void *image, int64_t bytes, void **module);
  int32_t (*unload)(tw_device *self, void *module);
  int32_t (*launch)(tw_device *self, tw_ctx *ctx, void *module, const char *kernel, const int64_t grid[3],
                    const int64_t block[3], int64_t shared_bytes, void **args, int32_t n);
  int32_t (*sync)(tw_device *self);
  const char *(*error)(tw_device *self);
  /* NULL where the driver has no such thing. From `capture` on, this thread's launches and copies on the device are noted
   * and not done; `captured` ends that and gives them as a graph, or drops them (graph NULL); `replay` does them all. */
  int32_t (*capture)(tw_device *self);
  int32_t (*captured)(tw_device *self, void **graph);
  int32_t (*replay)(tw_device *self, void *graph);
  int32_t (*forget)(tw_device *self, void *graph);
};

/* ---- functions that generated code may call ----------------------------------------------------------------------- */

/* Runs body over 0 <= t < tasks on ctx->threads participants, the caller among them; returns the first failure's status.
 * Ranges given to body do not overlap and are contiguous; after a failure the tasks not yet begun are skipped. */
int32_t tw_parallel(tw_ctx *ctx, tw_body body, void *closure, int64_t tasks);

/* The same for a region inside a loop, of which this is the turn: in odd turns participants take their tasks from the
 * back, so that they begin with what their caches hold since the turn before. */
int32_t tw_parallel_turn(tw_ctx *ctx, tw_body body, void *closure, int64_t tasks, int64_t turn);

/* Index of the running participant, 0 <= w < ctx->threads: selects private scratch within a region; 0 outside. */
int32_t tw_worker(tw_ctx *ctx);

/* Fills the error record unless an earlier failure did; returns code, so that a caller can return it at once. */
int32_t tw_fail(tw_ctx *ctx, int32_t code, const char *message);

/* The same with a, b, c in the places of the first three {} of the message. */
int32_t tw_fail_values(tw_ctx *ctx, int32_t code, const char *message, int64_t a, int64_t b, int64_t c);

/* Memory of at least `bytes` for the slot, aligned to 64, undefined contents (growing loses the old ones). It stays with
 * the context between runs. NULL (and a filled error record) when there is none. Not within a parallel region. */
void *tw_grow(tw_ctx *ctx, int32_t slot, int64_t bytes);

/* As tw_grow, and the first `used` bytes keep their contents. */
void *tw_grow_kept(tw_ctx *ctx, int32_t slot, int64_t bytes, int64_t used);

/* Memory for an output of symbolic shape, once per run. NULL (and a filled error record) when there is none. */
void *tw_output(tw_ctx *ctx, int32_t output, int32_t rank, const int64_t *shape, int64_t bytes);

int32_t tw_host_call(tw_ctx *ctx, int32_t slot, void **args, int32_t n);

/* Launches a kernel of the model's device: grid[0..3) blocks of grid[3..6) threads; addresses are the host program's. */
int32_t tw_launch(tw_ctx *ctx, const char *kernel, const int64_t *grid, void *const *buffers, int32_t buffer_count,
                  const int64_t *numbers, int32_t number_count);

/* Copies between the host and the device, and on the device. A failure is in the error record: launches stop then. */
void tw_upload(tw_ctx *ctx, void *to, const void *from, int64_t bytes);
void tw_download(tw_ctx *ctx, void *to, const void *from, int64_t bytes);
void tw_move(tw_ctx *ctx, void *to, const void *from, int64_t bytes);

/* Around a sequence of launches and copies on the device that is the same in every run: tw_replay returns 0 if the host
 * program must do them, and then call tw_captured behind the last. */
int64_t tw_replay(tw_ctx *ctx);
void tw_captured(tw_ctx *ctx);

/* Around each kernel's launch, on the thread that runs the entry. Nothing happens unless flags has TW_PROFILE. */
void tw_profile_begin(tw_ctx *ctx, int32_t kernel);
void tw_profile_end(tw_ctx *ctx, int32_t kernel);

/* Reports a value of the graph (the number is the compiler's). Nothing happens unless flags has TW_TAP. */
void tw_tap(tw_ctx *ctx, int32_t value, const void *data, int64_t bytes);

#ifdef __cplusplus
}
#define TW_CHECK_OFFSET(field, at) static_assert(offsetof(tw_ctx, field) == at, "the ABI fixes this offset")
#else
#define TW_CHECK_OFFSET(field, at) _Static_assert(offsetof(tw_ctx, field) == at, "the ABI fixes this offset")
#endif
#if UINTPTR_MAX == UINT64_MAX
TW_CHECK_OFFSET(arena, 0);
TW_CHECK_OFFSET(consts, 8);
TW_CHECK_OFFSET(flags, 16);
TW_CHECK_OFFSET(threads, 20);
TW_CHECK_OFFSET(profile, 24);
TW_CHECK_OFFSET(grown, 32);
TW_CHECK_OFFSET(grown_bytes, 40);
TW_CHECK_OFFSET(grown_count, 48);
TW_CHECK_OFFSET(code, 52);
TW_CHECK_OFFSET(host_calls, 56);
TW_CHECK_OFFSET(devices, 64);
TW_CHECK_OFFSET(pool, 72);
TW_CHECK_OFFSET(tap, 80);
TW_CHECK_OFFSET(message, 128);
#endif

#endif
