/* The device table for WebGPU, on the wgpu-native library. In: requests of models. Out: memory, copies, kernels on the adapter
 * that the library prefers. The library is opened at run time: nothing here is linked against it.
 *
 * Declarations are those of the WebGPU project's C interface (webgpu.h) and of wgpu-native's own additions (wgpu.h: polling,
 * and shaders without guards around loops), no more than are used. The device is asked for without limits of its own, so the
 * library holds every model to the default limits of the WebGPU specification.
 *
 * Memory is cut into pieces of the largest range that a launch may bind. A kernel's text begins with "// kernel NAME
 * ARGUMENTS" (loop/lower/word_memory.py says what the letters mean); binding 0 is the arena, 1 to 7 are pieces of the weights,
 * and 8 a uniform with a number per argument. Launches are collected in one pass, their uniforms in one buffer, and submitted
 * when somebody waits or the buffer is full. One lock keeps all of this together.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

typedef struct gpu_object *gpu_object; /* instances, adapters, devices, queues, buffers, encoders, pipelines, … */

typedef struct gpu_text {
  const char *data;
  size_t length;
} gpu_text;

typedef struct gpu_chain {
  struct gpu_chain *next;
  uint32_t type;
} gpu_chain;

typedef struct gpu_callback { /* of requests; `mode` says when it may be called */
  gpu_chain *next;
  uint32_t mode;
  void *call;
  void *user[2];
} gpu_callback;

typedef struct gpu_failure_callback {
  gpu_chain *next;
  void *call;
  void *user[2];
} gpu_failure_callback;

typedef struct gpu_future {
  uint64_t id;
} gpu_future;

typedef struct gpu_instance_extras { /* of wgpu-native; zero is the default of everything behind the backends */
  gpu_chain chain;
  uint64_t backends;
  uint64_t rest[32];
} gpu_instance_extras;

typedef struct gpu_adapter_options {
  gpu_chain *next;
  uint32_t feature_level, power, fallback, backend;
  gpu_object surface;
} gpu_adapter_options;

typedef struct gpu_device_options {
  gpu_chain *next;
  gpu_text label;
  size_t feature_count;
  const uint32_t *features;
  const void *limits;
  gpu_chain *queue_next;
  gpu_text queue_label;
  gpu_callback lost;
  gpu_failure_callback failed;
} gpu_device_options;

typedef struct gpu_buffer_options {
  gpu_chain *next;
  gpu_text label;
  uint64_t usage, size;
  uint32_t mapped;
} gpu_buffer_options;

typedef struct gpu_source {
  gpu_chain chain;
  gpu_text code;
} gpu_source;

typedef struct gpu_plain { /* what shader modules, encoders, passes and command buffers are described by */
  gpu_chain *next;
  gpu_text label;
  const void *more;
} gpu_plain;

typedef struct gpu_layout_entry {
  gpu_chain *next;
  uint32_t binding;
  uint64_t visibility;
  uint32_t array_size;
  struct {
    gpu_chain *next;
    uint32_t type, dynamic;
    uint64_t least;
  } buffer;
  struct {
    gpu_chain *next;
    uint32_t type;
  } sampler;
  struct {
    gpu_chain *next;
    uint32_t type, dimension, multisampled;
  } texture;
  struct {
    gpu_chain *next;
    uint32_t access, format, dimension;
  } storage_texture;
} gpu_layout_entry;

typedef struct gpu_layout_options {
  gpu_chain *next;
  gpu_text label;
  size_t count;
  const void *entries; /* of a bind group; of a pipeline its bind groups' layouts */
  uint32_t immediate;
} gpu_layout_options;

typedef struct gpu_pipeline_options {
  gpu_chain *next;
  gpu_text label;
  gpu_object layout;
  gpu_chain *compute_next;
  gpu_object module;
  gpu_text entry;
  size_t constant_count;
  const void *constants;
} gpu_pipeline_options;

typedef struct gpu_group_entry {
  gpu_chain *next;
  uint32_t binding;
  gpu_object buffer;
  uint64_t offset, size;
  gpu_object sampler, view;
} gpu_group_entry;

typedef struct gpu_group_options {
  gpu_chain *next;
  gpu_text label;
  gpu_object layout;
  size_t count;
  const gpu_group_entry *entries;
} gpu_group_options;

