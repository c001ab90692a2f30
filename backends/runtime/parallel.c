/* A small thread pool behind TVM's parallel-launch interface (tvm/runtime/c_backend_api.h).

   Kernels reach it through the pointer variable __TVMBackendParallelLaunch. The pool in effect belongs to the
   calling thread: secateur_run enters the caller's pool and leaves it again. Without one, or with one thread,
   a parallel loop runs inline; tasks.h tells how a loop is shared. Workers stay awake from secateur_run's start to a
   tenth of a millisecond after its end. */
#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "parallel.h"
#include "tasks.h"

enum {
  POLITE = 5000, /* pauses, about 0.1 ms, between offers of the processor to others */
  LINGER = 5000 /* pauses before a thread that waits for a run, or for the end of a loop, sleeps */
};

struct secateur_pool {
  pthread_t *workers;
  struct worker *arguments;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  pthread_cond_t done;
  atomic_int waiting; /* the caller waits on `done` */
  atomic_int active;  /* a run is in progress: workers do not sleep */
  atomic_int stop;
  task_loop loop;
};

struct worker {
  secateur_pool *pool;
  int32_t index;
};

/* The calling thread's pool. Bionic has thread-local variables from API level 29 on only: there, a key. */
#if defined(SECATEUR_THREAD_KEY)
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int has_key;

static void make_key(void) { has_key = pthread_key_create(&key, 0) == 0; }

static secateur_pool *get_current(void) {
  pthread_once(&once, make_key);
  return has_key ? pthread_getspecific(key) : 0;
}

static void set_current(secateur_pool *pool) {
  pthread_once(&once, make_key);
  if (has_key) pthread_setspecific(key, pool);
}
#else
static _Thread_local secateur_pool *current;

static secateur_pool *get_current(void) { return current; }
static void set_current(secateur_pool *pool) { current = pool; }
#endif

static void pause_briefly(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

static void take_part(secateur_pool *pool, int32_t index) {
  if (take_tasks(&pool->loop, index) && atomic_load(&pool->waiting)) {
    pthread_mutex_lock(&pool->lock);
    pthread_cond_signal(&pool->done);
    pthread_mutex_unlock(&pool->lock);
  }
}

static void *work(void *argument) {
  secateur_pool *pool = ((struct worker *)argument)->pool;
  int32_t index = ((struct worker *)argument)->index;
  for (;;) {
    uint32_t seen = atomic_load(&pool->loop.number);
    take_part(pool, index);
    for (int turn = 1, idle = 0; atomic_load(&pool->loop.number) == seen && idle < LINGER; ++turn) {
      idle = atomic_load(&pool->active) ? 0 : idle + 1;
      pause_briefly();
      if (turn % POLITE == 0) sched_yield();
    }
    if (atomic_load(&pool->loop.number) == seen) {
      pthread_mutex_lock(&pool->lock);
      while (atomic_load(&pool->loop.number) == seen && !atomic_load(&pool->active) && !atomic_load(&pool->stop))
        pthread_cond_wait(&pool->wake, &pool->lock);
      pthread_mutex_unlock(&pool->lock);
    }
    if (atomic_load(&pool->stop)) return 0;
  }
}

static int launch(parallel_lambda lambda, void *data, int tasks) {
  secateur_pool *pool = get_current();
  if (!pool || pool->loop.threads == 1) return run_inline(lambda, data, tasks);
  set_current(0); /* a loop inside a loop runs inline */
  int32_t count = open_loop(&pool->loop, lambda, data, tasks);
  take_part(pool, 0);
  for (int i = 0; i < LINGER && atomic_load(&pool->loop.finished) < count; ++i) pause_briefly();
  if (atomic_load(&pool->loop.finished) < count) {
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->waiting, 1);
    while (atomic_load(&pool->loop.finished) < count) pthread_cond_wait(&pool->done, &pool->lock);
    atomic_store(&pool->waiting, 0);
    pthread_mutex_unlock(&pool->lock);
  }
  set_current(pool);
  return atomic_load(&pool->loop.failed) ? -1 : 0;
}

int (*__TVMBackendParallelLaunch)(parallel_lambda, void *, int) = launch;

static void set_active(secateur_pool *pool, int active) {
  if (!pool || pool->loop.threads == 1) return;
  if (!active) {
    atomic_store(&pool->active, 0);
    return;
  }
  pthread_mutex_lock(&pool->lock);
  atomic_store(&pool->active, 1);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
}

secateur_pool *secateur_pool_enter(secateur_pool *pool) {
  secateur_pool *previous = get_current();
  if (previous != pool) {
    set_active(previous, 0);
    set_active(pool, 1);
  }
  set_current(pool);
  return previous;
}

static void *aligned_zeros(size_t bytes) {
  void *memory;
  return posix_memalign(&memory, LINE, bytes) == 0 ? memset(memory, 0, bytes) : 0;
}

static void release(secateur_pool *pool) {
  free(pool->workers);
  free(pool->arguments);
  free(pool->loop.shares);
  free(pool);
}

static void stop_workers(secateur_pool *pool, int32_t started) {
  pthread_mutex_lock(&pool->lock);
  atomic_store(&pool->stop, 1);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
  for (int32_t i = 0; i < started; ++i) pthread_join(pool->workers[i], 0);
  pthread_cond_destroy(&pool->done);
  pthread_cond_destroy(&pool->wake);
  pthread_mutex_destroy(&pool->lock);
  release(pool);
}

secateur_pool *secateur_pool_create(int32_t threads) {
  if (threads < 1 || threads > MOST_TASKS / TASKS_PER_THREAD) return 0;
  secateur_pool *pool = aligned_zeros(sizeof *pool);
  if (!pool) return 0;
  pool->loop.threads = threads;
  pool->workers = calloc((size_t)threads, sizeof *pool->workers);
  pool->arguments = calloc((size_t)threads, sizeof *pool->arguments);
  pool->loop.shares = aligned_zeros((size_t)threads * sizeof *pool->loop.shares);
  if (!pool->workers || !pool->arguments || !pool->loop.shares) {
    release(pool);
    return 0;
  }
  pthread_mutex_init(&pool->lock, 0);
  pthread_cond_init(&pool->wake, 0);
  pthread_cond_init(&pool->done, 0);
  for (int32_t i = 0; i < threads - 1; ++i) {
    pool->arguments[i] = (struct worker){pool, i + 1};
    if (pthread_create(&pool->workers[i], 0, work, &pool->arguments[i]) != 0) {
      stop_workers(pool, i);
      return 0;
    }
  }
  return pool;
}

void secateur_pool_destroy(secateur_pool *pool) {
  if (pool) stop_workers(pool, pool->loop.threads - 1);
}
