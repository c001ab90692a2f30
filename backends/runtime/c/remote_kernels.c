/* Kernels behind an RPC server of TVM, each timed on the device; the generated source defines remote_call. */
#define _POSIX_C_SOURCE 200809L

#include "remote.h"

enum { MOST = 16 };

int32_t remote_call(int32_t index, void *const *arrays);

/* (index, arrays...) -> seconds of one call of a kernel; below zero when it failed. */
REMOTE(secateur_time_kernel) {
  (void)self;
  void *arrays[MOST];
  size_t bytes;
  if (count < 1 || count > MOST + 1 || args[0].type != FFI_INT) return answer_number(result, -1);
  for (int32_t i = 1; i < count; ++i)
    if (!(arrays[i - 1] = tensor_bytes(&args[i], &bytes))) return answer_number(result, -1);
  double start = now();
  int32_t status = remote_call((int32_t)args[0].value.integer, arrays);
  return answer_number(result, status == 0 ? now() - start : -1);
}