enum {
  GPU_SUCCESS = 1,
  GPU_SPONTANEOUS = 3,    /* WGPUCallbackMode_AllowSpontaneous */
  GPU_EXTRAS = 0x00030006, /* WGPUSType_InstanceExtras */
  GPU_PRIMARY = 1 | 4 | 8 | 32, /* WGPUInstanceBackend_Primary: Vulkan, Metal, D3D12; OpenGL has no compute everywhere */
  GPU_WGSL = 2,           /* WGPUSType_ShaderSourceWGSL */
  GPU_OUT_OF_MEMORY = 3,  /* WGPUErrorType_OutOfMemory */
  GPU_HIGH_PERFORMANCE = 2,
  GPU_UNIFORM = 2, GPU_STORAGE = 3, GPU_READ_ONLY = 4, /* WGPUBufferBindingType */
  GPU_COMPUTE = 4,        /* WGPUShaderStage_Compute */
  GPU_CHECK_BOUNDS = 1,   /* WGPUShaderRuntimeChecks_BoundsChecks */
  USE_MAP_READ = 1, USE_COPY_FROM = 4, USE_COPY_TO = 8, USE_UNIFORM = 64, USE_STORAGE = 128
};

static struct {
  gpu_object (*wgpuCreateInstance)(const void *);
  gpu_future (*wgpuInstanceRequestAdapter)(gpu_object, const gpu_adapter_options *, gpu_callback);
  gpu_future (*wgpuAdapterRequestDevice)(gpu_object, const gpu_device_options *, gpu_callback);
  gpu_object (*wgpuDeviceGetQueue)(gpu_object);
  gpu_object (*wgpuDeviceCreateBuffer)(gpu_object, const gpu_buffer_options *);
  void (*wgpuBufferRelease)(gpu_object);
  gpu_future (*wgpuBufferMapAsync)(gpu_object, uint64_t, size_t, size_t, gpu_callback);
  const void *(*wgpuBufferGetConstMappedRange)(gpu_object, size_t, size_t);
  void (*wgpuBufferUnmap)(gpu_object);
  void (*wgpuQueueWriteBuffer)(gpu_object, gpu_object, uint64_t, const void *, size_t);
  void (*wgpuQueueSubmit)(gpu_object, size_t, const gpu_object *);
  gpu_object (*wgpuDeviceCreateShaderModuleTrusted)(gpu_object, const gpu_plain *, uint64_t);
  void (*wgpuShaderModuleRelease)(gpu_object);
  gpu_object (*wgpuDeviceCreateBindGroupLayout)(gpu_object, const gpu_layout_options *);
  void (*wgpuBindGroupLayoutRelease)(gpu_object);
  gpu_object (*wgpuDeviceCreatePipelineLayout)(gpu_object, const gpu_layout_options *);
  void (*wgpuPipelineLayoutRelease)(gpu_object);
  gpu_object (*wgpuDeviceCreateComputePipeline)(gpu_object, const gpu_pipeline_options *);
  void (*wgpuComputePipelineRelease)(gpu_object);
  gpu_object (*wgpuDeviceCreateBindGroup)(gpu_object, const gpu_group_options *);
  void (*wgpuBindGroupRelease)(gpu_object);
  gpu_object (*wgpuDeviceCreateCommandEncoder)(gpu_object, const gpu_plain *);
  gpu_object (*wgpuCommandEncoderBeginComputePass)(gpu_object, const gpu_plain *);
  void (*wgpuCommandEncoderCopyBufferToBuffer)(gpu_object, gpu_object, uint64_t, gpu_object, uint64_t, uint64_t);
  gpu_object (*wgpuCommandEncoderFinish)(gpu_object, const gpu_plain *);
  void (*wgpuCommandEncoderRelease)(gpu_object);
  void (*wgpuCommandBufferRelease)(gpu_object);
  void (*wgpuComputePassEncoderSetPipeline)(gpu_object, gpu_object);
  void (*wgpuComputePassEncoderSetBindGroup)(gpu_object, uint32_t, gpu_object, size_t, const uint32_t *);
  void (*wgpuComputePassEncoderDispatchWorkgroups)(gpu_object, uint32_t, uint32_t, uint32_t);
  void (*wgpuComputePassEncoderEnd)(gpu_object);
  void (*wgpuComputePassEncoderRelease)(gpu_object);
  uint32_t (*wgpuDevicePoll)(gpu_object, uint32_t, const void *);
} gpu;

