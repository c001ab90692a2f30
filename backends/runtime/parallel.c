/* A small thread pool behind TVM's parallel-launch interface (tvm/runtime/c_backend_api.h).

   Kernels reach it through the pointer variable __TVMBackendParallelLaunch. The pool in effect belongs to the
   calling thread: secateur_run enters the caller's pool and leaves it again. Without one, or with one thread,
   a parallel loop runs inline. A loop is cut into a fixed number of tasks, which threads claim as they come, the
   caller among them: a thread that wakes late delays nobody, and results do not depend on who did what.
   Workers stay awake, yielding to others, from secateur_run's start to a tenth of a millisecond after its end. */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "parallel.h"

enum {
  SPIN = 1000,   /* pauses before the processor is offered to others */
  LINGER = 5000, /* pauses after a run before a worker sleeps: about 0.1 ms */
  TASKS_PER_THREAD = 4
};

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
  atomic_int waiting; /* the caller waits on `done` */
  atomic_int active;  /* a run is in progress: workers do not sleep */
  atomic_int stop;
  /* The loop in progress. `state` is its number in the high half and the next task to claim in the low half: a
     claim is one compare-and-swap, which fails if the loop is no longer the one that the fields were read from. */
  _Atomic uint64_t state;
  _Atomic(parallel_lambda) lambda;
  _Atomic(void *) data;
  atomic_int tasks;
  atomic_int finished;
  atomic_int failed;
};

static _Thread_local secateur_pool *current;

static void pause_briefly(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

/* Claim and run tasks until none is left; returns the state that had none. */
static uint64_t take_tasks(secateur_pool *pool) {
  uint64_t state = atomic_load(&pool->state);
  for (;;) {
    int32_t task = (int32_t)(uint32_t)state;
    int32_t tasks = atomic_load(&pool->tasks);
    parallel_lambda lambda = atomic_load(&pool->lambda);
    void *data = atomic_load(&pool->data);
    if (task >= tasks) {
      uint64_t now = atomic_load(&pool->state);
      if (now == state) return state;
      state = now;
      continue;
    }
    if (!atomic_compare_exchange_strong(&pool->state, &state, state + 1)) continue;
    parallel_env env = {0, tasks};
    if (lambda(task, &env, data) != 0) atomic_store(&pool->failed, 1);
    if (atomic_fetch_add(&pool->finished, 1) == tasks - 1 && atomic_load(&pool->waiting)) {
      pthread_mutex_lock(&pool->lock);
      pthread_cond_signal(&pool->done);
      pthread_mutex_unlock(&pool->lock);
    }
    state = atomic_load(&pool->state);
  }
}

static void *work(void *argument) {
  secateur_pool *pool = argument;
  for (;;) {
    uint64_t seen = take_tasks(pool);
    for (int turn = 1, idle = 0; atomic_load(&pool->state) == seen && idle < LINGER; ++turn) {
      idle = atomic_load(&pool->active) ? 0 : idle + 1;
      pause_briefly();
      if (turn % SPIN == 0) sched_yield();
    }
    if (atomic_load(&pool->state) == seen) {
      pthread_mutex_lock(&pool->lock);
      while (atomic_load(&pool->state) == seen && !atomic_load(&pool->active) && !atomic_load(&pool->stop))
        pthread_cond_wait(&pool->wake, &pool->lock);
      pthread_mutex_unlock(&pool->lock);
    }
    if (atomic_load(&pool->stop)) return 0;
  }
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
  int32_t count = tasks > 0 ? tasks : pool->threads * TASKS_PER_THREAD;
  uint64_t number = (atomic_load(&pool->state) >> 32) + 1;
  atomic_store(&pool->tasks, count);
  atomic_store(&pool->lambda, lambda);
  atomic_store(&pool->data, data);
  atomic_store(&pool->failed, 0);
  atomic_store(&pool->finished, 0);
  atomic_store(&pool->state, number << 32); /* last: whoever sees the new state sees the new fields */
  take_tasks(pool);
  for (int i = 0; i < SPIN && atomic_load(&pool->finished) < count; ++i) pause_briefly();
  if (atomic_load(&pool->finished) < count) {
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->waiting, 1);
    while (atomic_load(&pool->finished) < count) pthread_cond_wait(&pool->done, &pool->lock);
    atomic_store(&pool->waiting, 0);
    pthread_mutex_unlock(&pool->lock);
  }
  current = pool;
  return atomic_load(&pool->failed) ? -1 : 0;
}

int (*__TVMBackendParallelLaunch)(parallel_lambda, void *, int) = launch;

static void set_active(secateur_pool *pool, int active) {
  if (!pool || pool->threads == 1) return;
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
  secateur_pool *previous = current;
  if (previous != pool) {
    set_active(previous, 0);
    set_active(pool, 1);
  }
  current = pool;
  return previous;
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
  free(pool->workers);
  free(pool);
}

secateur_pool *secateur_pool_create(int32_t threads) {
  if (threads < 1) return 0;
  secateur_pool *pool = calloc(1, sizeof *pool);
  pthread_t *workers = calloc((size_t)threads, sizeof *workers);
  if (!pool || !workers) {
    free(pool);
    free(workers);
    return 0;
  }
  pool->threads = threads;
  pool->workers = workers;
  pthread_mutex_init(&pool->lock, 0);
  pthread_cond_init(&pool->wake, 0);
  pthread_cond_init(&pool->done, 0);
  for (int32_t i = 0; i < threads - 1; ++i) {
    if (pthread_create(&workers[i], 0, work, pool) != 0) {
      stop_workers(pool, i);
      return 0;
    }
  }
  return pool;
}

void secateur_pool_destroy(secateur_pool *pool) {
  if (pool) stop_workers(pool, pool->threads - 1);
}
