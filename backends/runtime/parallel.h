/* The thread pool of a compiled model; see parallel.c. */
#ifndef SECATEUR_PARALLEL_H
#define SECATEUR_PARALLEL_H

#include <stdint.h>

typedef struct secateur_pool secateur_pool;

/* A pool of `threads` threads, the caller's own among them; null when it cannot be made. */
secateur_pool *secateur_pool_create(int32_t threads);
void secateur_pool_destroy(secateur_pool *pool);

/* Make `pool` (or none) the calling thread's pool; returns the one before. */
secateur_pool *secateur_pool_enter(secateur_pool *pool);

#endif
