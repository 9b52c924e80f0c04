/* The device table for CUDA. In: requests of models. Out: memory, copies, kernels and graphs of kernels on the first device
 * that the driver shows (CUDA_VISIBLE_DEVICES chooses). The driver is opened at run time: nothing here is linked against it.
 *
 * Declarations are those of the CUDA driver API's reference manual, no more than are used. All models work in the device's
 * primary context, so that they can share it with other libraries of the process, and on one stream of their own, in order.
 * A graph is captured on a stream made for that, while other threads use the common one.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct cu_object *cu_object; /* contexts, streams, modules, functions, graphs and graphs made ready */

enum {
  CUDA_SUCCESS = 0,
  CUDA_ERROR_OUT_OF_MEMORY = 2,
  CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
  CU_STREAM_NON_BLOCKING = 1,
  CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
};

static struct {
  CUresult (*cuInit)(unsigned);
  CUresult (*cuGetErrorName)(CUresult, const char **);
  CUresult (*cuGetErrorString)(CUresult, const char **);
  CUresult (*cuDeviceGet)(CUdevice *, int);
  CUresult (*cuDeviceGetAttribute)(int *, int, CUdevice);
  CUresult (*cuDevicePrimaryCtxRetain)(cu_object *, CUdevice);
  CUresult (*cuCtxSetCurrent)(cu_object);
  CUresult (*cuMemAlloc)(CUdeviceptr *, size_t);
  CUresult (*cuMemFree)(CUdeviceptr);
  CUresult (*cuMemcpyHtoDAsync)(CUdeviceptr, const void *, size_t, cu_object);
  CUresult (*cuMemcpyDtoHAsync)(void *, CUdeviceptr, size_t, cu_object);
  CUresult (*cuMemcpyDtoDAsync)(CUdeviceptr, CUdeviceptr, size_t, cu_object);
  CUresult (*cuStreamCreate)(cu_object *, unsigned);
  CUresult (*cuStreamDestroy)(cu_object);
  CUresult (*cuStreamSynchronize)(cu_object);
  CUresult (*cuStreamBeginCapture)(cu_object, int);
  CUresult (*cuStreamEndCapture)(cu_object, cu_object *);
  CUresult (*cuGraphInstantiateWithFlags)(cu_object *, cu_object, unsigned long long);
  CUresult (*cuGraphLaunch)(cu_object, cu_object);
  CUresult (*cuGraphDestroy)(cu_object);
  CUresult (*cuGraphExecDestroy)(cu_object);
  CUresult (*cuModuleLoadData)(cu_object *, const void *);
  CUresult (*cuModuleUnload)(cu_object);
  CUresult (*cuModuleGetFunction)(cu_object *, cu_object, const char *);
  CUresult (*cuLaunchKernel)(cu_object, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, cu_object,
                             void **, void **);
} cu;

/* Names as the library exports them: a second version of a function has a suffix. */
static const struct {
  const char *name;
  void *place;
} symbols[] = {
#define SYMBOL(f) {#f, &cu.f}
#define SYMBOL_2(f) {#f "_v2", &cu.f}
    SYMBOL(cuInit), SYMBOL(cuGetErrorName), SYMBOL(cuGetErrorString), SYMBOL(cuDeviceGet), SYMBOL(cuDeviceGetAttribute),
    SYMBOL(cuDevicePrimaryCtxRetain), SYMBOL(cuCtxSetCurrent), SYMBOL_2(cuMemAlloc), SYMBOL_2(cuMemFree),
    SYMBOL_2(cuMemcpyHtoDAsync), SYMBOL_2(cuMemcpyDtoHAsync), SYMBOL_2(cuMemcpyDtoDAsync), SYMBOL(cuStreamCreate),
    SYMBOL_2(cuStreamDestroy), SYMBOL(cuStreamSynchronize), SYMBOL_2(cuStreamBeginCapture), SYMBOL(cuStreamEndCapture),
    SYMBOL(cuGraphInstantiateWithFlags), SYMBOL(cuGraphLaunch), SYMBOL(cuGraphDestroy), SYMBOL(cuGraphExecDestroy),
    SYMBOL(cuModuleLoadData), SYMBOL(cuModuleUnload), SYMBOL(cuModuleGetFunction), SYMBOL(cuLaunchKernel)
#undef SYMBOL
#undef SYMBOL_2
};

