/* A small thread pool behind TVM's parallel-launch interface (tvm/runtime/c_backend_api.h).

   Kernels reach it through the pointer variable __TVMBackendParallelLaunch. The pool in effect belongs to the
   calling thread: secateur_run enters the caller's pool and leaves it again. Without one, or with one thread,
   a parallel loop runs inline. Workers spin for a few microseconds between the loops of one run, then sleep. */

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "parallel.h"

enum { SPIN = 4000 };

typedef struct {
  void *sync_handle;
  int32_t num_task;
} parallel_env;

typedef int (*parallel_lambda)(int task, parallel_env *env, void *data);

struct secateur_pool {
  int32_t threads;
  pthread_t *workers;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  pthread_cond_t done;
  atomic_uint generation;
  atomic_int pending;
  atomic_int failed;
  int stop;
  parallel_lambda lambda;
  void *data;
  int32_t tasks;
};

typedef struct {
  secateur_pool *pool;
  int32_t index;
} worker_argument;

static _Thread_local secateur_pool *current;

static void pause_briefly(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

/* Thread `index` takes tasks index, index + threads, ...: the same work in the same place on every run. */
static void take_tasks(secateur_pool *pool, int32_t index) {
  parallel_env env = {0, pool->tasks};
  for (int32_t task = index; task < pool->tasks; task += pool->threads) {
    if (pool->lambda(task, &env, pool->data) != 0) atomic_store(&pool->failed, 1);
  }
}

static void *work(void *argument) {
  worker_argument mine = *(worker_argument *)argument;
  secateur_pool *pool = mine.pool;
  free(argument);
  unsigned seen = 0;
  for (;;) {
    for (int i = 0; i < SPIN && atomic_load_explicit(&pool->generation, memory_order_acquire) == seen; ++i)
      pause_briefly();
    if (atomic_load_explicit(&pool->generation, memory_order_acquire) == seen) {
      pthread_mutex_lock(&pool->lock);
      while (atomic_load(&pool->generation) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
      pthread_mutex_unlock(&pool->lock);
    }
    ++seen;
    if (pool->stop) return 0;
    take_tasks(pool, mine.index);
    if (atomic_fetch_sub(&pool->pending, 1) == 1) {
      pthread_mutex_lock(&pool->lock);
      pthread_cond_signal(&pool->done);
      pthread_mutex_unlock(&pool->lock);
    }
  }
}

static void start_generation(secateur_pool *pool) {
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add(&pool->generation, 1);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
}

static int launch(parallel_lambda lambda, void *data, int tasks) {
  secateur_pool *pool = current;
  if (!pool || pool->threads == 1) {
    parallel_env env = {0, tasks > 0 ? tasks : 1};
    int status = 0;
    for (int32_t task = 0; task < env.num_task; ++task) status |= lambda(task, &env, data);
    return status ? -1 : 0;
  }
  current = 0; /* a loop inside a loop runs inline */
  pool->lambda = lambda;
  pool->data = data;
  pool->tasks = tasks > 0 ? tasks : pool->threads;
  atomic_store(&pool->failed, 0);
  atomic_store(&pool->pending, pool->threads - 1);
  start_generation(pool);
  take_tasks(pool, 0);
  for (int i = 0; i < SPIN && atomic_load_explicit(&pool->pending, memory_order_acquire) > 0; ++i) pause_briefly();
  pthread_mutex_lock(&pool->lock);
  while (atomic_load(&pool->pending) > 0) pthread_cond_wait(&pool->done, &pool->lock);
  pthread_mutex_unlock(&pool->lock);
  current = pool;
  return atomic_load(&pool->failed) ? -1 : 0;
}

int (*__TVMBackendParallelLaunch)(parallel_lambda, void *, int) = launch;

secateur_pool *secateur_pool_enter(secateur_pool *pool) {
  secateur_pool *previous = current;
  current = pool;
  return previous;
}

static void stop_workers(secateur_pool *pool, int32_t started) {
  pool->stop = 1;
  start_generation(pool);
  for (int32_t i = 0; i < started; ++i) pthread_join(pool->workers[i], 0);
  pthread_cond_destroy(&pool->done);
  pthread_cond_destroy(&pool->wake);
  pthread_mutex_destroy(&pool->lock);
  free(pool->workers);
  free(pool);
}

secateur_pool *secateur_pool_create(int32_t threads) {
  if (threads < 1) return 0;
  secateur_pool *pool = calloc(1, sizeof *pool);
  if (!pool) return 0;
  pool->threads = threads;
  pthread_mutex_init(&pool->lock, 0);
  pthread_cond_init(&pool->wake, 0);
  pthread_cond_init(&pool->done, 0);
  pool->workers = calloc((size_t)threads, sizeof *pool->workers);
  for (int32_t i = 0; pool->workers && i < threads - 1; ++i) {
    worker_argument *argument = malloc(sizeof *argument);
    if (argument) *argument = (worker_argument){pool, i + 1};
    if (!argument || pthread_create(&pool->workers[i], 0, work, argument) != 0) {
      free(argument);
      stop_workers(pool, i);
      return 0;
    }
  }
  if (!pool->workers) {
    stop_workers(pool, 0);
    return 0;
  }
  return pool;
}

void secateur_pool_destroy(secateur_pool *pool) {
  if (pool) stop_workers(pool, pool->threads - 1);
}
