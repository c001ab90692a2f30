/* Times a compiled model on this device, and small kernels of the kinds that it could be made of. The profile that it
   writes lets Secateur choose kernels for this processor: secateur compile ... --profile profile.json */
#define _POSIX_C_SOURCE 200809L

#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "model.h"

enum { LINE = 64, MOST_ROUNDS = 1000, WARM_UP = 3 };

/* Seconds of a batch of calls of one kernel. */
static const double batch_seconds = 1e-3;

static const char usage[] =
    "usage: %s [-w weights.bin] [-o profile.json] [-t THREADS] [-n RUNS] [-r ROUNDS]\n"
    "  -w  the weights (not needed where they were compiled in)\n"
    "  -o  where to write the profile (standard output)\n"
    "  -t  the model's threads (1)     -n  timed runs of the model (30)     -r  timed rounds of all kernels (25)\n";

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* --- Results ------------------------------------------------------------------------------------------------- */

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Median and least of seconds, and the quartiles' distance over the median; sorts them. */
static void write_seconds(FILE *file, double *seconds, int count) {
  qsort(seconds, (size_t)count, sizeof *seconds, compare);
  double median = seconds[count / 2], spread = seconds[count * 3 / 4] - seconds[count / 4];
  fprintf(file, "\"median\": %.9e, \"least\": %.9e, \"spread\": %.4f", median, seconds[0],
          median > 0 ? spread / median : 0.0);
}

/* A JSON string; what is not printable ASCII is left out. */
static void write_text(FILE *file, const char *text) {
  fputc('"', file);
  for (; *text; ++text) {
    if (*text == '"' || *text == '\\') fputc('\\', file);
    if (*text >= ' ' && *text <= '~') fputc(*text, file);
  }
  fputc('"', file);
}

/* --- The processor ------------------------------------------------------------------------------------------- */

#if defined(__APPLE__)
static void processor(char *name, size_t room) {
  if (sysctlbyname("machdep.cpu.brand_string", name, &room, 0, 0) != 0) strcpy(name, "unknown");
}
#else
/* What /proc/cpuinfo says of the first processor: its name, or who made it and which one it is. */
static void processor(char *name, size_t room) {
  char line[256], maker[32] = "", part[32] = "";
  FILE *file = fopen("/proc/cpuinfo", "r");
  snprintf(name, room, "unknown");
  while (file && fgets(line, sizeof line, file)) {
    char *value = strchr(line, ':');
    if (!value) continue;
    value += strspn(value, ": \t");
    value[strcspn(value, "\n")] = 0;
    if (strncmp(line, "model name", 10) == 0) {
      snprintf(name, room, "%s", value);
      break;
    }
    if (strncmp(line, "CPU implementer", 15) == 0 && !*maker) snprintf(maker, sizeof maker, "%.31s", value);
    if (strncmp(line, "CPU part", 8) == 0 && !*part) snprintf(part, sizeof part, "%.31s", value);
  }
  if (strcmp(name, "unknown") == 0 && *maker) snprintf(name, room, "ARM implementer %s part %s", maker, part);
  if (file) fclose(file);
}
#endif

/* --- The model ----------------------------------------------------------------------------------------------- */

static void invent(char *data, size_t bytes) {
  const float value = 0.015625f;
  for (size_t i = 0; i + 4 <= bytes; i += 4) memcpy(data + i, &value, 4);
}

static int time_model(const model_options *options, int runs, FILE *file) {
  char message[256];
  model_instance *model;
  model_status status = model_create(options, &model, message, sizeof message);
  if (status != MODEL_OK) {
    fprintf(stderr, "error %d (%s): %s\n", (int)status, model_status_text(status), message);
    return 0;
  }
  int32_t inputs = model_input_count(), count = inputs + model_output_count();
  void **data = calloc((size_t)count + 1, sizeof *data);
  size_t *sizes = calloc((size_t)count + 1, sizeof *sizes);
  double *seconds = calloc((size_t)runs, sizeof *seconds);
  int good = data && sizes && seconds;
  for (int32_t i = 0; good && i < count; ++i) {
    const model_tensor *tensor = i < inputs ? model_input(i) : model_output(i - inputs);
    sizes[i] = tensor->bytes;
    data[i] = calloc(1, tensor->bytes + 1);
    good = data[i] != 0;
    if (good && i < inputs && tensor->dtype == MODEL_FLOAT32) invent(data[i], tensor->bytes);
  }
  if (!good) fprintf(stderr, "there is not enough memory\n");
  for (int i = -WARM_UP; good && i < runs; ++i) {
    double start = now();
    status = model_run(model, (const void *const *)data, sizes, data + inputs, sizes + inputs);
    if (i >= 0) seconds[i] = now() - start;
    if (status != MODEL_OK) {
      fprintf(stderr, "error %d (%s): %s\n", (int)status, model_status_text(status), model_last_error(model));
      good = 0;
    }
  }
  if (good) {
    fprintf(file, " \"model\": {\"threads\": %d, \"runs\": %d, ", (int)(options->threads > 0 ? options->threads : 1),
            runs);
    write_seconds(file, seconds, runs);
    fprintf(file, "},\n");
    fprintf(stderr, "the model: median %.3f ms of %d runs, least %.3f ms\n", 1e3 * seconds[runs / 2], runs,
            1e3 * seconds[0]);
  }
  for (int32_t i = 0; data && i < count; ++i) free(data[i]);
  free(data);
  free(sizes);
  free(seconds);
  model_destroy(model);
  return good;
}

/* --- The kernels --------------------------------------------------------------------------------------------- */