/* A loaded module and its functions, found when first launched. */
typedef struct cuda_module {
  cu_object module;
  struct function {
    struct function *next;
    cu_object function;
    char name[];
  } *functions;
} cuda_module;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the modules' lists */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static cu_object context, stream;
static int capability[2];
static char not_open[TW_MESSAGE_BYTES]; /* why there is no device; "" if there is one */
static __thread char last_error[TW_MESSAGE_BYTES];
static __thread cu_object capture; /* the stream on which this thread captures a graph; NULL: it does not */

static void describe(char *text, size_t room, const char *what, CUresult code) {
  const char *name = NULL, *why = NULL;
  cu.cuGetErrorName(code, &name);
  cu.cuGetErrorString(code, &why);
  snprintf(text, room, "cuda: %s: %s (%s, error %d)", what, why != NULL ? why : "an unknown error",
           name != NULL ? name : "no name", code);
}

static int32_t refuse(const char *what, CUresult code) {
  describe(last_error, sizeof last_error, what, code);
  return code == CUDA_ERROR_OUT_OF_MEMORY ? TW_ERROR_MEMORY : TW_ERROR_DEVICE;
}

static void open_driver(void) {
  CUdevice device;
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    snprintf(not_open, sizeof not_open, "no CUDA driver: %s", dlerror());
    return;
  }
  for (size_t i = 0; i < sizeof symbols / sizeof *symbols; ++i) {
    void *symbol = dlsym(library, symbols[i].name);
    if (symbol == NULL) {
      snprintf(not_open, sizeof not_open, "the CUDA driver is too old: libcuda.so.1 has no %s", symbols[i].name);
      return;
    }
    memcpy(symbols[i].place, &symbol, sizeof symbol);
  }
  CUresult status = cu.cuInit(0);
  if (status == CUDA_SUCCESS) status = cu.cuDeviceGet(&device, 0);
  for (int i = 0; i < 2 && status == CUDA_SUCCESS; ++i)
    status = cu.cuDeviceGetAttribute(&capability[i], CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR + i, device);
  if (status == CUDA_SUCCESS) status = cu.cuDevicePrimaryCtxRetain(&context, device);
  if (status == CUDA_SUCCESS) status = cu.cuCtxSetCurrent(context);
  if (status == CUDA_SUCCESS) status = cu.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING);
  if (status != CUDA_SUCCESS) describe(not_open, sizeof not_open, "the device does not open", status);
}

static int32_t cuda_open(tw_device *self) {
  (void)self;
  pthread_once(&once, open_driver);
  if (not_open[0] == '\0') return TW_OK;
  snprintf(last_error, sizeof last_error, "%s", not_open);
  return TW_ERROR_DRIVER;
}

/* Every function may be called on any thread: the context is made current first. */
static CUresult enter(void) { return cu.cuCtxSetCurrent(context); }

static cu_object current_stream(void) { return capture != NULL ? capture : stream; }

static CUdeviceptr address_of(const void *memory, int64_t offset) {
  return (CUdeviceptr)(uintptr_t)memory + (CUdeviceptr)offset;
}

static int32_t cuda_alloc(tw_device *self, int64_t bytes, void **memory) {
  (void)self;
  CUdeviceptr at = 0;
  CUresult status = enter();
  if (status == CUDA_SUCCESS) status = cu.cuMemAlloc(&at, bytes > 0 ? (size_t)bytes : 1);
  *memory = (void *)(uintptr_t)at;
  return status == CUDA_SUCCESS ? TW_OK : refuse("alloc", status);
}

