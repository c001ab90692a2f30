/* Checks of a compiled model's C interface: usage: checks WEIGHTS.bin OTHER-WEIGHTS.bin INPUT.bin EXPECTED.bin FOLDER.
   The model has one float32 input and one float32 output. Linked with --wrap for the functions that allocate. */
#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

static int failures;

#define CHECK(condition)                                        \
  do {                                                          \
    if (!(condition)) {                                         \
      ++failures;                                               \
      printf("line %d: %s [%s]\n", __LINE__, #condition, note); \
    }                                                           \
  } while (0)

static char note[300];

/* Allocation fails while `refuse` is set. */
static int refuse;
void *__real_malloc(size_t);
void *__wrap_malloc(size_t bytes) { return refuse ? 0 : __real_malloc(bytes); }
void *__real_calloc(size_t, size_t);
void *__wrap_calloc(size_t n, size_t bytes) { return refuse ? 0 : __real_calloc(n, bytes); }
int __real_posix_memalign(void **, size_t, size_t);
int __wrap_posix_memalign(void **memory, size_t alignment, size_t bytes) {
  return refuse ? 12 : __real_posix_memalign(memory, alignment, bytes);
}
static int refuse_threads_after = -1;
int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*work)(void *), void *argument) {
  if (refuse_threads_after == 0) return 11;
  if (refuse_threads_after > 0) --refuse_threads_after;
  return __real_pthread_create(thread, attributes, work, argument);
}

typedef struct {
  char *data;
  size_t bytes;
} blob;

static blob slurp(const char *path) {
  blob found = {0, 0};
  FILE *file = fopen(path, "rb");
  if (!file) exit(3);
  fseek(file, 0, SEEK_END);
  found.bytes = (size_t)ftell(file);
  rewind(file);
  if (posix_memalign((void **)&found.data, 64, found.bytes + 64)) exit(3);
  if (fread(found.data, 1, found.bytes, file) != found.bytes) exit(3);
  fclose(file);
  return found;
}

static void spill(const char *path, const char *data, size_t bytes) {
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(data, 1, bytes, file) != bytes || fclose(file)) exit(3);
}

/* Creating with these options ends with `status` and, unless that is good, a message and no instance. */
static void expect(model_options options, model_status status, int line) {
  model_instance *instance = (model_instance *)1;
  model_status found = model_create(&options, &instance, note, sizeof note);
  if (found != status || (status != MODEL_OK && (instance || !note[0]))) {
    ++failures;
    printf("line %d: status %d, expected %d [%s]\n", line, (int)found, (int)status, note);
  }
  if (found == MODEL_OK) model_destroy(instance);
  note[0] = 0;
}

static blob weights, other, input, expected;
static char path[512];

/* The same contents as a file and as a block of memory. */
static void expect_weights(const char *data, size_t bytes, model_status status, int line) {
  char *block;
  spill(path, data, bytes);
  expect((model_options){.weights_file = path}, status, line);
  if (posix_memalign((void **)&block, 64, bytes + 1)) exit(3);
  memcpy(block, data, bytes);
  expect((model_options){.weights = block, .weights_bytes = bytes}, status, line);
  free(block);
}

static model_status run(model_instance *instance, const void *in, size_t in_bytes, void *out, size_t out_bytes) {
  return model_run(instance, &in, &in_bytes, &out, &out_bytes);
}

static int close_enough(const float *actual) {
  double difference = 0, norm = 0;
  const float *wanted = (const float *)expected.data;
  for (size_t i = 0; i < expected.bytes / 4; ++i) {
    difference += ((double)actual[i] - wanted[i]) * ((double)actual[i] - wanted[i]);
    norm += (double)wanted[i] * wanted[i];
  }
  return difference <= 1e-10 * norm; /* 1e-5 relative */
}

static void check_creation(void) {
  model_instance *instance = 0;
  CHECK(model_create(0, &instance, note, sizeof note) == MODEL_E_ARGUMENT && note[0]);
  model_options options = {.weights_file = path};
  CHECK(model_create(&options, 0, note, sizeof note) == MODEL_E_ARGUMENT);
  CHECK(model_create(0, 0, 0, 0) == MODEL_E_ARGUMENT);
  expect((model_options){0}, MODEL_E_ARGUMENT, __LINE__);
  expect((model_options){.weights_file = "/nowhere/weights.bin"}, MODEL_E_FILE, __LINE__);
  expect((model_options){.weights = weights.data, .weights_bytes = weights.bytes, .weights_file = path},
         MODEL_E_ARGUMENT, __LINE__);
  expect((model_options){.weights = weights.data, .weights_bytes = weights.bytes, .threads = -1}, MODEL_E_ARGUMENT,
         __LINE__);
  expect((model_options){.weights = weights.data + 4, .weights_bytes = weights.bytes}, MODEL_E_ARGUMENT, __LINE__);
}

