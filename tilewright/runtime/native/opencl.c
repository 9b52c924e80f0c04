/* The device table for OpenCL. In: requests of models. Out: memory, copies, kernels on the first GPU, or else on whatever
 * device a driver offers. The driver is opened at run time: nothing here is linked against it.
 *
 * Declarations are those of the OpenCL 1.2 specification (chapters 4 and 5), no more than are used. One queue, in order,
 * serves all models; a lock keeps a kernel's arguments and its launch together.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

typedef struct cl_object *cl_object; /* platforms, devices, contexts, queues, memory, programs and kernels */
typedef int32_t cl_int;
typedef uint32_t cl_uint;
typedef uint64_t cl_bits;

enum {
  CL_SUCCESS = 0,
  CL_MEM_READ_WRITE = 1,
  CL_TRUE = 1,
  CL_DEVICE_TYPE_GPU = 1 << 2,
  CL_PROGRAM_BUILD_LOG = 0x1183
};
#define CL_DEVICE_TYPE_ALL 0xFFFFFFFFu

static struct {
  cl_int (*clGetPlatformIDs)(cl_uint, cl_object *, cl_uint *);
  cl_int (*clGetDeviceIDs)(cl_object, cl_bits, cl_uint, cl_object *, cl_uint *);
  cl_int (*clGetDeviceInfo)(cl_object, cl_uint, size_t, void *, size_t *);
  cl_object (*clCreateContext)(const intptr_t *, cl_uint, const cl_object *, void *, void *, cl_int *);
  cl_object (*clCreateCommandQueue)(cl_object, cl_object, cl_bits, cl_int *);
  cl_object (*clCreateBuffer)(cl_object, cl_bits, size_t, void *, cl_int *);
  cl_int (*clReleaseMemObject)(cl_object);
  cl_int (*clEnqueueReadBuffer)(cl_object, cl_object, cl_uint, size_t, size_t, void *, cl_uint, const void *, void *);
  cl_int (*clEnqueueWriteBuffer)(cl_object, cl_object, cl_uint, size_t, size_t, const void *, cl_uint, const void *, void *);
  cl_int (*clEnqueueCopyBuffer)(cl_object, cl_object, cl_object, size_t, size_t, size_t, cl_uint, const void *, void *);
  cl_object (*clCreateProgramWithSource)(cl_object, cl_uint, const char **, const size_t *, cl_int *);
  cl_int (*clBuildProgram)(cl_object, cl_uint, const cl_object *, const char *, void *, void *);
  cl_int (*clGetProgramBuildInfo)(cl_object, cl_object, cl_uint, size_t, void *, size_t *);
  cl_int (*clReleaseProgram)(cl_object);
  cl_object (*clCreateKernel)(cl_object, const char *, cl_int *);
  cl_int (*clReleaseKernel)(cl_object);
  cl_int (*clSetKernelArg)(cl_object, cl_uint, size_t, const void *);
  cl_int (*clEnqueueNDRangeKernel)(cl_object, cl_object, cl_uint, const size_t *, const size_t *, const size_t *, cl_uint,
                                   const void *, void *);
  cl_int (*clFinish)(cl_object);
} cl;

static const struct {
  const char *name;
  void *place;
} symbols[] = {
#define SYMBOL(f) {#f, &cl.f}
    SYMBOL(clGetPlatformIDs), SYMBOL(clGetDeviceIDs), SYMBOL(clGetDeviceInfo), SYMBOL(clCreateContext),
    SYMBOL(clCreateCommandQueue), SYMBOL(clCreateBuffer), SYMBOL(clReleaseMemObject), SYMBOL(clEnqueueReadBuffer),
    SYMBOL(clEnqueueWriteBuffer), SYMBOL(clEnqueueCopyBuffer), SYMBOL(clCreateProgramWithSource), SYMBOL(clBuildProgram),
    SYMBOL(clGetProgramBuildInfo), SYMBOL(clReleaseProgram), SYMBOL(clCreateKernel), SYMBOL(clReleaseKernel),
    SYMBOL(clSetKernelArg), SYMBOL(clEnqueueNDRangeKernel), SYMBOL(clFinish)
#undef SYMBOL
};

/* A built program and its kernels, made when first launched. */
typedef struct cl_module {
  cl_object program;
  struct kernel {
    struct kernel *next;
    cl_object kernel;
    char name[];
  } *kernels;
} cl_module;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static cl_object device, context, queue;
static char not_open[TW_MESSAGE_BYTES]; /* why there is no device; "" if there is one */
static __thread char last_error[TW_MESSAGE_BYTES];

