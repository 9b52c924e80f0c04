// The device's side of a model whose kernels were compiled for the CPU: what a host program calls in place of a driver.
//
// In: kernels by name (STAND_IN_KERNEL for each, behind the source). Out: stand_in_launch, which a driver's stand-in calls,
// and tw_launch, tw_upload, … for a host program without a driver: device memory is the host's own, at the same addresses.
#pragma once
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "threads.hpp"

namespace stand_in {

using invoke = std::function<void(const std::uint64_t *values)>;
inline std::map<std::string, invoke> kernels;

// The next argument of a kernel: a buffer, a number or (Metal, behind these) the block's and then the thread's place.
template <class T> T argument(const std::uint64_t *&values, int &places) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(*values++);
  } else if constexpr (std::is_base_of_v<index3, T>) {
    return T{places++ == 0 ? block : thread};
  } else {
    return static_cast<T>(*values++);
  }
}

template <class... A> bool enter(const char *name, void (*kernel)(A...)) {
  kernels[name] = [kernel](const std::uint64_t *values) {
    int places = 0;
    std::tuple<std::decay_t<A>...> all{argument<std::decay_t<A>>(values, places)...};
    std::apply(kernel, all);
  };
  return true;
}

}  // namespace stand_in

#define STAND_IN_KERNEL(name) static const bool entered_##name = stand_in::enter(#name, name);

extern "C" {
// grid[0..3) blocks of grid[3..6) threads; -1 for a name that is not there.
int stand_in_launch(const char *kernel, const std::int64_t *grid, const std::uint64_t *values) {
  const auto found = stand_in::kernels.find(kernel);
  if (found == stand_in::kernels.end()) return -1;
  return values == nullptr ? 0 : stand_in::launch(grid, [&] { found->second(values); });
}
int tw_launch(void *, const char *kernel, const std::int64_t *grid, void *const *buffers, int n, const std::int64_t *numbers,
              int m) {
  std::vector<std::uint64_t> values;
  for (int i = 0; i < n; ++i) values.push_back(reinterpret_cast<std::uint64_t>(buffers[i]));
  for (int i = 0; i < m; ++i) values.push_back((std::uint64_t)numbers[i]);
  values.push_back(0);
  return stand_in_launch(kernel, grid, values.data());
}
static void copy(void *to, const void *from, std::int64_t bytes) {
  if (bytes > 0) std::memmove(to, from, (std::size_t)bytes);
}
void tw_upload(void *, void *to, const void *from, std::int64_t bytes) { copy(to, from, bytes); }
void tw_download(void *, void *to, const void *from, std::int64_t bytes) { copy(to, from, bytes); }
void tw_move(void *, void *to, const void *from, std::int64_t bytes) { copy(to, from, bytes); }
std::int64_t tw_replay(void *) { return 0; }
void tw_captured(void *) {}
}