static void check_weights(void) {
  size_t lengths[] = {0, 10, 63, 64, 65, weights.bytes / 2, weights.bytes - 1};
  expect_weights(weights.data, weights.bytes, MODEL_OK, __LINE__);
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; ++i)
    expect_weights(weights.data, lengths[i], MODEL_E_WEIGHTS, __LINE__);
  expect_weights(weights.data, weights.bytes + 1, MODEL_E_WEIGHTS, __LINE__);
  for (size_t at = 0; at < weights.bytes; at += at < 24 ? 1 : 24 + weights.bytes / 40) {
    if (at >= 24 && at < 64) at = 64; /* the header's unused end */
    weights.data[at] ^= 4;
    expect_weights(weights.data, weights.bytes, MODEL_E_WEIGHTS, __LINE__);
    weights.data[at] ^= 4;
  }
  weights.data[weights.bytes - 1] ^= 1;
  expect_weights(weights.data, weights.bytes, MODEL_E_WEIGHTS, __LINE__);
  weights.data[weights.bytes - 1] ^= 1;
  expect_weights(other.data, other.bytes, MODEL_E_WEIGHTS, __LINE__);
}

static void check_memory(float *out) {
  model_options options = {.weights = weights.data, .weights_bytes = weights.bytes};
  size_t bytes = model_memory_bytes(&options);
  char *block = malloc(bytes + 256);
  for (int shift = 0; shift < 64; shift += 7) {
    memset(block, 0x5a, bytes + 256);
    options.memory = block + 64 + shift;
    options.memory_bytes = bytes - 1;
    expect(options, MODEL_E_MEMORY, __LINE__);
    options.memory_bytes = bytes;
    model_instance *instance;
    refuse = 1; /* nothing is allocated beside the block */
    CHECK(model_create(&options, &instance, note, sizeof note) == MODEL_OK);
    CHECK(run(instance, input.data, input.bytes, out, expected.bytes) == MODEL_OK && close_enough(out));
    model_destroy(instance);
    refuse = 0;
    for (int i = 0; i < 64 + shift; ++i) CHECK(block[i] == 0x5a);
    for (size_t i = 64 + (size_t)shift + bytes; i < bytes + 256; ++i) CHECK(block[i] == 0x5a);
  }
  free(block);
  spill(path, weights.data, weights.bytes);
  model_options file = {.weights_file = path};
  CHECK(model_memory_bytes(&file) >= bytes + weights.bytes - 64);
  options.memory = 0;
  refuse = 1;
  expect(options, MODEL_E_MEMORY, __LINE__);
  refuse = 0;
}

static void check_buffers(float *out) {
  model_options options = {.weights = weights.data, .weights_bytes = weights.bytes};
  model_instance *m;
  CHECK(model_create(&options, &m, note, sizeof note) == MODEL_OK);
  const size_t in = input.bytes, bytes = expected.bytes;
  CHECK(run(0, input.data, in, out, bytes) == MODEL_E_ARGUMENT && model_last_error(0)[0]);
  CHECK(model_run(m, 0, 0, 0, 0) == MODEL_E_ARGUMENT && model_last_error(m)[0]);
  CHECK(run(m, 0, in, out, bytes) == MODEL_E_BUFFER && model_last_error(m)[0]);
  CHECK(run(m, input.data, in, 0, bytes) == MODEL_E_BUFFER);
  CHECK(run(m, input.data, in - 4, out, bytes) == MODEL_E_BUFFER && strstr(model_last_error(m), "instead of"));
  CHECK(run(m, input.data, in + 4, out, bytes) == MODEL_E_BUFFER);
  CHECK(run(m, input.data, in, out, bytes - 4) == MODEL_E_BUFFER);
  CHECK(run(m, input.data, in, out, bytes + 4) == MODEL_E_BUFFER);
  CHECK(run(m, input.data + 1, in, out, bytes) == MODEL_E_BUFFER);
  CHECK(run(m, input.data, in, input.data + in - 4, bytes) == MODEL_E_BUFFER && strstr(model_last_error(m), "overlaps"));
  CHECK(run(m, input.data, in, out, bytes) == MODEL_OK && !model_last_error(m)[0] && close_enough(out));
  memmove(input.data + 4, input.data, in); /* aligned to elements is aligned enough */
  CHECK(run(m, input.data + 4, in, out, bytes) == MODEL_OK && close_enough(out));
  memmove(input.data, input.data + 4, in);
  model_destroy(m);
}

