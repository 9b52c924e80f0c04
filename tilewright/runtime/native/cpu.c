/* What this process may use of the machine: CPU features, affinity, control-group quota, TILEWRIGHT_THREADS. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

/* A CPU feature, as LLVM spells it, and where a processor of its kind tells of it. Names and bits are known on every
 * machine, so that a model can be made for another one. */
typedef struct feature {
  const char *name;
  enum { ON_X86, ON_ARM } kind;
  uint32_t leaf, subleaf; /* of cpuid; on ARM, the leaf is 0 for AT_HWCAP and 1 for AT_HWCAP2 */
  int reg, bit;           /* reg: 0 eax, 1 ebx, 2 ecx, 3 edx */
  uint64_t state;         /* registers that the system must save (XCR0) */
} feature;

enum { ANY = 0, YMM = 0x06, ZMM = 0xe6, TILE = 0x60000 };
#define X86(name, leaf, subleaf, reg, bit, state) {name, ON_X86, leaf, subleaf, reg, bit, state}
#define ARM(name, word, bit) {name, ON_ARM, word, 0, 0, bit, ANY}

/* The position is the bit of tw_model.cpu_features: append only. */
static const feature features[] = {
    X86("sse3", 1, 0, 2, 0, ANY), X86("ssse3", 1, 0, 2, 9, ANY), X86("sse4.1", 1, 0, 2, 19, ANY),
    X86("sse4.2", 1, 0, 2, 20, ANY), X86("popcnt", 1, 0, 2, 23, ANY), X86("cx16", 1, 0, 2, 13, ANY),
    X86("movbe", 1, 0, 2, 22, ANY), X86("lzcnt", 0x80000001, 0, 2, 5, ANY), X86("bmi", 7, 0, 1, 3, ANY),
    X86("bmi2", 7, 0, 1, 8, ANY), X86("avx", 1, 0, 2, 28, YMM), X86("f16c", 1, 0, 2, 29, YMM),
    X86("fma", 1, 0, 2, 12, YMM), X86("avx2", 7, 0, 1, 5, YMM), X86("avx512f", 7, 0, 1, 16, ZMM),
    X86("avx512dq", 7, 0, 1, 17, ZMM), X86("avx512cd", 7, 0, 1, 28, ZMM), X86("avx512bw", 7, 0, 1, 30, ZMM),
    X86("avx512vl", 7, 0, 1, 31, ZMM), X86("avx512vnni", 7, 0, 2, 11, ZMM), X86("avx512bf16", 7, 1, 0, 5, ZMM),
    X86("avx512fp16", 7, 0, 3, 23, ZMM), X86("avx512ifma", 7, 0, 1, 21, ZMM), X86("avx512vbmi", 7, 0, 2, 1, ZMM),
    X86("avx512vbmi2", 7, 0, 2, 6, ZMM), X86("avx512bitalg", 7, 0, 2, 12, ZMM),
    X86("avx512vpopcntdq", 7, 0, 2, 14, ZMM), X86("avxvnni", 7, 1, 0, 4, YMM), X86("amx-tile", 7, 0, 3, 24, TILE),
    X86("amx-int8", 7, 0, 3, 25, TILE), X86("amx-bf16", 7, 0, 3, 22, TILE), X86("amx-fp16", 7, 1, 0, 21, TILE),
    X86("aes", 1, 0, 2, 25, ANY), X86("pclmul", 1, 0, 2, 1, ANY), X86("sha", 7, 0, 1, 29, ANY),
    X86("gfni", 7, 0, 2, 8, ANY), X86("vaes", 7, 0, 2, 9, YMM), X86("vpclmulqdq", 7, 0, 2, 10, YMM),
    X86("adx", 7, 0, 1, 19, ANY), X86("avx512vp2intersect", 7, 0, 3, 8, ZMM), X86("avxvnniint8", 7, 1, 3, 4, YMM),
    X86("avxifma", 7, 1, 0, 23, YMM), X86("avxneconvert", 7, 1, 3, 5, YMM), X86("sse4a", 0x80000001, 0, 2, 6, ANY),
    ARM("neon", 0, 1), ARM("lse", 0, 8), ARM("fullfp16", 0, 10), ARM("dotprod", 0, 20), ARM("fp16fml", 0, 23),
    ARM("sve", 0, 22), ARM("sve2", 1, 1), ARM("i8mm", 1, 13), ARM("bf16", 1, 14),
};
#define FEATURES ((int32_t)(sizeof features / sizeof *features))
_Static_assert(sizeof features / sizeof *features <= 64, "one bit each");

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

static uint64_t saved_state(void) {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return 0; /* no OSXSAVE */
  __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return ((uint64_t)d << 32) | a;
}

static int is_there(const feature *f, uint64_t state) {
  uint32_t r[4] = {0, 0, 0, 0};
  if (f->kind != ON_X86 || !__get_cpuid_count(f->leaf, f->subleaf, &r[0], &r[1], &r[2], &r[3])) return 0;
  return (r[f->reg] >> f->bit & 1) && (state & f->state) == f->state;
}
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

static uint64_t saved_state(void) { return 0; }

static int is_there(const feature *f, uint64_t state) {
  (void)state;
  return f->kind == ON_ARM && (getauxval(f->leaf == 0 ? AT_HWCAP : AT_HWCAP2) >> f->bit & 1);
}
#else
static uint64_t saved_state(void) { return 0; }

