/* Runs a compiled model: raw input files in, raw output files out, and how long it took. */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model.h"

enum { MOST = 64 };

static const char usage[] =
    "usage: %s [-w weights.bin] [-i INPUT.bin]... [-o OUTPUT.bin]... [-t THREADS] [-n RUNS] [-s SECONDS.txt]\n"
    "  -w  the weights (not needed where they were compiled in)\n"
    "  -i  an input's elements, raw, in the order below; without any, random numbers\n"
    "  -o  where to write an output's elements, in the order below\n"
    "  -t  threads (1)     -n  timed runs (1)     -s  write the seconds of each run\n";

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void describe(const char *kind, const model_tensor *tensor) {
  printf("%s %s: type %d [", kind, tensor->name, (int)tensor->dtype);
  for (int32_t i = 0; i < tensor->rank; ++i) printf("%s%lld", i ? ", " : "", (long long)tensor->shape[i]);
  printf("], %zu bytes\n", tensor->bytes);
}

/* Random floats in [-1, 1); zeros for other types, which may be indices. */
static void invent(const model_tensor *tensor, char *data) {
  uint32_t state = 1;
  memset(data, 0, tensor->bytes);
  if (tensor->dtype != MODEL_FLOAT32) return;
  for (size_t i = 0; i < tensor->bytes / 4; ++i) {
    state = state * 1664525u + 1013904223u;
    float value = (float)(int32_t)state / 2147483648.0f;
    memcpy(data + 4 * i, &value, 4);
  }
}

static int read_file(const char *path, const model_tensor *tensor, char *data) {
  FILE *file = fopen(path, "rb");
  size_t found = file ? fread(data, 1, tensor->bytes, file) : 0;
  int fits = file && found == tensor->bytes && fgetc(file) == EOF;
  if (file) fclose(file);
  if (!fits) fprintf(stderr, "'%s' does not hold the %zu bytes of input '%s'\n", path, tensor->bytes, tensor->name);
  return fits;
}

static int write_file(const char *path, const void *data, size_t bytes) {
  FILE *file = fopen(path, "wb");
  int good = file && fwrite(data, 1, bytes, file) == bytes;
  if (file && fclose(file) != 0) good = 0;
  if (!good) fprintf(stderr, "'%s' cannot be written\n", path);
  return good;
}

static int write_seconds(const char *path, const double *seconds, int runs) {
  FILE *file = fopen(path, "w");
  if (!file) {
    fprintf(stderr, "'%s' cannot be written\n", path);
    return 0;
  }
  for (int i = 0; i < runs; ++i) fprintf(file, "%.9f\n", seconds[i]);
  return fclose(file) == 0;
}

int main(int count, char **words) {
  const char *in_files[MOST], *out_files[MOST], *seconds_file = 0;
  int in_count = 0, out_count = 0, runs = 1;
  model_options options = {0};
  for (int i = 1; i < count; i += 2) {
    const char *value = i + 1 < count ? words[i + 1] : 0;
    char option = words[i][0] == '-' && words[i][1] && !words[i][2] && value ? words[i][1] : 0;
    if (option == 'w') options.weights_file = value;
    else if (option == 'i' && in_count < MOST) in_files[in_count++] = value;
    else if (option == 'o' && out_count < MOST) out_files[out_count++] = value;
    else if (option == 't') options.threads = atoi(value);
    else if (option == 'n' && atoi(value) > 0) runs = atoi(value);
    else if (option == 's') seconds_file = value;
    else {
      fprintf(stderr, usage, words[0]);
      return 2;
    }
  }
  int32_t inputs = model_input_count(), outputs = model_output_count();
  if ((in_count && in_count != inputs) || out_count > outputs) {
    fprintf(stderr, "the model has %d inputs and %d outputs\n", (int)inputs, (int)outputs);
    return 2;
  }

  char message[256];
  model_instance *model;
  model_status status = model_create(&options, &model, message, sizeof message);
  if (status != MODEL_OK) {
    fprintf(stderr, "error %d (%s): %s\n", (int)status, model_status_text(status), message);
    return 1;
  }
  void **data = calloc((size_t)(inputs + outputs) + 1, sizeof *data);
  size_t *sizes = calloc((size_t)(inputs + outputs) + 1, sizeof *sizes);
  double *seconds = calloc((size_t)runs, sizeof *seconds);
  int good = data && sizes && seconds;
  for (int32_t i = 0; good && i < inputs + outputs; ++i) {
    const model_tensor *tensor = i < inputs ? model_input(i) : model_output(i - inputs);
    describe(i < inputs ? "input" : "output", tensor);
    sizes[i] = tensor->bytes;
    data[i] = malloc(tensor->bytes + 1);
    good = data[i] != 0;
    if (good && i < inputs && in_count) good = read_file(in_files[i], tensor, data[i]);
    else if (good && i < inputs) invent(tensor, data[i]);
  }
  for (int i = 0; good && i < runs; ++i) {
    double start = now();
    status = model_run(model, (const void *const *)data, sizes, data + inputs, sizes + inputs);
    seconds[i] = now() - start;
    if (status != MODEL_OK) {
      fprintf(stderr, "error %d (%s): %s\n", (int)status, model_status_text(status), model_last_error(model));
      good = 0;
    }
  }
  for (int i = 0; good && i < out_count; ++i) good = write_file(out_files[i], data[inputs + i], sizes[inputs + i]);
  if (good && seconds_file) good = write_seconds(seconds_file, seconds, runs);
  if (good) {
    qsort(seconds, (size_t)runs, sizeof *seconds, compare);
    printf("latency of %d runs: median %.3f ms, least %.3f ms\n", runs, 1e3 * seconds[runs / 2], 1e3 * seconds[0]);
  }
  for (int32_t i = 0; data && i < inputs + outputs; ++i) free(data[i]);
  free(data);
  free(sizes);
  free(seconds);
  model_destroy(model);
  return good ? 0 : 1;
}
