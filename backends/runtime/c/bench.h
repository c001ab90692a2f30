/* The kernels that bench.c times to learn what a processor's cost, and what each call of them needs.
   libmodel-probes.a holds them; they come from the schedules that the model was compiled from. */
#ifndef MODEL_BENCH_H
#define MODEL_BENCH_H

#include <stddef.h>
#include <stdint.h>

/* offset: where its content stands in secateur_probe_data; negative: numbers of any kind. */
typedef struct {
  size_t bytes;
  int64_t offset;
} secateur_probe_array;

/* multiply_adds: of scalars, those with zeros left out. */
typedef struct {
  const char *name;
  double multiply_adds;
  int32_t count;
  const secateur_probe_array *arrays;
} secateur_probe;

extern const secateur_probe secateur_probes[];
extern const int32_t secateur_probe_count;
extern const unsigned char secateur_probe_data[];
extern const char secateur_probe_header[]; /* the first members of a profile, in JSON */

/* Calls a kernel with its arrays, aligned to 64 bytes; 0 for success. */
int32_t secateur_probe_call(int32_t index, void *const *arrays);

#endif