static int is_there(const feature *f, uint64_t state) {
  (void)f;
  (void)state;
  return 0;
}
#endif

TW_EXPORT uint64_t tw_cpu_features(void) {
  uint64_t found = 0, state = saved_state();
  for (int32_t i = 0; i < FEATURES; ++i)
    if (is_there(&features[i], state)) found |= (uint64_t)1 << i;
  return found;
}

TW_EXPORT const char *tw_cpu_feature_name(int32_t bit) {
  return bit >= 0 && bit < FEATURES ? features[bit].name : NULL;
}

TW_EXPORT int32_t tw_affinity(void) {
  /* A fixed set holds 1024 CPUs; machines with more need a larger one. */
  for (int cpus = CPU_SETSIZE; cpus <= (1 << 16); cpus *= 2) {
    cpu_set_t *set = CPU_ALLOC(cpus);
    if (set == NULL) return 1;
    size_t bytes = CPU_ALLOC_SIZE(cpus);
    int failed = sched_getaffinity(0, bytes, set);
    int count = failed ? 0 : CPU_COUNT_S(bytes, set);
    CPU_FREE(set);
    if (!failed) return count > 0 ? count : 1;
  }
  return 1;
}

/* ---- control groups ---- */

/* CPUs granted by one group; 0 when it sets no limit. Version 2: "max 100000" or "200000 100000"; version 1: two files. */
static double group_quota(const char *folder, int version) {
  char path[4200];
  double quota = -1, period = 0;
  snprintf(path, sizeof path, "%s/%s", folder, version == 2 ? "cpu.max" : "cpu.cfs_quota_us");
  FILE *file = fopen(path, "r");
  if (file == NULL) return 0;
  int got = fscanf(file, "%lf %lf", &quota, &period); /* "max" is no number: nothing is read */
  fclose(file);
  if (version == 1 && got == 1) {
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
    file = fopen(path, "r");
    if (file == NULL) return 0;
    got += fscanf(file, "%lf", &period) == 1;
    fclose(file);
  }
  return got == 2 && quota > 0 && period > 0 ? quota / period : 0;
}

/* The tightest limit among a group and its ancestors: `folder` is the mount, `group` the path within it. */
static double path_quota(const char *mount, const char *group, int version) {
  char folder[4100];
  double tightest = 0;
  size_t base = strlen(mount);
  if (base + strlen(group) + 1 > sizeof folder) return 0;
  strcpy(folder, mount);
  strcpy(folder + base, group);
  for (;;) {
    double quota = group_quota(folder, version);
    if (quota > 0 && (tightest == 0 || quota < tightest)) tightest = quota;
    char *slash = strrchr(folder + base, '/');
    if (slash == NULL) return tightest;
    *slash = '\0'; /* last of all the mount itself: a container often sees its own group there */
  }
}

static int names_cpu(const char *controllers) {
  size_t n = strlen("cpu");
  for (const char *at = controllers; at != NULL; at = strchr(at, ',')) {
    if (*at == ',') ++at;
    if (strncmp(at, "cpu", n) == 0 && (at[n] == ',' || at[n] == '\0')) return 1;
  }
  return 0;
}

TW_EXPORT int32_t tw_quota(const char *root, const char *membership) {
  static const char *const v1_mounts[] = {"cpu,cpuacct", "cpuacct,cpu", "cpu"};
  char line[4096], mount[4096];
  double tightest = 0;
  FILE *file = fopen(membership, "r");
  if (file == NULL) return 0;
  while (fgets(line, sizeof line, file) != NULL) {
    line[strcspn(line, "\n")] = '\0';
    char *controllers = strchr(line, ':');
    char *group = controllers == NULL ? NULL : strchr(controllers + 1, ':');
    if (group == NULL) continue;
    *group++ = '\0';
    ++controllers;
    double quota = 0;
    if (*controllers == '\0') {
      quota = path_quota(root, group, 2);
    } else if (names_cpu(controllers)) {
      for (int i = 0; i < 3 && quota == 0; ++i) {
        int length = snprintf(mount, sizeof mount, "%s/%s", root, v1_mounts[i]);
        if (length > 0 && (size_t)length < sizeof mount) quota = path_quota(mount, group, 1);
      }
    }
    if (quota > 0 && (tightest == 0 || quota < tightest)) tightest = quota;
  }
  fclose(file);
  if (tightest == 0) return 0;
  if (tightest >= TW_MAX_THREADS) return TW_MAX_THREADS;
  return tightest < 1 ? 1 : (int32_t)tightest;
}

TW_EXPORT int32_t tw_default_threads(void) {
  const char *wish = getenv("TILEWRIGHT_THREADS");
  if (wish != NULL && *wish != '\0') {
    char *end = NULL;
    long threads = strtol(wish, &end, 10);
    return *end == '\0' && threads >= 1 && threads <= TW_MAX_THREADS ? (int32_t)threads : 0;
  }
  int32_t threads = tw_affinity();
  int32_t quota = tw_quota("/sys/fs/cgroup", "/proc/self/cgroup");
  if (quota > 0 && quota < threads) threads = quota;
  return threads > TW_MAX_THREADS ? TW_MAX_THREADS : threads;
}