static const struct {
  const char *name;
  void *place;
} symbols[] = {
#define SYMBOL(f) {#f, &gpu.f}
    SYMBOL(wgpuCreateInstance), SYMBOL(wgpuInstanceRequestAdapter), SYMBOL(wgpuAdapterRequestDevice),
    SYMBOL(wgpuDeviceGetQueue), SYMBOL(wgpuDeviceCreateBuffer), SYMBOL(wgpuBufferRelease), SYMBOL(wgpuBufferMapAsync),
    SYMBOL(wgpuBufferGetConstMappedRange), SYMBOL(wgpuBufferUnmap), SYMBOL(wgpuQueueWriteBuffer), SYMBOL(wgpuQueueSubmit),
    SYMBOL(wgpuDeviceCreateShaderModuleTrusted), SYMBOL(wgpuShaderModuleRelease), SYMBOL(wgpuDeviceCreateBindGroupLayout),
    SYMBOL(wgpuBindGroupLayoutRelease), SYMBOL(wgpuDeviceCreatePipelineLayout), SYMBOL(wgpuPipelineLayoutRelease),
    SYMBOL(wgpuDeviceCreateComputePipeline), SYMBOL(wgpuComputePipelineRelease), SYMBOL(wgpuDeviceCreateBindGroup),
    SYMBOL(wgpuBindGroupRelease), SYMBOL(wgpuDeviceCreateCommandEncoder), SYMBOL(wgpuCommandEncoderBeginComputePass),
    SYMBOL(wgpuCommandEncoderCopyBufferToBuffer), SYMBOL(wgpuCommandEncoderFinish), SYMBOL(wgpuCommandEncoderRelease),
    SYMBOL(wgpuCommandBufferRelease), SYMBOL(wgpuComputePassEncoderSetPipeline), SYMBOL(wgpuComputePassEncoderSetBindGroup),
    SYMBOL(wgpuComputePassEncoderDispatchWorkgroups), SYMBOL(wgpuComputePassEncoderEnd),
    SYMBOL(wgpuComputePassEncoderRelease), SYMBOL(wgpuDevicePoll)
#undef SYMBOL
};

#define PIECE ((int64_t)128 << 20) /* the largest range that can be bound, and Target.max_binding of presets.py */
#define BINDINGS 8
#define NUMBERS 8                             /* the uniform's binding */
#define NUMBER_BYTES (4 * TW_MAX_ARGUMENTS)   /* a launch's part of the uniforms: a multiple of 256, as offsets must be */
#define LAUNCHES 256                          /* collected before they are submitted */

/* What `alloc` gives: pieces, all but the last of PIECE bytes. */
typedef struct gpu_memory {
  int64_t count;
  gpu_object pieces[];
} gpu_memory;

/* A module: its kernels, in the order of the text. */
typedef struct gpu_module {
  int32_t count;
  struct gpu_kernel {
    char name[128], arguments[TW_MAX_ARGUMENTS + 1];
    gpu_object layout, pipeline;
  } kernels[];
} gpu_module;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static gpu_object instance, adapter, device, queue;
static gpu_object encoder, pass; /* what is being collected, or NULL */
static gpu_object uniforms, staging, between; /* the launches' numbers; what the host reads; copies within one buffer */
static int64_t staging_bytes, between_bytes;
static int32_t numbers[LAUNCHES][TW_MAX_ARGUMENTS];
static int32_t launches;
static char not_open[TW_MESSAGE_BYTES]; /* why there is no device; "" if there is one */
static char failure[TW_MESSAGE_BYTES];  /* what the library complained about since somebody asked */
static int32_t failure_code;
static __thread char last_error[TW_MESSAGE_BYTES];

/* ---- what the library says ---- */

static void on_adapter(uint32_t status, gpu_object found, gpu_text message, void *a, void *b) {
  (void)a, (void)b;
  if (status == GPU_SUCCESS) adapter = found;
  else snprintf(not_open, sizeof not_open, "no WebGPU adapter: %.*s", (int)message.length, message.data);
}

static void on_device(uint32_t status, gpu_object found, gpu_text message, void *a, void *b) {
  (void)a, (void)b;
  if (status == GPU_SUCCESS) device = found;
  else snprintf(not_open, sizeof not_open, "the WebGPU adapter does not open: %.*s", (int)message.length, message.data);
}

