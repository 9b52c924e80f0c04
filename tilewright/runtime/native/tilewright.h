/* The public C API of a model saved by Tilewright: types shared by every model; each model's own header adds functions
 * prefixed by its name (net_open, net_run, …), so that several models link into one program.
 *
 * In: nothing. Out: status codes, element types, descriptions of inputs and outputs, the model handle.
 */
#ifndef TILEWRIGHT_H
#define TILEWRIGHT_H

#include <stdint.h>

#define TW_MAX_RANK 16

/* Status of every call; the text is in the context's error record. Assertions of generated code use these codes. */
enum {
  TW_OK = 0,
  TW_ERROR_INDEX = 1,       /* an index is out of bounds */
  TW_ERROR_MEMORY = 2,      /* the system gave no memory */
  TW_ERROR_SHAPE = 3,       /* shapes that do not fit together */
  TW_ERROR_VALUE = 4,       /* a value outside of an operator's domain */
  TW_ERROR_HOST_CALL = 5,   /* a host call failed or is not there */
  TW_ERROR_DEVICE = 6,      /* a device refused */
  TW_ERROR_ARGUMENT = 7,    /* the caller's mistake */
  TW_ERROR_CPU = 8,         /* this CPU lacks a feature that the model's code needs */
  TW_ERROR_ABI = 9,         /* made for another version of the runtime */
  TW_ERROR_CLOSED = 10,     /* the model was closed */
  TW_ERROR_INPUT = 11,      /* an input's shape is not one that the model takes */
  TW_ERROR_DRIVER = 12      /* no driver or device for the model's kernels */
};

/* Element types of inputs and outputs. */
enum {
  TW_F64 = 1, TW_F32 = 2, TW_F16 = 3, TW_BF16 = 4,
  TW_F8E4M3FN = 5, TW_F8E4M3FNUZ = 6, TW_F8E5M2 = 7, TW_F8E5M2FNUZ = 8, TW_F8E8M0FNU = 9, TW_F4E2M1FN = 10,
  TW_I64 = 16, TW_I32 = 17, TW_I16 = 18, TW_I8 = 19, TW_I4 = 20, TW_I2 = 21,
  TW_U64 = 32, TW_U32 = 33, TW_U16 = 34, TW_U8 = 35, TW_U4 = 36, TW_U2 = 37,
  TW_BOOL = 48
};

/* A size that each run chooses: from least to most (-1: any), a multiple of `multiple`. */
typedef struct tw_symbol {
  const char *name;
  int64_t least;
  int64_t most;
  int64_t multiple;
} tw_symbol;

/* An input or output. A dimension of -1 is symbolic; of an input, symbols[axis] is then the number of its symbol: equal
 * symbols are equal sizes. NULL where no dimension is a symbol by itself. */
typedef struct tw_tensor_info {
  const char *name;
  const int64_t *shape;
  int32_t dtype;
  int32_t rank;
  const int32_t *symbols;
} tw_tensor_info;

/* Memory for an output of symbolic shape; the receiver frees `data` with tw_release. */
typedef struct tw_result {
  void *data;
  int64_t bytes;
  int32_t rank;
  int64_t shape[TW_MAX_RANK];
} tw_result;

/* An open model. Several threads may run one at once: each run takes a context of its own from the model's pool. */
typedef struct tw_instance tw_instance;

#endif
