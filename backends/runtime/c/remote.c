/* A compiled model behind an RPC server of TVM: prepared with its weights, run on tensors, timed on the device.
   WEIGHTS is 1 where they are passed; INPUTS and OUTPUTS count the model's; PACKAGE_C tells a C library (model.h) from
   a library for Python; CPU_LEVEL is the level of x86-64 that the latter needs. */
#define _POSIX_C_SOURCE 200809L

#include "remote.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE = 64, MESSAGE = 256 };

static char message[MESSAGE];

#if PACKAGE_C
#include "model.h"

static model_instance *model;

static int prepare(const void *weights, size_t bytes, int32_t threads) {
  model_options options = {.threads = threads, .weights = weights, .weights_bytes = bytes};
  return model_create(&options, &model, message, sizeof message) == MODEL_OK;
}

static int run(const void *const *inputs, const size_t *in_bytes, void *const *outputs, const size_t *out_bytes) {
  if (model_run(model, inputs, in_bytes, outputs, out_bytes) == MODEL_OK) return 1;
  snprintf(message, sizeof message, "%s", model_last_error(model));
  return 0;
}
#else
#include "cpu.h"

typedef struct secateur_pool secateur_pool;
int32_t secateur_run(const void *const *inputs, void *const *outputs, const void *weights, void *arena,
                     secateur_pool *pool);
uint64_t secateur_arena_bytes(void);
uint64_t secateur_weights_bytes(void);
secateur_pool *secateur_pool_create(int32_t threads);

static const void *model_weights;
static void *arena;
static secateur_pool *pool;

static int lacks_instructions(void) {
#if defined(__x86_64__)
  return cpu_level() < CPU_LEVEL;
#else
  return 0;
#endif
}

static int prepare(const void *weights, size_t bytes, int32_t threads) {
  size_t room = (secateur_arena_bytes() + LINE - 1) / LINE * LINE + LINE;
  const char *problem = 0;
  if (lacks_instructions()) problem = "its processor lacks instructions that the model needs";
  else if (bytes < secateur_weights_bytes()) problem = "the weights were cut short";
  else if (posix_memalign(&arena, LINE, room) != 0) problem = "it has not enough memory";
  else if (threads > 1 && !(pool = secateur_pool_create(threads))) problem = "it cannot start so many threads";
  model_weights = weights;
  if (problem) snprintf(message, sizeof message, "%s", problem);
  return !problem;
}

static int run(const void *const *inputs, const size_t *in_bytes, void *const *outputs, const size_t *out_bytes) {
  (void)in_bytes;
  (void)out_bytes;
  if (secateur_run(inputs, outputs, model_weights, arena, pool) == 0) return 1;
  snprintf(message, sizeof message, "the model failed");
  return 0;
}
#endif

/* (threads, weights?) -> 1, or 0 with a message. The weights stay where they are: the caller keeps the tensor. */
REMOTE(secateur_prepare) {
  (void)self;
  const char *weights = 0;
  size_t bytes = 0;
  if (count != 1 + WEIGHTS || args[0].type != FFI_INT) return answer_integer(result, -1);
  if (WEIGHTS && !(weights = tensor_bytes(&args[1], &bytes))) return answer_integer(result, -1);
  return answer_integer(result, prepare(weights, bytes, (int32_t)args[0].value.integer));
}

/* (seconds, inputs..., outputs...) -> 1, or 0 with a message; runs once for each double that `seconds` has room for. */
REMOTE(secateur_time) {
  (void)self;
  void *data[INPUTS + OUTPUTS + 1];
  size_t bytes[INPUTS + OUTPUTS + 1];
  if (count != INPUTS + OUTPUTS + 1) return answer_integer(result, -1);
  for (int32_t i = 0; i < count; ++i)
    if (!(data[i] = tensor_bytes(&args[i], &bytes[i]))) return answer_integer(result, -1);
  for (size_t i = 0; i < bytes[0] / sizeof(double); ++i) {
    double start = now();
    if (!run((const void *const *)(data + 1), bytes + 1, data + 1 + INPUTS, bytes + 1 + INPUTS))
      return answer_integer(result, 0);
    double seconds = now() - start;
    memcpy((char *)data[0] + i * sizeof seconds, &seconds, sizeof seconds);
  }
  return answer_integer(result, 1);
}

/* (text) -> 1; the last message, ended by zero. */
REMOTE(secateur_message) {
  (void)self;
  size_t bytes = 0;
  char *text = count == 1 ? tensor_bytes(&args[0], &bytes) : 0;
  if (!text || bytes < MESSAGE) return answer_integer(result, -1);
  memcpy(text, message, MESSAGE);
  return answer_integer(result, 1);
}