static void on_failure(const gpu_object *from, uint32_t type, gpu_text message, void *a, void *b) {
  (void)from, (void)a, (void)b;
  if (failure_code != TW_OK) return; /* the first one is the cause */
  failure_code = type == GPU_OUT_OF_MEMORY ? TW_ERROR_MEMORY : TW_ERROR_DEVICE;
  snprintf(failure, sizeof failure, "%.*s", (int)message.length, message.data);
}

static void on_lost(const gpu_object *from, uint32_t reason, gpu_text message, void *a, void *b) {
  (void)reason;
  on_failure(from, 0, message, a, b);
}

static void on_mapped(uint32_t status, gpu_text message, void *a, void *b) {
  (void)b;
  *(int32_t *)a = status == GPU_SUCCESS ? TW_OK : TW_ERROR_DEVICE;
  if (status != GPU_SUCCESS) on_failure(NULL, 0, message, NULL, NULL);
}

/* The status of what was done under the lock. */
static int32_t outcome(const char *what) {
  int32_t code = failure_code;
  if (code != TW_OK) snprintf(last_error, sizeof last_error, "webgpu: %s: %.400s", what, failure);
  failure_code = TW_OK;
  return code;
}

static int32_t refuse(const char *what, const char *why) {
  snprintf(last_error, sizeof last_error, "webgpu: %s: %s", what, why);
  return TW_ERROR_DEVICE;
}

/* ---- opening ---- */

static void *open_library(void) {
  const char *wanted = getenv("TILEWRIGHT_WEBGPU_LIBRARY");
  void *library = dlopen(wanted != NULL && *wanted != '\0' ? wanted : "libwgpu_native.so", RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) snprintf(not_open, sizeof not_open, "no WebGPU: %s", dlerror());
  for (size_t i = 0; library != NULL && i < sizeof symbols / sizeof *symbols; ++i) {
    void *symbol = dlsym(library, symbols[i].name);
    if (symbol == NULL) {
      snprintf(not_open, sizeof not_open, "the WebGPU library has no %s: it is too old", symbols[i].name);
      return NULL;
    }
    memcpy(symbols[i].place, &symbol, sizeof symbol);
  }
  return library;
}

static gpu_object new_buffer(int64_t bytes, uint64_t usage) {
  gpu_buffer_options options = {.usage = usage, .size = (uint64_t)(bytes + 3) & ~(uint64_t)3};
  return gpu.wgpuDeviceCreateBuffer(device, &options);
}

static void open_driver(void) {
  if (open_library() == NULL) return;
  gpu_adapter_options preferred = {.power = GPU_HIGH_PERFORMANCE};
  gpu_device_options options = {.lost = {.mode = GPU_SPONTANEOUS, .call = (void *)on_lost}, .failed = {.call = (void *)on_failure}};
  gpu_instance_extras extras = {.chain = {.type = GPU_EXTRAS}, .backends = GPU_PRIMARY};
  struct {
    gpu_chain *next;
    size_t feature_count;
    const void *features, *limits;
  } instance_options = {.next = &extras.chain};
  instance = gpu.wgpuCreateInstance(&instance_options);
  if (instance != NULL)
    gpu.wgpuInstanceRequestAdapter(instance, &preferred,
                                   (gpu_callback){.mode = GPU_SPONTANEOUS, .call = (void *)on_adapter});
  if (adapter != NULL)
    gpu.wgpuAdapterRequestDevice(adapter, &options, (gpu_callback){.mode = GPU_SPONTANEOUS, .call = (void *)on_device});
  if (device == NULL) {
    if (not_open[0] == '\0') snprintf(not_open, sizeof not_open, "no WebGPU adapter: the library knows of no driver");
    return;
  }
  queue = gpu.wgpuDeviceGetQueue(device);
  uniforms = new_buffer(sizeof numbers, USE_UNIFORM | USE_COPY_TO);
  if (outcome("open") != TW_OK || uniforms == NULL) snprintf(not_open, sizeof not_open, "%s", last_error);
}

static int32_t webgpu_open(tw_device *self) {
  (void)self;
  pthread_once(&once, open_driver);
  if (not_open[0] == '\0') return TW_OK;
  snprintf(last_error, sizeof last_error, "%s", not_open);
  return TW_ERROR_DRIVER;
}

/* ---- collecting and submitting (under the lock) ---- */

