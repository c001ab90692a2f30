/* The thread pool of WebAssembly with a shared memory: what it has in place of launch.c.

   One pool a memory. The loader makes the threads (threads.js): each instantiates the module on the same memory, sets
   __stack_pointer to a stack of its own and calls secateur_worker, which returns when the pool is destroyed. tasks.h
   tells how a loop is shared. A thread with nothing to do spins for about a tenth of a millisecond, then it sleeps until
   the next loop. The caller does the same at the end of a loop, if it may: a page's own thread must not sleep, and spins
   until the others are done with the tasks that they have begun. The loader reports a thread that trapped, whose tasks
   would be waited for in vain. */
#include "parallel.h"
#include "tasks.h"

enum {
  MOST_THREADS = 64, /* as in index.js */
  SPINS = 100000,
  RECHECK = 100000000 /* nanoseconds after which a caller looks whether a thread was lost */
};

struct secateur_pool {
  task_loop loop;
  atomic_int asleep;  /* threads that wait for the next loop */
  atomic_int waiting; /* the caller waits for the end of one */
  atomic_int stop;
  atomic_int lost;
  int32_t may_wait;
  task_share shares[MOST_THREADS];
};

static secateur_pool the_pool;
/* The pool in effect; not of a thread, since one thread alone calls a model. */
static secateur_pool *current;

static void wait(_Atomic uint32_t *word, uint32_t value, int64_t nanoseconds) {
  __builtin_wasm_memory_atomic_wait32((int *)word, (int)value, nanoseconds);
}

static void wake(_Atomic uint32_t *word) { __builtin_wasm_memory_atomic_notify((int *)word, MOST_THREADS); }

/* The end of the loop has come, or never will. */
static int ended(secateur_pool *pool, int32_t count) {
  return atomic_load(&pool->loop.finished) == count || atomic_load(&pool->lost);
}

static void take_part(secateur_pool *pool, int32_t index) {
  if (take_tasks(&pool->loop, index) && atomic_load(&pool->waiting)) wake((_Atomic uint32_t *)&pool->loop.finished);
}

static void finish(secateur_pool *pool, int32_t count) {
  for (int i = 0; i < SPINS; i += pool->may_wait)
    if (ended(pool, count)) return;
  atomic_store(&pool->waiting, 1);
  while (!ended(pool, count)) {
    int32_t finished = atomic_load(&pool->loop.finished);
    if (finished < count) wait((_Atomic uint32_t *)&pool->loop.finished, (uint32_t)finished, RECHECK);
  }
  atomic_store(&pool->waiting, 0);
}

static int launch(parallel_lambda lambda, void *data, int tasks) {
  secateur_pool *pool = current;
  if (!pool) return run_inline(lambda, data, tasks);
  if (atomic_load(&pool->lost)) return -1;
  current = 0; /* a loop inside a loop runs inline */
  int32_t count = open_loop(&pool->loop, lambda, data, tasks);
  if (atomic_load(&pool->asleep)) wake(&pool->loop.number);
  take_part(pool, 0);
  finish(pool, count);
  current = pool;
  return atomic_load(&pool->loop.failed) || atomic_load(&pool->lost) ? -1 : 0;
}

int (*__TVMBackendParallelLaunch)(parallel_lambda, void *, int) = launch;

secateur_pool *secateur_pool_enter(secateur_pool *pool) {
  secateur_pool *previous = current;
  current = pool;
  return previous;
}

/* The pool of this memory; null for more threads than there is room for. */
secateur_pool *secateur_pool_create(int32_t threads) {
  if (threads < 1 || threads > MOST_THREADS) return 0;
  the_pool.loop.threads = threads;
  the_pool.loop.shares = the_pool.shares;
  return &the_pool;
}

/* Whether (1 or 0) the calling thread may sleep. */
void secateur_pool_may_wait(secateur_pool *pool, int32_t may_wait) { pool->may_wait = may_wait; }

/* A thread was lost: loops end with an error, now and from now on. */
void secateur_pool_lose(secateur_pool *pool) {
  atomic_store(&pool->lost, 1);
  wake((_Atomic uint32_t *)&pool->loop.finished);
}

void secateur_pool_destroy(secateur_pool *pool) {
  atomic_store(&pool->stop, 1);
  atomic_fetch_add(&pool->loop.number, 1);
  wake(&pool->loop.number);
}

/* Thread `index`, from 1 on, until the pool is destroyed. */
void secateur_worker(secateur_pool *pool, int32_t index) {
  for (;;) {
    uint32_t seen = atomic_load(&pool->loop.number);
    if (atomic_load(&pool->stop)) return;
    take_part(pool, index);
    for (int i = 0; i < SPINS && atomic_load(&pool->loop.number) == seen; ++i) {
    }
    if (atomic_load(&pool->loop.number) != seen) continue;
    atomic_fetch_add(&pool->asleep, 1);
    wait(&pool->loop.number, seen, -1); /* not if the number has changed */
    atomic_fetch_sub(&pool->asleep, 1);
  }
}