static void check_threads(float *out) {
  model_options options = {.weights = weights.data, .weights_bytes = weights.bytes, .threads = 4};
  model_instance *m;
  CHECK(model_create(&options, &m, note, sizeof note) == MODEL_OK);
  float *first = malloc(expected.bytes);
  for (int i = 0; i < 5; ++i) {
    CHECK(run(m, input.data, input.bytes, out, expected.bytes) == MODEL_OK && close_enough(out));
    if (i) CHECK(memcmp(first, out, expected.bytes) == 0);
    memcpy(first, out, expected.bytes);
  }
  free(first);
  model_destroy(m);
  for (int started = 0; started < 3; ++started) {
    refuse_threads_after = started;
    expect(options, MODEL_E_THREADS, __LINE__);
  }
  refuse_threads_after = -1;
  options.threads = 1 << 30;
  expect(options, MODEL_E_THREADS, __LINE__);
}

/* Runs an instance again and again; `own` is not shared with another thread, so that it is never busy. */
typedef struct {
  model_instance *instance;
  int own, wrong;
} caller;

static void *serve(void *argument) {
  caller *self = argument;
  float *out = malloc(expected.bytes);
  for (int i = 0; i < 20; ++i) {
    model_status status = run(self->instance, input.data, input.bytes, out, expected.bytes);
    if (status == MODEL_OK ? !close_enough(out) : self->own || status != MODEL_E_BUSY) ++self->wrong;
  }
  free(out);
  return 0;
}

static void check_callers(int own) {
  model_options options = {.weights = weights.data, .weights_bytes = weights.bytes};
  pthread_t threads[3];
  caller callers[3];
  model_instance *shared = 0;
  if (!own) CHECK(model_create(&options, &shared, note, sizeof note) == MODEL_OK);
  for (int i = 0; i < 3; ++i) {
    callers[i] = (caller){shared, own, 0};
    if (own) CHECK(model_create(&options, &callers[i].instance, note, sizeof note) == MODEL_OK);
  }
  for (int i = 0; i < 3; ++i) pthread_create(&threads[i], 0, serve, &callers[i]);
  for (int i = 0; i < 3; ++i) pthread_join(threads[i], 0);
  for (int i = 0; i < 3; ++i) {
    CHECK(callers[i].wrong == 0);
    if (own) model_destroy(callers[i].instance);
  }
  model_destroy(shared);
}

static void check_descriptions(void) {
  CHECK(model_input_count() == 1 && model_output_count() == 1);
  CHECK(!model_input(-1) && !model_input(1) && !model_output(-1) && !model_output(1));
  CHECK(model_input(0)->bytes == input.bytes && model_output(0)->bytes == expected.bytes);
  CHECK(strcmp(model_input(0)->name, "x") == 0 && model_input(0)->rank == 4 && model_input(0)->shape[2] == 32);
  CHECK(model_input(0)->dtype == MODEL_FLOAT32);
  for (int status = 0; status <= MODEL_E_RUN; ++status)
    CHECK(strcmp(model_status_text((model_status)status), "unknown status") != 0);
  CHECK(strcmp(model_status_text((model_status)99), "unknown status") == 0);
  model_destroy(0);
}

int main(int count, char **words) {
  if (count != 6) return 3;
  weights = slurp(words[1]);
  other = slurp(words[2]);
  input = slurp(words[3]);
  expected = slurp(words[4]);
  snprintf(path, sizeof path, "%s/draft.bin", words[5]);
  float *out = malloc(expected.bytes + 64);
  check_descriptions();
  check_creation();
  check_weights();
  check_memory(out);
  check_buffers(out);
  check_threads(out);
  check_callers(1);
  check_callers(0);
  free(out);
  printf("%d failures\n", failures);
  return failures != 0;
}