static void begin(void) {
  if (encoder == NULL) encoder = gpu.wgpuDeviceCreateCommandEncoder(device, NULL);
}

static void end_pass(void) {
  if (pass == NULL) return;
  gpu.wgpuComputePassEncoderEnd(pass);
  gpu.wgpuComputePassEncoderRelease(pass);
  pass = NULL;
}

static void submit(void) {
  if (encoder == NULL) return;
  end_pass();
  if (launches > 0) gpu.wgpuQueueWriteBuffer(queue, uniforms, 0, numbers, (size_t)launches * NUMBER_BYTES);
  gpu_object commands = gpu.wgpuCommandEncoderFinish(encoder, NULL);
  gpu.wgpuQueueSubmit(queue, 1, &commands);
  gpu.wgpuCommandBufferRelease(commands);
  gpu.wgpuCommandEncoderRelease(encoder);
  encoder = NULL;
  launches = 0;
}

/* A buffer of at least so many bytes in the place of a smaller one. */
static gpu_object at_least(gpu_object *kept, int64_t *have, int64_t bytes, uint64_t usage) {
  if (*have < bytes) {
    submit();
    if (*kept != NULL) gpu.wgpuBufferRelease(*kept);
    *kept = new_buffer(bytes, usage);
    *have = bytes;
  }
  return *kept;
}

/* ---- memory ---- */

static void release(gpu_memory *memory) {
  for (int64_t i = 0; i < memory->count; ++i)
    if (memory->pieces[i] != NULL) gpu.wgpuBufferRelease(memory->pieces[i]);
  free(memory);
}

static int32_t webgpu_alloc(tw_device *self, int64_t bytes, void **out) {
  (void)self;
  int64_t count = bytes > 0 ? (bytes + PIECE - 1) / PIECE : 1;
  gpu_memory *memory = calloc(1, sizeof *memory + (size_t)count * sizeof *memory->pieces);
  if (memory == NULL) return refuse("alloc", "out of memory"), TW_ERROR_MEMORY;
  memory->count = count;
  pthread_mutex_lock(&lock);
  for (int64_t i = 0; i < count; ++i) {
    int64_t left = bytes - i * PIECE;
    memory->pieces[i] = new_buffer(left > PIECE ? PIECE : left > 16 ? left : 16, USE_STORAGE | USE_COPY_FROM | USE_COPY_TO);
  }
  int32_t status = outcome("alloc");
  if (status != TW_OK) release(memory);
  pthread_mutex_unlock(&lock);
  *out = status == TW_OK ? memory : NULL;
  return status;
}

static int32_t webgpu_free(tw_device *self, void *memory, int64_t bytes) {
  (void)self, (void)bytes;
  if (memory == NULL) return TW_OK;
  pthread_mutex_lock(&lock);
  submit();
  release(memory);
  int32_t status = outcome("free");
  pthread_mutex_unlock(&lock);
  return status;
}

/* Copies on the device are of whole words: bytes beside them are read first, or go through the host. */
static int is_whole(int64_t bytes) { return bytes % 4 == 0; }
static int64_t words(int64_t bytes) { return (bytes + 3) & ~(int64_t)3; }

static void read_piece(gpu_object piece, int64_t at, uint8_t *to, int64_t bytes) {
  int32_t mapped = TW_ERROR_DEVICE;
  int64_t before = at % 4, size = words(before + bytes);
  at_least(&staging, &staging_bytes, size, USE_MAP_READ | USE_COPY_TO);
  begin();
  end_pass();
  gpu.wgpuCommandEncoderCopyBufferToBuffer(encoder, piece, (uint64_t)(at - before), staging, 0, (uint64_t)size);
  submit();
  if (failure_code != TW_OK) return;
  gpu.wgpuBufferMapAsync(staging, USE_MAP_READ, 0, (size_t)size,
                         (gpu_callback){.mode = GPU_SPONTANEOUS, .call = (void *)on_mapped, .user = {&mapped}});
  gpu.wgpuDevicePoll(device, 1, NULL);
  if (mapped != TW_OK) return;
  const uint8_t *found = gpu.wgpuBufferGetConstMappedRange(staging, 0, (size_t)size);
  if (found != NULL) memcpy(to, found + before, (size_t)bytes);
  gpu.wgpuBufferUnmap(staging);
}

