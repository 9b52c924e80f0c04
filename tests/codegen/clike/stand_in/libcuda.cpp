// Stands in for NVIDIA's driver (libcuda.so.1), so that the runtime's CUDA device runs on a CPU: no more than it uses.
//
// A module's image is the path of a library made by driver.hpp. Calls that the driver API's manual forbids fail as they would
// there: without a current context, on memory or offsets that were not allocated, and waiting or loading during a capture.
// STAND_IN_FAIL=name=code makes one function fail; stand_in_calls counts the calls of each.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {
using step = std::function<int()>;
struct stream {
  std::unique_ptr<std::vector<step>> captured;
};
struct function {
  int (*launch)(const char *, const std::int64_t *, const std::uint64_t *);
  std::string name;
};
struct module {
  void *library;
  std::vector<std::unique_ptr<function>> functions;
};
constexpr int OK = 0, INVALID = 1, MEMORY = 2, NO_DEVICE = 100, NO_CONTEXT = 201, NO_BINARY = 209, NOT_FOUND = 500,
              LAUNCH_FAILED = 719, CAPTURING = 900;

std::recursive_mutex lock;
int the_context;
thread_local void *current;
thread_local int captures;  // of this thread
std::map<std::string, int> calls;
std::map<std::uint64_t, std::size_t> memory;

int enter(const char *name, bool needs_context = true) {
  const std::lock_guard hold(lock);
  ++calls[name];
  const char *fail = std::getenv("STAND_IN_FAIL");
  const std::size_t n = std::strlen(name);
  if (fail != nullptr && std::strncmp(fail, name, n) == 0 && fail[n] == '=') return std::atoi(fail + n + 1);
  return needs_context && current != &the_context ? NO_CONTEXT : OK;
}

bool is_allocated(std::uint64_t at, std::size_t bytes) {
  auto found = memory.upper_bound(at);
  if (found == memory.begin()) return false;
  --found;
  return at + bytes <= found->first + found->second;
}

// A stream's work: noted during a capture, done at once otherwise.
int enqueue(stream *on, step work) {
  const std::lock_guard hold(lock);
  if (on == nullptr) return INVALID;
  if (on->captured == nullptr) return work();
  on->captured->push_back(std::move(work));
  return OK;
}
}  // namespace

#define ENTER(...) \
  if (const int status = enter(__VA_ARGS__)) return status