static int32_t cuda_free(tw_device *self, void *memory, int64_t bytes) {
  (void)self, (void)bytes;
  if (memory == NULL) return TW_OK;
  CUresult status = enter();
  if (status == CUDA_SUCCESS) status = cu.cuMemFree(address_of(memory, 0));
  return status == CUDA_SUCCESS ? TW_OK : refuse("free", status);
}

static int32_t cuda_copy(tw_device *self, int32_t direction, void *to, int64_t to_offset, const void *from,
                         int64_t from_offset, int64_t bytes) {
  (void)self;
  if (bytes <= 0) return TW_OK;
  CUresult status = enter();
  if (status != CUDA_SUCCESS) return refuse("copy", status);
  switch (direction) {
    case TW_COPY_TO_DEVICE:
      status = cu.cuMemcpyHtoDAsync(address_of(to, to_offset), (const uint8_t *)from + from_offset, (size_t)bytes,
                                    current_stream());
      break;
    case TW_COPY_TO_HOST:
      status = cu.cuMemcpyDtoHAsync((uint8_t *)to + to_offset, address_of(from, from_offset), (size_t)bytes,
                                    current_stream());
      if (status == CUDA_SUCCESS) status = cu.cuStreamSynchronize(current_stream());
      break;
    default:
      status = cu.cuMemcpyDtoDAsync(address_of(to, to_offset), address_of(from, from_offset), (size_t)bytes,
                                    current_stream());
  }
  return status == CUDA_SUCCESS ? TW_OK : refuse("copy", status);
}

static int32_t cuda_load(tw_device *self, const void *image, int64_t bytes, void **module) {
  (void)self, (void)bytes; /* a cubin knows its size */
  cuda_module *m = calloc(1, sizeof *m);
  CUresult status = m == NULL ? CUDA_ERROR_OUT_OF_MEMORY : enter();
  if (status == CUDA_SUCCESS) status = cu.cuModuleLoadData(&m->module, image);
  if (status == CUDA_SUCCESS) {
    *module = m;
    return TW_OK;
  }
  free(m);
  refuse("load", status);
  if (status == CUDA_ERROR_NO_BINARY_FOR_GPU)
    snprintf(last_error, sizeof last_error, "cuda: the kernels are for another generation of devices, this is sm_%d%d",
             capability[0], capability[1]);
  return status == CUDA_ERROR_OUT_OF_MEMORY ? TW_ERROR_MEMORY : TW_ERROR_DEVICE;
}

static int32_t cuda_unload(tw_device *self, void *module) {
  (void)self;
  cuda_module *m = module;
  if (m == NULL) return TW_OK;
  CUresult status = enter();
  if (status == CUDA_SUCCESS) status = cu.cuStreamSynchronize(stream);
  if (status == CUDA_SUCCESS) status = cu.cuModuleUnload(m->module);
  while (m->functions != NULL) {
    struct function *next = m->functions->next;
    free(m->functions);
    m->functions = next;
  }
  free(m);
  return status == CUDA_SUCCESS ? TW_OK : refuse("unload", status);
}

static CUresult find_function(cuda_module *m, const char *name, cu_object *out) {
  for (struct function *f = m->functions; f != NULL; f = f->next)
    if (strcmp(f->name, name) == 0) {
      *out = f->function;
      return CUDA_SUCCESS;
    }
  struct function *f = malloc(sizeof *f + strlen(name) + 1);
  CUresult status = f == NULL ? CUDA_ERROR_OUT_OF_MEMORY : cu.cuModuleGetFunction(&f->function, m->module, name);
  if (status != CUDA_SUCCESS) {
    free(f);
    return status;
  }
  strcpy(f->name, name);
  f->next = m->functions;
  m->functions = f;
  *out = f->function;
  return CUDA_SUCCESS;
}

