/* The C interface of a model that Secateur compiled. Plain C99 and C++; needs libc and libm alone.

   An instance holds what one run needs. Instances are independent of each other: several may run at once, on
   different threads, and may share one block of weights. One instance serves one caller at a time. No function ends
   the process, prints, or keeps anything in global variables. */
#ifndef MODEL_H
#define MODEL_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define MODEL_API
#else
#define MODEL_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  MODEL_OK = 0,
  MODEL_E_ARGUMENT = 1, /* a null pointer, or options that contradict each other */
  MODEL_E_MEMORY = 2,   /* out of memory, or the caller's block is too small */
  MODEL_E_FILE = 3,     /* the weights file cannot be opened or read */
  MODEL_E_WEIGHTS = 4,  /* the weights are cut short, altered, or another model's */
  MODEL_E_CPU = 5,      /* the processor lacks instructions that the code uses */
  MODEL_E_BUFFER = 6,   /* an input or output is missing, of the wrong size, misaligned, or overlaps another */
  MODEL_E_THREADS = 7,  /* the threads cannot be started */
  MODEL_E_BUSY = 8,     /* the instance is running in another thread */
  MODEL_E_RUN = 9       /* a kernel failed */
} model_status;

/* Element types, numbered as ONNX numbers them. */
typedef enum {
  MODEL_FLOAT32 = 1,
  MODEL_UINT8 = 2,
  MODEL_INT8 = 3,
  MODEL_UINT16 = 4,
  MODEL_INT16 = 5,
  MODEL_INT32 = 6,
  MODEL_INT64 = 7,
  MODEL_BOOL = 9, /* bytes of 0 and 1 */
  MODEL_FLOAT16 = 10,
  MODEL_FLOAT64 = 11,
  MODEL_UINT32 = 12,
  MODEL_UINT64 = 13
} model_dtype;

/* What an input or output is: dense, the last dimension contiguous; `bytes` is the size of all elements. */
typedef struct {
  const char *name;
  model_dtype dtype;
  int32_t rank;
  const int64_t *shape;
  size_t bytes;
} model_tensor;

MODEL_API int32_t model_input_count(void);
MODEL_API int32_t model_output_count(void);
/* Null for an index that is out of range. */
MODEL_API const model_tensor *model_input(int32_t index);
MODEL_API const model_tensor *model_output(int32_t index);

/* Where weights and memory come from. Begin with {0}.

   weights_file: path of weights.bin; it is read into the instance's memory. weights, weights_bytes: the whole contents
   of weights.bin in memory instead (a mapped file, an asset), aligned to 64 bytes; they are used where they are and
   must outlive the instance. Neither: the weights that were compiled in (--embed-weights).

   memory, memory_bytes: a block of the caller's, of at least model_memory_bytes(), in which the instance is made;
   it must outlive the instance. Nothing else is then allocated, but for threads. Null: malloc.

   threads: 0 or 1 for none beside the caller's. */
typedef struct {
  const char *weights_file;
  const void *weights;
  size_t weights_bytes;
  void *memory;
  size_t memory_bytes;
  int32_t threads;
} model_options;

typedef struct model_instance model_instance;

/* Bytes of memory that an instance with these options needs, activations included. */
MODEL_API size_t model_memory_bytes(const model_options *options);

/* Make an instance. On failure *instance is null, and `message` (which may be null) holds a sentence. */
MODEL_API model_status model_create(const model_options *options, model_instance **instance, char *message,
                                    size_t message_bytes);

/* Run once: arrays of pointers and of sizes in bytes, in the order of model_input and model_output. */
MODEL_API model_status model_run(model_instance *instance, const void *const *inputs, const size_t *input_bytes,
                                 void *const *outputs, const size_t *output_bytes);

/* What went wrong in the instance's last model_run; an empty string if nothing did. */
MODEL_API const char *model_last_error(const model_instance *instance);

/* A status in a word or two. */
MODEL_API const char *model_status_text(model_status status);

/* Stop the threads and free what model_create allocated. Null does nothing. */
MODEL_API void model_destroy(model_instance *instance);

#ifdef __cplusplus
}
#endif

#endif
