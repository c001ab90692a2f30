/* The C interface of a compiled model: checks first, then the kernels. See model.h. */
#define _POSIX_C_SOURCE 200809L

#include "model.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "parallel.h"
#include "tables.h"

enum {
  LINE = 64,     /* alignment of weights and activations */
  HEADER = 64,   /* bytes before the weights in their file */
  VERSION = 1,   /* of that file */
  MESSAGE = 200, /* bytes of an instance's last error */
  CRC_TABLES = 8
};

int32_t secateur_run(const void *const *inputs, void *const *outputs, const void *weights, void *arena,
                     secateur_pool *pool);

struct model_instance {
  const char *weights;
  char *arena;
  secateur_pool *pool;
  void *allocated; /* to be freed; null in the caller's memory */
  atomic_flag running;
  char error[MESSAGE];
};

int32_t model_input_count(void) { return INPUTS; }
int32_t model_output_count(void) { return OUTPUTS; }
const model_tensor *model_input(int32_t index) { return index >= 0 && index < INPUTS ? &inputs[index] : 0; }
const model_tensor *model_output(int32_t index) { return index >= 0 && index < OUTPUTS ? &outputs[index] : 0; }

const char *model_status_text(model_status status) {
  static const char *const texts[] = {"ok",     "bad argument", "out of memory", "unreadable file", "bad weights",
                                      "no CPU", "bad buffer",   "no threads",    "busy",            "failed"};
  return (unsigned)status < sizeof texts / sizeof *texts ? texts[status] : "unknown status";
}

#if defined(__GNUC__)
__attribute__((format(printf, 4, 5)))
#endif
static model_status fail(model_status status, char *message, size_t bytes, const char *format, ...) {
  if (message && bytes) {
    va_list values;
    va_start(values, format);
    vsnprintf(message, bytes, format, values);
    va_end(values);
  }
  return status;
}

static size_t rounded(size_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

static char *aligned(void *memory) {
  uintptr_t address = (uintptr_t)memory;
  return (char *)memory + (LINE - address % LINE) % LINE;
}

/* --- The processor ------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
static const char *missing_instructions(void) {
  if (cpu_level() >= CPU_LEVEL) return 0;
  return CPU_LEVEL == 4 ? "AVX-512 (x86-64-v4)" : "AVX2 and FMA (x86-64-v3)";
}
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

static const char *missing_instructions(void) {
  const unsigned long plain = 1 << 0 | 1 << 1, half = 1 << 9 | 1 << 10; /* HWCAP_FP, _ASIMD; HWCAP_FPHP, _ASIMDHP */
  const unsigned long found = getauxval(16 /* AT_HWCAP */);
  if ((found & plain) != plain) return "NEON";
  return HALF_PRECISION && (found & half) != half ? "half-precision arithmetic (Armv8.2 FEAT_FP16)" : 0;
}
#elif defined(__APPLE__) && HALF_PRECISION
int sysctlbyname(const char *, void *, size_t *, void *, size_t); /* sys/sysctl.h; not of POSIX, so not shown here */

static const char *missing_instructions(void) {
  int found = 0;
  size_t bytes = sizeof found; /* the older of the two names of it, which systems still know */
  if (sysctlbyname("hw.optional.neon_fp16", &found, &bytes, 0, 0) == 0 && found) return 0;
  return "half-precision arithmetic (Armv8.2 FEAT_FP16)";
}
#else
static const char *missing_instructions(void) { return 0; } /* NEON is part of every Apple processor of this kind */
#endif

/* --- The weights --------------------------------------------------------------------------------------------- */

/* CRC-32 as in zlib and IEEE 802.3, eight bytes a step. */
static uint32_t crc32_of(const unsigned char *data, size_t bytes) {
  uint32_t table[CRC_TABLES][256];
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xedb88320u : 0);
    table[0][i] = value;
  }
  for (int t = 1; t < CRC_TABLES; ++t)
    for (int i = 0; i < 256; ++i) table[t][i] = table[t - 1][i] >> 8 ^ table[0][table[t - 1][i] & 255];
  uint32_t crc = 0xffffffffu;
  for (; bytes >= 8; data += 8, bytes -= 8) {
    uint32_t low, high;
    memcpy(&low, data, 4);
    memcpy(&high, data + 4, 4);
    low ^= crc;
    crc = table[7][low & 255] ^ table[6][low >> 8 & 255] ^ table[5][low >> 16 & 255] ^ table[4][low >> 24] ^
          table[3][high & 255] ^ table[2][high >> 8 & 255] ^ table[1][high >> 16 & 255] ^ table[0][high >> 24];
  }
  for (; bytes; ++data, --bytes) crc = crc >> 8 ^ table[0][(crc ^ *data) & 255];
  return ~crc;
}