/* A part of one word. */
static void patch(gpu_object piece, int64_t at, const uint8_t *from, int64_t bytes) {
  uint8_t word[4] = {0};
  if (bytes == 0) return;
  read_piece(piece, at - at % 4, word, 4);
  memcpy(word + at % 4, from, (size_t)bytes);
  gpu.wgpuQueueWriteBuffer(queue, piece, (uint64_t)(at - at % 4), word, sizeof word);
}

static void write_piece(gpu_object piece, int64_t at, const uint8_t *from, int64_t bytes) {
  int64_t head = words(at) - at < bytes ? words(at) - at : bytes, whole = (bytes - head) & ~(int64_t)3;
  patch(piece, at, from, head);
  if (whole > 0) gpu.wgpuQueueWriteBuffer(queue, piece, (uint64_t)(at + head), from + head, (size_t)whole);
  patch(piece, at + head + whole, from + head + whole, bytes - head - whole);
}

/* Within one buffer there is no copy: through another. */
static void copy_piece(gpu_object to, int64_t to_at, gpu_object from, int64_t from_at, int64_t bytes) {
  if (!is_whole(to_at) || !is_whole(from_at) || !is_whole(bytes)) {
    uint8_t *held = malloc((size_t)bytes);
    if (held == NULL) {
      on_failure(NULL, GPU_OUT_OF_MEMORY, (gpu_text){"no memory on the host", 21}, NULL, NULL);
      return;
    }
    read_piece(from, from_at, held, bytes);
    write_piece(to, to_at, held, bytes);
    free(held);
    return;
  }
  if (to == from) at_least(&between, &between_bytes, bytes, USE_COPY_FROM | USE_COPY_TO);
  begin();
  end_pass();
  if (to == from) {
    gpu.wgpuCommandEncoderCopyBufferToBuffer(encoder, from, (uint64_t)from_at, between, 0, (uint64_t)bytes);
    gpu.wgpuCommandEncoderCopyBufferToBuffer(encoder, between, 0, to, (uint64_t)to_at, (uint64_t)bytes);
  } else {
    gpu.wgpuCommandEncoderCopyBufferToBuffer(encoder, from, (uint64_t)from_at, to, (uint64_t)to_at, (uint64_t)bytes);
  }
}

static int32_t webgpu_copy(tw_device *self, int32_t direction, void *to, int64_t to_offset, const void *from,
                           int64_t from_offset, int64_t bytes) {
  (void)self;
  gpu_memory *target = to;
  const gpu_memory *source = from;
  pthread_mutex_lock(&lock);
  if (direction == TW_COPY_TO_DEVICE) submit(); /* writes come before what is submitted after them */
  for (int64_t done = 0; done < bytes && failure_code == TW_OK;) {
    int64_t n = bytes - done, to_at = to_offset + done, from_at = from_offset + done;
    if (direction != TW_COPY_TO_HOST && n > PIECE - to_at % PIECE) n = PIECE - to_at % PIECE;
    if (direction != TW_COPY_TO_DEVICE && n > PIECE - from_at % PIECE) n = PIECE - from_at % PIECE;
    switch (direction) {
      case TW_COPY_TO_DEVICE:
        write_piece(target->pieces[to_at / PIECE], to_at % PIECE, (const uint8_t *)from + from_at, n);
        break;
      case TW_COPY_TO_HOST:
        read_piece(source->pieces[from_at / PIECE], from_at % PIECE, (uint8_t *)to + to_at, n);
        break;
      default:
        copy_piece(target->pieces[to_at / PIECE], to_at % PIECE, source->pieces[from_at / PIECE], from_at % PIECE, n);
    }
    done += n;
  }
  int32_t status = outcome("copy");
  pthread_mutex_unlock(&lock);
  return status;
}

/* ---- kernels ---- */

static gpu_object layout_of(const char *arguments) {
  gpu_layout_entry entries[BINDINGS + 1] = {{0}};
  size_t count = 0, pieces = 0, shared = 0;
  for (const char *a = arguments; *a != '\0'; ++a) {
    if (*a >= '1' && *a <= '9') pieces += (size_t)(*a - '0');
    shared |= *a == 's';
  }
  entries[count++] = (gpu_layout_entry){.binding = 0, .visibility = GPU_COMPUTE, .buffer = {.type = GPU_STORAGE}};
  for (size_t i = 0; i < pieces + shared && count < BINDINGS; ++i, ++count)
    entries[count] = (gpu_layout_entry){.binding = (uint32_t)count, .visibility = GPU_COMPUTE, .buffer = {.type = GPU_READ_ONLY}};
  entries[count++] = (gpu_layout_entry){.binding = NUMBERS, .visibility = GPU_COMPUTE, .buffer = {.type = GPU_UNIFORM}};
  gpu_layout_options options = {.count = count, .entries = entries};
  return gpu.wgpuDeviceCreateBindGroupLayout(device, &options);
}