static int32_t refuse(const char *what, cl_int code) {
  const char *why = code == -4 || code == -5 || code == -6 || code == -61 ? " (out of memory)" : "";
  snprintf(last_error, sizeof last_error, "opencl: %s: error %d%s", what, (int)code, why);
  return *why ? TW_ERROR_MEMORY : TW_ERROR_DEVICE;
}

static cl_object find_device(void) {
  cl_object platforms[16], found = NULL;
  cl_uint count = 0;
  if (cl.clGetPlatformIDs(16, platforms, &count) != CL_SUCCESS) return NULL;
  if (count > 16) count = 16;
  for (cl_uint i = 0; i < count; ++i)
    if (cl.clGetDeviceIDs(platforms[i], CL_DEVICE_TYPE_GPU, 1, &found, NULL) == CL_SUCCESS) return found;
  for (cl_uint i = 0; i < count; ++i)
    if (cl.clGetDeviceIDs(platforms[i], CL_DEVICE_TYPE_ALL, 1, &found, NULL) == CL_SUCCESS) return found;
  return NULL;
}

static void open_driver(void) {
  cl_int status = 0;
  void *library = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    snprintf(not_open, sizeof not_open, "no OpenCL: %s", dlerror());
    return;
  }
  for (size_t i = 0; i < sizeof symbols / sizeof *symbols; ++i) {
    void *symbol = dlsym(library, symbols[i].name);
    if (symbol == NULL) {
      snprintf(not_open, sizeof not_open, "libOpenCL.so.1 has no %s", symbols[i].name);
      return;
    }
    memcpy(symbols[i].place, &symbol, sizeof symbol);
  }
  device = find_device();
  if (device == NULL) {
    snprintf(not_open, sizeof not_open, "no OpenCL device: libOpenCL.so.1 knows of no driver");
    return;
  }
  context = cl.clCreateContext(NULL, 1, &device, NULL, NULL, &status);
  if (status == CL_SUCCESS) queue = cl.clCreateCommandQueue(context, device, 0, &status);
  if (status != CL_SUCCESS) snprintf(not_open, sizeof not_open, "the OpenCL device does not open: error %d", (int)status);
}

static int32_t opencl_open(tw_device *self) {
  (void)self;
  pthread_once(&once, open_driver);
  if (not_open[0] == '\0') return TW_OK;
  snprintf(last_error, sizeof last_error, "%s", not_open);
  return TW_ERROR_DRIVER;
}

static int32_t opencl_alloc(tw_device *self, int64_t bytes, void **memory) {
  (void)self;
  cl_int status;
  *memory = cl.clCreateBuffer(context, CL_MEM_READ_WRITE, bytes > 0 ? (size_t)bytes : 1, NULL, &status);
  return status == CL_SUCCESS ? TW_OK : refuse("alloc", status);
}

static int32_t opencl_free(tw_device *self, void *memory, int64_t bytes) {
  (void)self, (void)bytes;
  if (memory != NULL) cl.clReleaseMemObject(memory);
  return TW_OK;
}

static int32_t opencl_copy(tw_device *self, int32_t direction, void *to, int64_t to_offset, const void *from,
                           int64_t from_offset, int64_t bytes) {
  (void)self;
  cl_int status;
  if (bytes <= 0) return TW_OK;
  switch (direction) {
    case TW_COPY_TO_DEVICE:
      status = cl.clEnqueueWriteBuffer(queue, to, CL_TRUE, (size_t)to_offset, (size_t)bytes,
                                       (const uint8_t *)from + from_offset, 0, NULL, NULL);
      break;
    case TW_COPY_TO_HOST:
      status = cl.clEnqueueReadBuffer(queue, (cl_object)(uintptr_t)from, CL_TRUE, (size_t)from_offset, (size_t)bytes,
                                      (uint8_t *)to + to_offset, 0, NULL, NULL);
      break;
    default:
      status = cl.clEnqueueCopyBuffer(queue, (cl_object)(uintptr_t)from, to, (size_t)from_offset, (size_t)to_offset,
                                      (size_t)bytes, 0, NULL, NULL);
  }
  return status == CL_SUCCESS ? TW_OK : refuse("copy", status);
}

