/* What a library offers to an RPC server of TVM: functions __tvm_ffi_NAME of TVM's foreign function interface
   (tvm/ffi/c_api.h; tensors as in dlpack.h). They need nothing of TVM itself. */
#ifndef SECATEUR_REMOTE_H
#define SECATEUR_REMOTE_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

enum { FFI_INT = 1, FFI_FLOAT = 3, FFI_TENSOR_POINTER = 7, FFI_TENSOR = 70, FFI_OBJECT_BYTES = 24 };

typedef struct {
  int32_t type;
  uint32_t padding;
  union {
    int64_t integer;
    double number;
    void *pointer;
  } value;
} ffi_any;

/* DLTensor; all that is passed here is one row of bytes. */
typedef struct {
  char *data;
  int32_t device_type, device_id;
  int32_t rank;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  int64_t *shape;
  int64_t *strides;
  uint64_t offset;
} ffi_tensor;

#define REMOTE(name) \
  __attribute__((visibility("default"))) int __tvm_ffi_##name(void *self, const ffi_any *args, int32_t count, \
                                                              ffi_any *result)

/* The bytes of an argument, and how many there are; null for another kind of argument. */
static inline char *tensor_bytes(const ffi_any *argument, size_t *bytes) {
  const char *place = argument->value.pointer;
  if (argument->type != FFI_TENSOR_POINTER && argument->type != FFI_TENSOR) return 0;
  const ffi_tensor *tensor = (const ffi_tensor *)(place + (argument->type == FFI_TENSOR ? FFI_OBJECT_BYTES : 0));
  if (tensor->rank != 1) return 0;
  *bytes = (size_t)tensor->shape[0];
  return tensor->data + tensor->offset;
}

static inline int answer_integer(ffi_any *result, int64_t value) {
  *result = (ffi_any){.type = FFI_INT, .value.integer = value};
  return 0;
}

static inline int answer_number(ffi_any *result, double value) {
  *result = (ffi_any){.type = FFI_FLOAT, .value.number = value};
  return 0;
}

static inline double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

#endif