static void build(struct gpu_kernel *kernel, gpu_text code) {
  gpu_source source = {.chain = {.type = GPU_WGSL}, .code = code};
  gpu_plain options = {.next = &source.chain, .label = {kernel->name, strlen(kernel->name)}};
  gpu_object shader = gpu.wgpuDeviceCreateShaderModuleTrusted(device, &options, GPU_CHECK_BOUNDS);
  if (failure_code != TW_OK) return;
  kernel->layout = layout_of(kernel->arguments);
  gpu_layout_options groups = {.count = 1, .entries = &kernel->layout};
  gpu_object layout = gpu.wgpuDeviceCreatePipelineLayout(device, &groups);
  gpu_pipeline_options pipeline = {.layout = layout, .module = shader, .entry = {kernel->name, strlen(kernel->name)}};
  if (failure_code == TW_OK) kernel->pipeline = gpu.wgpuDeviceCreateComputePipeline(device, &pipeline);
  gpu.wgpuPipelineLayoutRelease(layout);
  gpu.wgpuShaderModuleRelease(shader);
}

static void unload(gpu_module *module) {
  for (int32_t i = 0; i < module->count; ++i) {
    if (module->kernels[i].pipeline != NULL) gpu.wgpuComputePipelineRelease(module->kernels[i].pipeline);
    if (module->kernels[i].layout != NULL) gpu.wgpuBindGroupLayoutRelease(module->kernels[i].layout);
  }
  free(module);
}

static const char *next_kernel(const char *text, const char *end) {
  return memmem(text, (size_t)(end - text), "// kernel ", 10);
}

static int32_t webgpu_load(tw_device *self, const void *image, int64_t bytes, void **out) {
  (void)self;
  const char *end = (const char *)image + bytes, *first = next_kernel(image, end);
  int32_t count = 0;
  for (const char *at = first; at != NULL; at = next_kernel(at + 1, end)) ++count;
  gpu_module *module = calloc(1, sizeof *module + (size_t)count * sizeof *module->kernels);
  if (module == NULL) return refuse("load", "out of memory"), TW_ERROR_MEMORY;
  pthread_mutex_lock(&lock);
  for (const char *at = first, *next; at != NULL && failure_code == TW_OK; at = next) {
    struct gpu_kernel *kernel = &module->kernels[module->count++];
    char line[sizeof kernel->name + sizeof kernel->arguments + 16] = "";
    next = next_kernel(at + 1, end);
    size_t length = (size_t)((next != NULL ? next : end) - at), head = length < sizeof line ? length : sizeof line - 1;
    memcpy(line, at, head);
    sscanf(line, "// kernel %127s %128[a-z0-9]", kernel->name, kernel->arguments);
    build(kernel, (gpu_text){at, length});
  }
  int32_t status = outcome("the driver rejects a kernel");
  if (status != TW_OK) unload(module);
  pthread_mutex_unlock(&lock);
  *out = status == TW_OK ? module : NULL;
  return status;
}

static int32_t webgpu_unload(tw_device *self, void *module) {
  (void)self;
  if (module == NULL) return TW_OK;
  pthread_mutex_lock(&lock);
  submit();
  unload(module);
  pthread_mutex_unlock(&lock);
  return TW_OK;
}

