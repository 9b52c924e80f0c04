/* Runs a saved model without Python, on inputs of ones, and prints the first numbers of each output.
 *
 *   model.save("net.so")                       in Python: writes net.so and net.h
 *   cc run_model.c ./net.so -o run_model       here
 *   ./run_model
 */
#include <stdio.h>
#include <stdlib.h>

#include "net.h"

static size_t elements(const tw_tensor_info *tensor) {
  size_t count = 1;
  for (int32_t d = 0; d < tensor->rank; ++d) {
    if (tensor->shape[d] < 0) {
      fprintf(stderr, "%s: a size is chosen by the run or depends on data: see net_run_shapes in net.h\n", tensor->name);
      exit(1);
    }
    count *= (size_t)tensor->shape[d];
  }
  return count;
}

static float *floats(const tw_tensor_info *tensor, float value) {
  if (tensor->dtype != TW_F32) {
    fprintf(stderr, "%s: this example knows only f32\n", tensor->name);
    exit(1);
  }
  size_t count = elements(tensor);
  float *data = aligned_alloc(64, (count * sizeof *data + 63) / 64 * 64);
  for (size_t i = 0; data != NULL && i < count; ++i) data[i] = value;
  return data;
}

int main(void) {
  int32_t inputs = net_input_count(), outputs = net_output_count();
  const void **in = calloc((size_t)inputs, sizeof *in);
  void **out = calloc((size_t)outputs, sizeof *out);
  tw_instance *model = net_open();
  if (model == NULL || in == NULL || out == NULL) {
    fprintf(stderr, "%s\n", model == NULL ? net_error() : "out of memory");
    return 1;
  }
  for (int32_t i = 0; i < inputs; ++i) in[i] = floats(net_input(i), 1.0f);
  for (int32_t i = 0; i < outputs; ++i) out[i] = floats(net_output(i), 0.0f);
  if (net_run(model, in, out) != TW_OK) {
    fprintf(stderr, "%s\n", net_error());
    return 1;
  }
  for (int32_t i = 0; i < outputs; ++i) {
    const tw_tensor_info *info = net_output(i);
    printf("%s:", info->name);
    for (size_t k = 0; k < elements(info) && k < 8; ++k) printf(" %g", (double)((float *)out[i])[k]);
    printf("\n");
  }
  net_close(model);
  return 0;
}