static int32_t cuda_launch(tw_device *self, tw_ctx *ctx, void *module, const char *name, const int64_t grid[3],
                           const int64_t block[3], int64_t shared_bytes, void **args, int32_t n) {
  (void)self, (void)ctx;
  const tw_argument *arguments = (const tw_argument *)args;
  uint64_t values[TW_MAX_ARGUMENTS];
  void *places[TW_MAX_ARGUMENTS];
  cu_object function = NULL;
  for (int i = 0; i < 3; ++i)
    if (grid[i] <= 0) return TW_OK;
  for (int32_t i = 0; i < n; ++i) {
    values[i] = arguments[i].memory != NULL ? address_of(arguments[i].memory, arguments[i].number)
                                            : (uint64_t)arguments[i].number;
    places[i] = &values[i];
  }
  CUresult status = enter();
  if (status == CUDA_SUCCESS) {
    pthread_mutex_lock(&lock);
    status = find_function(module, name, &function);
    pthread_mutex_unlock(&lock);
  }
  if (status == CUDA_SUCCESS)
    status = cu.cuLaunchKernel(function, (unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2], (unsigned)block[0],
                               (unsigned)block[1], (unsigned)block[2], (unsigned)shared_bytes, current_stream(), places, NULL);
  return status == CUDA_SUCCESS ? TW_OK : refuse(name, status);
}

static int32_t cuda_sync(tw_device *self) {
  (void)self;
  CUresult status = enter();
  if (status == CUDA_SUCCESS) status = cu.cuStreamSynchronize(stream);
  return status == CUDA_SUCCESS ? TW_OK : refuse("sync", status);
}

static int32_t cuda_capture(tw_device *self) {
  (void)self;
  cu_object fresh = NULL;
  CUresult status = enter();
  if (status == CUDA_SUCCESS) status = cu.cuStreamCreate(&fresh, CU_STREAM_NON_BLOCKING);
  if (status == CUDA_SUCCESS) status = cu.cuStreamBeginCapture(fresh, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
  if (status == CUDA_SUCCESS) {
    capture = fresh;
    return TW_OK;
  }
  if (fresh != NULL) cu.cuStreamDestroy(fresh);
  return refuse("capture", status);
}

static int32_t cuda_captured(tw_device *self, void **graph) {
  (void)self;
  cu_object made = NULL, ready = NULL;
  CUresult status = enter();
  if (status == CUDA_SUCCESS) status = cu.cuStreamEndCapture(capture, &made);
  if (status == CUDA_SUCCESS && graph != NULL) {
    status = cu.cuGraphInstantiateWithFlags(&ready, made, 0);
    *graph = ready;
  }
  if (made != NULL) cu.cuGraphDestroy(made);
  cu.cuStreamDestroy(capture);
  capture = NULL;
  return status == CUDA_SUCCESS ? TW_OK : refuse("capture", status);
}

static int32_t cuda_replay(tw_device *self, void *graph) {
  (void)self;
  CUresult status = enter();
  if (status == CUDA_SUCCESS) status = cu.cuGraphLaunch(graph, stream);
  return status == CUDA_SUCCESS ? TW_OK : refuse("replay", status);
}

static int32_t cuda_forget(tw_device *self, void *graph) {
  (void)self;
  CUresult status = enter();
  if (status == CUDA_SUCCESS) status = cu.cuStreamSynchronize(stream);
  if (status == CUDA_SUCCESS) status = cu.cuGraphExecDestroy(graph);
  return status == CUDA_SUCCESS ? TW_OK : refuse("forget", status);
}

static const char *cuda_error(tw_device *self) {
  (void)self;
  return last_error;
}

tw_device tw_cuda = {.name = "cuda", .open = cuda_open, .alloc = cuda_alloc, .free = cuda_free, .copy = cuda_copy,
                     .load = cuda_load, .unload = cuda_unload, .launch = cuda_launch, .sync = cuda_sync,
                     .error = cuda_error, .capture = cuda_capture, .captured = cuda_captured, .replay = cuda_replay,
                     .forget = cuda_forget};