/* Binds what the arguments are in, and notes where they begin there. NULL, or what is wrong. */
static const char *bind(const struct gpu_kernel *kernel, const tw_argument *arguments, int32_t n, int32_t *row,
                        gpu_group_entry *entries, size_t *count) {
  int64_t shared = -1; /* the piece of the shared window */
  *count = 1;
  if ((int32_t)strlen(kernel->arguments) != n) return "the number of arguments is not the kernel's";
  for (int32_t i = 0; i < n; ++i) {
    const gpu_memory *memory = arguments[i].memory;
    char kind = kernel->arguments[i];
    int64_t at = arguments[i].number, piece = at / PIECE;
    row[i] = (int32_t)at;
    if (kind == 'n') continue;
    if (memory == NULL || at % 4 != 0) return "an argument that is no memory of whole words";
    row[i] = (int32_t)(at % PIECE / 4);
    if (kind == 'a') {
      if (piece > 0) return "an activation beyond what can be bound";
      if (entries[0].buffer != NULL && entries[0].buffer != memory->pieces[0]) return "a weight in the place of an activation";
      entries[0] = (gpu_group_entry){.binding = 0, .buffer = memory->pieces[0], .size = UINT64_MAX};
      continue;
    }
    if (kind == 's' && shared >= 0 && shared != piece) return "weights that lie too far apart to be bound at once";
    if (kind == 's') {
      shared = piece;
      continue;
    }
    for (int k = 0; k < kind - '0'; ++k) {
      if (piece + k >= memory->count) return "a weight beyond its memory";
      entries[*count] = (gpu_group_entry){.binding = (uint32_t)*count, .buffer = memory->pieces[piece + k], .size = UINT64_MAX};
      ++*count;
    }
  }
  for (int32_t i = 0; i < n && shared >= 0; ++i)
    if (kernel->arguments[i] == 's') {
      const gpu_memory *memory = arguments[i].memory;
      entries[*count] = (gpu_group_entry){.binding = (uint32_t)*count, .buffer = memory->pieces[shared], .size = UINT64_MAX};
      ++*count;
      break;
    }
  return NULL;
}

static int32_t webgpu_launch(tw_device *self, tw_ctx *ctx, void *module, const char *name, const int64_t grid[3],
                             const int64_t block[3], int64_t shared_bytes, void **args, int32_t n) {
  (void)self, (void)ctx, (void)block, (void)shared_bytes;
  gpu_module *all = module;
  struct gpu_kernel *kernel = NULL;
  for (int32_t i = 0; i < all->count && kernel == NULL; ++i)
    if (strcmp(all->kernels[i].name, name) == 0) kernel = &all->kernels[i];
  if (kernel == NULL) return refuse(name, "the module has no such kernel");
  if (grid[0] <= 0 || grid[1] <= 0 || grid[2] <= 0) return TW_OK;
  gpu_group_entry entries[BINDINGS + 1] = {{0}};
  size_t count;
  pthread_mutex_lock(&lock);
  if (launches == LAUNCHES) submit();
  const char *wrong = bind(kernel, (const tw_argument *)args, n, numbers[launches], entries, &count);
  if (wrong == NULL) {
    entries[count++] = (gpu_group_entry){.binding = NUMBERS, .buffer = uniforms, .size = NUMBER_BYTES,
                                         .offset = (uint64_t)launches * NUMBER_BYTES};
    gpu_group_options options = {.layout = kernel->layout, .count = count, .entries = entries};
    gpu_object group = gpu.wgpuDeviceCreateBindGroup(device, &options);
    if (failure_code == TW_OK) {
      begin();
      if (pass == NULL) pass = gpu.wgpuCommandEncoderBeginComputePass(encoder, NULL);
      gpu.wgpuComputePassEncoderSetPipeline(pass, kernel->pipeline);
      gpu.wgpuComputePassEncoderSetBindGroup(pass, 0, group, 0, NULL);
      gpu.wgpuComputePassEncoderDispatchWorkgroups(pass, (uint32_t)grid[0], (uint32_t)grid[1], (uint32_t)grid[2]);
      ++launches;
    }
    if (group != NULL) gpu.wgpuBindGroupRelease(group);
  }
  int32_t status = wrong == NULL ? outcome(name) : refuse(name, wrong);
  pthread_mutex_unlock(&lock);
  return status;
}

static int32_t webgpu_sync(tw_device *self) {
  (void)self;
  pthread_mutex_lock(&lock);
  submit();
  gpu.wgpuDevicePoll(device, 1, NULL);
  int32_t status = outcome("sync");
  pthread_mutex_unlock(&lock);
  return status;
}

static const char *webgpu_error(tw_device *self) {
  (void)self;
  return last_error;
}

tw_device tw_webgpu = {.name = "webgpu", .open = webgpu_open, .alloc = webgpu_alloc, .free = webgpu_free,
                       .copy = webgpu_copy, .load = webgpu_load, .unload = webgpu_unload, .launch = webgpu_launch,
                       .sync = webgpu_sync, .error = webgpu_error};