extern "C" {
int stand_in_calls(const char *name) { return calls[name]; }

int cuInit(unsigned) { return enter("cuInit", false); }
int cuGetErrorName(int, const char **out) { return *out = "CUDA_ERROR_STAND_IN", OK; }
int cuGetErrorString(int, const char **out) { return *out = "as the stand-in was told", OK; }
int cuDeviceGet(int *device, int ordinal) {
  ENTER("cuDeviceGet", false);
  *device = 0;
  return ordinal == 0 ? OK : NO_DEVICE;
}
int cuDeviceGetCount(int *count) { return *count = 1, enter("cuDeviceGetCount", false); }
int cuDeviceGetAttribute(int *value, int which, int) {
  ENTER("cuDeviceGetAttribute", false);
  *value = which == 75 ? 8 : which == 16 ? 7 : 0;
  return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int) {
  ENTER("cuDevicePrimaryCtxRetain", false);
  *context = &the_context;
  return OK;
}
int cuCtxSetCurrent(void *context) {
  ENTER("cuCtxSetCurrent", false);
  current = context;
  return OK;
}
int cuMemAlloc_v2(std::uint64_t *at, std::size_t bytes) {
  ENTER("cuMemAlloc_v2");
  const std::lock_guard hold(lock);
  if (bytes == 0) return INVALID;
  *at = reinterpret_cast<std::uint64_t>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
  if (*at == 0) return MEMORY;
  std::memset(reinterpret_cast<void *>(*at), 0xff, bytes);
  memory[*at] = bytes;
  return OK;
}
int cuMemFree_v2(std::uint64_t at) {
  ENTER("cuMemFree_v2");
  const std::lock_guard hold(lock);
  if (memory.erase(at) != 1) return INVALID;
  std::free(reinterpret_cast<void *>(at));
  return OK;
}
int cuMemcpyHtoDAsync_v2(std::uint64_t to, const void *from, std::size_t bytes, stream *on) {
  ENTER("cuMemcpyHtoDAsync_v2");
  if (!is_allocated(to, bytes)) return INVALID;
  return enqueue(on, [=] { return std::memcpy(reinterpret_cast<void *>(to), from, bytes), OK; });
}
int cuMemcpyDtoHAsync_v2(void *to, std::uint64_t from, std::size_t bytes, stream *on) {
  ENTER("cuMemcpyDtoHAsync_v2");
  if (!is_allocated(from, bytes)) return INVALID;
  return enqueue(on, [=] { return std::memcpy(to, reinterpret_cast<void *>(from), bytes), OK; });
}
int cuMemcpyDtoDAsync_v2(std::uint64_t to, std::uint64_t from, std::size_t bytes, stream *on) {
  ENTER("cuMemcpyDtoDAsync_v2");
  if (!is_allocated(to, bytes) || !is_allocated(from, bytes)) return INVALID;
  return enqueue(on, [=] { return std::memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes), OK; });
}
int cuStreamCreate(stream **out, unsigned) {
  ENTER("cuStreamCreate");
  *out = new stream;
  return OK;
}
int cuStreamDestroy_v2(stream *s) {
  ENTER("cuStreamDestroy_v2");
  if (s->captured != nullptr) return CAPTURING;
  delete s;
  return OK;
}
int cuStreamSynchronize(stream *s) {
  ENTER("cuStreamSynchronize");
  return s->captured != nullptr ? CAPTURING : OK;
}
int cuStreamBeginCapture_v2(stream *s, int mode) {
  ENTER("cuStreamBeginCapture_v2");
  if (s->captured != nullptr || mode != 1) return INVALID;
  s->captured = std::make_unique<std::vector<step>>();
  ++captures;
  return OK;
}
int cuStreamEndCapture(stream *s, std::vector<step> **graph) {
  ENTER("cuStreamEndCapture");
  if (s->captured == nullptr) return INVALID;
  *graph = s->captured.release();
  --captures;
  return OK;
}
int cuGraphInstantiateWithFlags(std::vector<step> **ready, std::vector<step> *graph, unsigned long long) {
  ENTER("cuGraphInstantiateWithFlags");
  *ready = new std::vector<step>(*graph);
  return OK;
}
int cuGraphLaunch(std::vector<step> *ready, stream *on) {
  ENTER("cuGraphLaunch");
  return enqueue(on, [=] {
    for (step &s : *ready)
      if (const int status = s()) return status;
    return OK;
  });
}
int cuGraphDestroy(std::vector<step> *graph) {
  ENTER("cuGraphDestroy");
  delete graph;
  return OK;
}
int cuGraphExecDestroy(std::vector<step> *ready) {
  ENTER("cuGraphExecDestroy");
  delete ready;
  return OK;
}
int cuModuleLoadData(module **out, const void *image) {
  ENTER("cuModuleLoadData");
  if (captures != 0) return CAPTURING;
  void *library = dlopen(static_cast<const char *>(image), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return NO_BINARY;
  *out = new module{library, {}};
  return OK;
}
int cuModuleUnload(module *m) {
  ENTER("cuModuleUnload");
  delete m;  // the library stays: others may have loaded it, too
  return OK;
}
int cuModuleGetFunction(function **out, module *m, const char *name) {
  ENTER("cuModuleGetFunction");
  if (captures != 0) return CAPTURING;  // functions are loaded with their first use, which a capture may not do
  const auto launch = reinterpret_cast<decltype(function::launch)>(dlsym(m->library, "stand_in_launch"));
  if (launch == nullptr || launch(name, nullptr, nullptr) != 0) return NOT_FOUND;
  m->functions.push_back(std::make_unique<function>(function{launch, name}));
  *out = m->functions.back().get();
  return OK;
}
int cuLaunchKernel(function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   stream *on, void **places, void **extra) {
  ENTER("cuLaunchKernel");
  if (gx * gy * gz == 0 || bx * by * bz == 0 || bx * by * bz > 1024 || shared != 0 || extra != nullptr) return INVALID;
  // How many arguments there are only the kernel knows: what the places point to lies in one array of the caller.
  std::vector<std::uint64_t> values;
  for (std::uint64_t *at = static_cast<std::uint64_t *>(places[0]); values.size() < 128; ++at) {
    if (places[values.size()] != at) break;
    values.push_back(*at);
  }
  return enqueue(on, [=] {
    const std::int64_t grid[] = {gx, gy, gz, bx, by, bz};
    return f->launch(f->name.c_str(), grid, values.data()) == 0 ? OK : LAUNCH_FAILED;
  });
}
}
