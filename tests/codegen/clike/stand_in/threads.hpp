// The threads of a device on a CPU: blocks one after another, the threads of a block as fibers that change at barriers.
//
// In: a kernel's threads as calls of a function. Out: the same effects as on a device, or a failure where threads part ways:
// one waits at a barrier that another does not reach. The order of the threads turns with every block and every barrier, so
// that a barrier that is missing shows. Storage that a block shares is `static`: there is one block at a time.
#pragma once
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <ucontext.h>
#include <vector>

namespace stand_in {

struct index3 {
  unsigned x, y, z;
};

inline index3 block, thread, block_size, grid_size;  // of the fiber that runs

struct fiber {
  ucontext_t start;
  jmp_buf at;
  std::unique_ptr<char[]> stack;
  bool begun = false, done = false;
};

inline std::vector<std::unique_ptr<fiber>> fibers;
inline fiber *running;
inline jmp_buf scheduler;
inline const std::function<void()> *body;

// The life of a fiber: a thread of one block after another.
inline void live() {
  for (;;) {
    (*body)();
    running->done = true;
    if (_setjmp(running->at) == 0) _longjmp(scheduler, 1);
  }
}

// Called by kernels.
inline void barrier() {
  if (_setjmp(running->at) == 0) _longjmp(scheduler, 1);
}

inline void resume(fiber &f) {
  if (_setjmp(scheduler) != 0) return;
  running = &f;
  if (f.begun) _longjmp(f.at, 1);
  f.begun = true;
  constexpr std::size_t bytes = 256 << 10;
  f.stack = std::make_unique<char[]>(bytes);
  getcontext(&f.start);
  f.start.uc_stack.ss_sp = f.stack.get();
  f.start.uc_stack.ss_size = bytes;
  makecontext(&f.start, live, 0);
  setcontext(&f.start);
}

// All blocks of a launch; 0, or 6 (a device's failure) where the threads of a block part ways.
inline int launch(const std::int64_t *grid, const std::function<void()> &kernel) {
  const unsigned nx = grid[3], ny = grid[4], n = nx * ny * (unsigned)grid[5];
  body = &kernel;
  while (fibers.size() < n) fibers.push_back(std::make_unique<fiber>());
  grid_size = {(unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2]};
  block_size = {nx, ny, (unsigned)grid[5]};
  unsigned turn = 0;
  for (block.z = 0; block.z < grid[2]; ++block.z)
    for (block.y = 0; block.y < grid[1]; ++block.y)
      for (block.x = 0; block.x < grid[0]; ++block.x) {
        for (unsigned i = 0; i < n; ++i) fibers[i]->done = false;
        for (unsigned done = 0; done < n; ++turn) {
          done = 0;
          for (unsigned k = 0; k < n; ++k) {
            const unsigned i = turn % 2 ? n - 1 - k : k;
            thread = {i % nx, i / nx % ny, i / nx / ny};
            resume(*fibers[i]);
            done += fibers[i]->done;
          }
          if (done != 0 && done != n) {
            std::fprintf(stderr, "%u of %u threads of a block wait at a barrier for the others, which have ended\n", n - done, n);
            return 6;
          }
        }
      }
  return 0;
}

}  // namespace stand_in