typedef struct {
  void *block;
  void **arrays;
  int calls; /* of a batch */
  double *seconds;
} trial;

static void *aligned(void *memory) { return (char *)memory + (LINE - (uintptr_t)memory % LINE) % LINE; }

/* The arrays of a kernel in one block of memory, and room for the seconds of each round. */
static int prepare(const secateur_probe *probe, trial *made, int rounds) {
  size_t bytes = LINE;
  for (int32_t i = 0; i < probe->count; ++i) bytes += (probe->arrays[i].bytes + LINE - 1) / LINE * LINE + LINE;
  made->block = malloc(bytes);
  made->arrays = calloc((size_t)probe->count, sizeof *made->arrays);
  made->seconds = calloc((size_t)rounds, sizeof *made->seconds);
  if (!made->block || !made->arrays || !made->seconds) return 0;
  char *at = aligned(made->block);
  for (int32_t i = 0; i < probe->count; ++i) {
    const secateur_probe_array *array = &probe->arrays[i];
    if (array->offset >= 0) memcpy(at, secateur_probe_data + array->offset, array->bytes);
    else invent(at, array->bytes);
    made->arrays[i] = at;
    at += (array->bytes + LINE - 1) / LINE * LINE + LINE;
  }
  return 1;
}

/* Seconds of so many calls; negative when one failed. */
static double time_calls(int32_t index, const trial *made, int calls) {
  double start = now();
  for (int i = 0; i < calls; ++i)
    if (secateur_probe_call(index, made->arrays) != 0) return -1;
  return now() - start;
}

/* How many calls fill a batch: doubled until they do. */
static int fill_batch(int32_t index, trial *made) {
  for (made->calls = 1; made->calls < 1 << 24; made->calls *= 2) {
    double seconds = time_calls(index, made, made->calls);
    if (seconds < 0) return 0;
    if (seconds >= batch_seconds) break;
  }
  return 1;
}

/* All kernels take turns, so that what disturbs the device for a while disturbs all alike. */
static int time_kernels(trial *trials, int rounds) {
  for (int32_t i = 0; i < secateur_probe_count; ++i)
    if (!prepare(&secateur_probes[i], &trials[i], rounds)) {
      fprintf(stderr, "there is not enough memory\n");
      return 0;
    }
  for (int round = -1; round < rounds; ++round)
    for (int32_t i = 0; i < secateur_probe_count; ++i) {
      int good = round >= 0 || fill_batch(i, &trials[i]);
      double seconds = 0;
      if (good && round >= 0) {
        good = time_calls(i, &trials[i], 1) >= 0;
        if (good) seconds = time_calls(i, &trials[i], trials[i].calls);
      }
      if (!good || seconds < 0) {
        fprintf(stderr, "kernel '%s' failed\n", secateur_probes[i].name);
        return 0;
      }
      if (round >= 0) trials[i].seconds[round] = seconds / trials[i].calls;
    }
  return 1;
}

static int write_kernels(FILE *file, int rounds) {
  trial *trials = calloc((size_t)secateur_probe_count, sizeof *trials);
  int good = trials && time_kernels(trials, rounds);
  if (good) {
    fprintf(file, " \"kernels\": [\n");
    for (int32_t i = 0; i < secateur_probe_count; ++i) {
      fprintf(file, "  {\"name\": ");
      write_text(file, secateur_probes[i].name);
      fprintf(file, ", \"multiply_adds\": %.0f, \"calls\": %lld, ", secateur_probes[i].multiply_adds,
              (long long)trials[i].calls * rounds);
      write_seconds(file, trials[i].seconds, rounds);
      fprintf(file, "}%s\n", i + 1 < secateur_probe_count ? "," : "");
    }
    fprintf(file, " ]\n}\n");
  }
  for (int32_t i = 0; trials && i < secateur_probe_count; ++i) {
    free(trials[i].block);
    free(trials[i].arrays);
    free(trials[i].seconds);
  }
  free(trials);
  return good;
}

int main(int count, char **words) {
  const char *output = 0;
  int runs = 30, rounds = 25;
  model_options options = {0};
  for (int i = 1; i < count; i += 2) {
    const char *value = i + 1 < count ? words[i + 1] : 0;
    char option = words[i][0] == '-' && words[i][1] && !words[i][2] && value ? words[i][1] : 0;
    if (option == 'w') options.weights_file = value;
    else if (option == 'o') output = value;
    else if (option == 't') options.threads = atoi(value);
    else if (option == 'n' && atoi(value) > 0) runs = atoi(value);
    else if (option == 'r' && atoi(value) > 0 && atoi(value) <= MOST_ROUNDS) rounds = atoi(value);
    else {
      fprintf(stderr, usage, words[0]);
      return 2;
    }
  }
  FILE *file = output ? fopen(output, "w") : stdout;
  char name[128];
  if (!file) {
    fprintf(stderr, "'%s' cannot be written\n", output);
    return 1;
  }
  processor(name, sizeof name);
  fprintf(file, "{\n%s \"processor\": ", secateur_probe_header);
  write_text(file, name);
  fprintf(file, ",\n");
  int good = time_model(&options, runs, file) && write_kernels(file, rounds);
  int written = !ferror(file);
  if (fclose(file) != 0) written = 0;
  if (good && !written) fprintf(stderr, "'%s' cannot be written\n", output ? output : "standard output");
  if (output && !(good && written)) remove(output);
  if (good && written && output) fprintf(stderr, "%s: secateur compile ... --profile %s\n", output, output);
  return good && written ? 0 : 1;
}