static model_status check_header(const unsigned char *header, char *message, size_t room) {
  uint32_t version, crc;
  uint64_t bytes;
  memcpy(&version, header + 8, 4);
  memcpy(&crc, header + 12, 4);
  memcpy(&bytes, header + 16, 8);
  if (memcmp(header, "SECATEUR", 8) != 0)
    return fail(MODEL_E_WEIGHTS, message, room, "these are no weights: they do not begin with SECATEUR");
  if (version != VERSION)
    return fail(MODEL_E_WEIGHTS, message, room, "the weights have format version %u; this code reads %d",
                (unsigned)version, VERSION);
  if (bytes != WEIGHTS_BYTES || crc != WEIGHTS_CRC)
    return fail(MODEL_E_WEIGHTS, message, room, "the weights belong to another model or another build of this one");
  return MODEL_OK;
}

static model_status check_payload(const void *payload, char *message, size_t room) {
  if (crc32_of(payload, WEIGHTS_BYTES) == WEIGHTS_CRC) return MODEL_OK;
  return fail(MODEL_E_WEIGHTS, message, room, "the weights were altered: their checksum is wrong");
}

/* The weights of a file, into `memory` of WEIGHTS_BYTES. */
static model_status read_weights(const char *path, char *memory, char *message, size_t room) {
  unsigned char header[HEADER];
  FILE *file = fopen(path, "rb");
  if (!file) return fail(MODEL_E_FILE, message, room, "the weights file '%s' cannot be opened", path);
  size_t found = fread(header, 1, HEADER, file);
  model_status status = MODEL_OK;
  if (found == HEADER) {
    status = check_header(header, message, room);
    if (status == MODEL_OK) found += fread(memory, 1, WEIGHTS_BYTES, file);
  }
  if (status == MODEL_OK && ferror(file))
    status = fail(MODEL_E_FILE, message, room, "the weights file '%s' cannot be read", path);
  else if (status == MODEL_OK && found != HEADER + (size_t)WEIGHTS_BYTES)
    status = fail(MODEL_E_WEIGHTS, message, room, "the weights are cut short: %zu bytes of %zu", found,
                  HEADER + (size_t)WEIGHTS_BYTES);
  else if (status == MODEL_OK && fgetc(file) != EOF)
    status = fail(MODEL_E_WEIGHTS, message, room, "the weights file '%s' is too long", path);
  fclose(file);
  return status == MODEL_OK ? check_payload(memory, message, room) : status;
}

/* The weights in a block of memory that holds a whole weights file. */
static model_status find_weights(const void *block, size_t bytes, const char **weights, char *message, size_t room) {
  if ((uintptr_t)block % LINE)
    return fail(MODEL_E_ARGUMENT, message, room, "the block of weights is not aligned to %d bytes", LINE);
  if (bytes >= HEADER) {
    model_status status = check_header(block, message, room);
    if (status != MODEL_OK) return status;
  }
  if (bytes != HEADER + (size_t)WEIGHTS_BYTES)
    return fail(MODEL_E_WEIGHTS, message, room, "the weights have %zu bytes instead of %zu", bytes,
                HEADER + (size_t)WEIGHTS_BYTES);
  *weights = (const char *)block + HEADER;
  return check_payload(*weights, message, room);
}

#if EMBEDDED
extern const unsigned char secateur_weights[];
#endif

/* --- Instances ----------------------------------------------------------------------------------------------- */

size_t model_memory_bytes(const model_options *options) {
  size_t weights = options && options->weights_file ? rounded(WEIGHTS_BYTES) : 0;
  return LINE + rounded(sizeof(model_instance)) + rounded(ARENA_BYTES) + weights;
}

static model_status check_options(const model_options *options, char *message, size_t room) {
  if (options->weights_file && options->weights)
    return fail(MODEL_E_ARGUMENT, message, room, "weights_file and weights are both given");
  if (!EMBEDDED && !options->weights_file && !options->weights)
    return fail(MODEL_E_ARGUMENT, message, room, "no weights are given, and none were compiled in");
  if (options->threads < 0) return fail(MODEL_E_ARGUMENT, message, room, "threads is negative");
  const char *missing = missing_instructions();
  if (missing) return fail(MODEL_E_CPU, message, room, "this processor lacks %s", missing);
  if (options->memory && options->memory_bytes < model_memory_bytes(options))
    return fail(MODEL_E_MEMORY, message, room, "the block of memory has %zu bytes; the instance needs %zu",
                options->memory_bytes, model_memory_bytes(options));
  return MODEL_OK;
}

static model_status prepare(model_instance *self, const model_options *options, char *message, size_t room) {
  char *memory = (char *)self + rounded(sizeof *self);
  self->arena = memory;
  model_status status;
  if (options->weights_file) {
    self->weights = memory + rounded(ARENA_BYTES);
    status = read_weights(options->weights_file, memory + rounded(ARENA_BYTES), message, room);
  } else if (options->weights) {
    status = find_weights(options->weights, options->weights_bytes, &self->weights, message, room);
  } else {
#if EMBEDDED
    self->weights = (const char *)secateur_weights;
#endif
    status = check_payload(self->weights, message, room);
  }
  if (status == MODEL_OK && options->threads > 1) {
    self->pool = secateur_pool_create(options->threads);
    if (!self->pool)
      status = fail(MODEL_E_THREADS, message, room, "%d threads cannot be started", (int)options->threads);
  }
  return status;
}