/* The driver's options for building kernels, from TILEWRIGHT_OPENCL_OPTIONS. */
static const char *build_options(void) {
  const char *wanted = getenv("TILEWRIGHT_OPENCL_OPTIONS");
  return wanted != NULL ? wanted : "";
}

static int32_t opencl_load(tw_device *self, const void *image, int64_t bytes, void **module) {
  (void)self;
  cl_int status;
  const char *text = image;
  size_t length = (size_t)bytes;
  cl_module *m = calloc(1, sizeof *m);
  if (m == NULL) return refuse("load", -6);
  m->program = cl.clCreateProgramWithSource(context, 1, &text, &length, &status);
  if (status == CL_SUCCESS) {
    status = cl.clBuildProgram(m->program, 1, &device, build_options(), NULL, NULL);
    if (status == CL_SUCCESS) {
      *module = m;
      return TW_OK;
    }
    char log[8192] = "";
    cl.clGetProgramBuildInfo(m->program, device, CL_PROGRAM_BUILD_LOG, sizeof log - 1, log, NULL);
    cl.clReleaseProgram(m->program);
    const char *first = strstr(log, "error");
    snprintf(last_error, sizeof last_error, "opencl: the driver rejects a kernel: %.*s", 400, first != NULL ? first : log);
    free(m);
    return TW_ERROR_DEVICE;
  }
  free(m);
  return refuse("load", status);
}

static int32_t opencl_unload(tw_device *self, void *module) {
  (void)self;
  cl_module *m = module;
  if (m == NULL) return TW_OK;
  while (m->kernels != NULL) {
    struct kernel *next = m->kernels->next;
    cl.clReleaseKernel(m->kernels->kernel);
    free(m->kernels);
    m->kernels = next;
  }
  cl.clReleaseProgram(m->program);
  free(m);
  return TW_OK;
}

static cl_object find_kernel(cl_module *m, const char *name, cl_int *status) {
  *status = CL_SUCCESS;
  for (struct kernel *k = m->kernels; k != NULL; k = k->next)
    if (strcmp(k->name, name) == 0) return k->kernel;
  struct kernel *k = malloc(sizeof *k + strlen(name) + 1);
  if (k == NULL) {
    *status = -6;
    return NULL;
  }
  k->kernel = cl.clCreateKernel(m->program, name, status);
  if (*status != CL_SUCCESS) {
    free(k);
    return NULL;
  }
  strcpy(k->name, name);
  k->next = m->kernels;
  m->kernels = k;
  return k->kernel;
}

static int32_t opencl_launch(tw_device *self, tw_ctx *ctx, void *module, const char *name, const int64_t grid[3],
                             const int64_t block[3], int64_t shared_bytes, void **args, int32_t n) {
  (void)self, (void)ctx, (void)shared_bytes;
  const tw_argument *arguments = (const tw_argument *)args;
  cl_int status;
  cl_uint at = 0;
  size_t local[3], global[3];
  for (int i = 0; i < 3; ++i) {
    if (grid[i] <= 0) return TW_OK;
    local[i] = (size_t)block[i];
    global[i] = (size_t)(grid[i] * block[i]);
  }
  pthread_mutex_lock(&lock);
  cl_object kernel = find_kernel(module, name, &status);
  for (int32_t i = 0; i < n && status == CL_SUCCESS; ++i) {
    if (arguments[i].memory != NULL) status = cl.clSetKernelArg(kernel, at++, sizeof(cl_object), &arguments[i].memory);
    if (status == CL_SUCCESS) status = cl.clSetKernelArg(kernel, at++, sizeof(int64_t), &arguments[i].number);
  }
  if (status == CL_SUCCESS)
    status = cl.clEnqueueNDRangeKernel(queue, kernel, 3, NULL, global, local, 0, NULL, NULL);
  pthread_mutex_unlock(&lock);
  return status == CL_SUCCESS ? TW_OK : refuse(name, status);
}

static int32_t opencl_sync(tw_device *self) {
  (void)self;
  cl_int status = cl.clFinish(queue);
  return status == CL_SUCCESS ? TW_OK : refuse("sync", status);
}

static const char *opencl_error(tw_device *self) {
  (void)self;
  return last_error;
}

tw_device tw_opencl = {.name = "opencl", .open = opencl_open, .alloc = opencl_alloc, .free = opencl_free,
                       .copy = opencl_copy, .load = opencl_load, .unload = opencl_unload, .launch = opencl_launch,
                       .sync = opencl_sync, .error = opencl_error};