model_status model_create(const model_options *options, model_instance **instance, char *message, size_t room) {
  if (message && room) *message = 0;
  if (instance) *instance = 0;
  if (!options || !instance)
    return fail(MODEL_E_ARGUMENT, message, room, "%s is null", instance ? "options" : "instance");
  model_status status = check_options(options, message, room);
  if (status != MODEL_OK) return status;
  void *allocated = options->memory ? 0 : malloc(model_memory_bytes(options));
  if (!options->memory && !allocated)
    return fail(MODEL_E_MEMORY, message, room, "out of memory: %zu bytes are needed", model_memory_bytes(options));
  model_instance *self = (model_instance *)aligned(options->memory ? options->memory : allocated);
  memset(self, 0, sizeof *self);
  atomic_flag_clear(&self->running);
  self->allocated = allocated;
  status = prepare(self, options, message, room);
  if (status != MODEL_OK) {
    free(allocated);
    return status;
  }
  *instance = self;
  return MODEL_OK;
}

void model_destroy(model_instance *self) {
  if (!self) return;
  secateur_pool_destroy(self->pool);
  self->pool = 0;
  free(self->allocated);
}

const char *model_last_error(const model_instance *self) { return self ? self->error : "the instance is null"; }

/* --- Runs ---------------------------------------------------------------------------------------------------- */

static size_t element_bytes(model_dtype dtype) {
  switch (dtype) {
    case MODEL_UINT8:
    case MODEL_INT8:
    case MODEL_BOOL: return 1;
    case MODEL_UINT16:
    case MODEL_INT16:
    case MODEL_FLOAT16: return 2;
    case MODEL_INT64:
    case MODEL_UINT64:
    case MODEL_FLOAT64: return 8;
    default: return 4;
  }
}

static model_status check_buffer(model_instance *self, const char *kind, const model_tensor *tensor, const void *data,
                                 size_t bytes) {
  if (!data && tensor->bytes) return fail(MODEL_E_BUFFER, self->error, MESSAGE, "%s '%s' is null", kind, tensor->name);
  if (bytes != tensor->bytes)
    return fail(MODEL_E_BUFFER, self->error, MESSAGE, "%s '%s' has %zu bytes instead of %zu", kind, tensor->name, bytes,
                tensor->bytes);
  if ((uintptr_t)data % element_bytes(tensor->dtype))
    return fail(MODEL_E_BUFFER, self->error, MESSAGE, "%s '%s' is not aligned to its elements", kind, tensor->name);
  return MODEL_OK;
}

static int overlap(const void *a, size_t a_bytes, const void *b, size_t b_bytes) {
  uintptr_t x = (uintptr_t)a, y = (uintptr_t)b;
  return a_bytes && b_bytes && x < y + b_bytes && y < x + a_bytes;
}

static model_status check_overlaps(model_instance *self, const void *const *in, void *const *out) {
  for (int32_t i = 0; i < OUTPUTS; ++i) {
    for (int32_t j = 0; j < INPUTS; ++j)
      if (overlap(out[i], outputs[i].bytes, in[j], inputs[j].bytes))
        return fail(MODEL_E_BUFFER, self->error, MESSAGE, "output '%s' overlaps input '%s'", outputs[i].name,
                    inputs[j].name);
    for (int32_t j = 0; j < i; ++j)
      if (overlap(out[i], outputs[i].bytes, out[j], outputs[j].bytes))
        return fail(MODEL_E_BUFFER, self->error, MESSAGE, "output '%s' overlaps output '%s'", outputs[i].name,
                    outputs[j].name);
  }
  return MODEL_OK;
}

static model_status check_buffers(model_instance *self, const void *const *in, const size_t *in_bytes,
                                  void *const *out, const size_t *out_bytes) {
  if ((INPUTS && (!in || !in_bytes)) || (OUTPUTS && (!out || !out_bytes)))
    return fail(MODEL_E_ARGUMENT, self->error, MESSAGE, "an array of buffers or of sizes is null");
  model_status status = MODEL_OK;
  for (int32_t i = 0; i < INPUTS && status == MODEL_OK; ++i)
    status = check_buffer(self, "input", &inputs[i], in[i], in_bytes[i]);
  for (int32_t i = 0; i < OUTPUTS && status == MODEL_OK; ++i)
    status = check_buffer(self, "output", &outputs[i], out[i], out_bytes[i]);
  return status == MODEL_OK ? check_overlaps(self, in, out) : status;
}

model_status model_run(model_instance *self, const void *const *in, const size_t *in_bytes, void *const *out,
                       const size_t *out_bytes) {
  if (!self) return MODEL_E_ARGUMENT;
  if (atomic_flag_test_and_set(&self->running)) return MODEL_E_BUSY;
  self->error[0] = 0;
  model_status status = check_buffers(self, in, in_bytes, out, out_bytes);
  if (status == MODEL_OK && secateur_run(in, out, self->weights, self->arena, self->pool) != 0)
    status = fail(MODEL_E_RUN, self->error, MESSAGE, "a kernel failed");
  atomic_flag_clear(&self->running);
  return status;
}
