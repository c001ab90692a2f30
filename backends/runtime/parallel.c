/* A small thread pool behind TVM's parallel-launch interface (tvm/runtime/c_backend_api.h).

   Kernels reach it through the pointer variable __TVMBackendParallelLaunch. The pool in effect belongs to the
   calling thread: secateur_run enters the caller's pool and leaves it again. Without one, or with one thread,
   a parallel loop runs inline. A loop is cut into a fixed number of tasks. Each thread begins with its own share of
   neighbouring tasks, the same part of every loop, so that it finds in its cache what it wrote; one that is done
   takes from the others' shares: a thread that wakes late delays nobody, and results do not depend on who did what.
   Workers stay awake from secateur_run's start to a tenth of a millisecond after its end. */
#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "parallel.h"

enum {
  POLITE = 5000, /* pauses, about 0.1 ms, between offers of the processor to others */
  LINGER = 5000, /* pauses before a thread that waits for a run, or for the end of a loop, sleeps */
  TASKS_PER_THREAD = 8,
  LINE = 64 /* bytes of a cache line */
};

typedef struct {
  void *sync_handle;
  int32_t num_task;
} parallel_env;

typedef int (*parallel_lambda)(int task, parallel_env *env, void *data);

/* The tasks of the loop in progress that are nobody's yet in one thread's share: the loop's number in the high
   half, then the end and the next task. A claim is one compare-and-swap. It succeeds only while the loop has a task
   left, so that what was read of the loop before it belongs to the same loop. */
typedef struct {
  _Alignas(LINE) _Atomic uint64_t state;
} task_share;

struct secateur_pool {
  int32_t threads;
  pthread_t *workers;
  struct worker *arguments;
  task_share *shares;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  pthread_cond_t done;
  atomic_int waiting; /* the caller waits on `done` */
  atomic_int active;  /* a run is in progress: workers do not sleep */
  atomic_int stop;
  /* The loop in progress; its number changes when it can be worked on. */
  _Alignas(LINE) _Atomic uint32_t number;
  _Atomic(parallel_lambda) lambda;
  _Atomic(void *) data;
  atomic_int tasks;
  _Alignas(LINE) atomic_int finished;
  atomic_int failed;
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

/* Claim and run tasks of one share until none is left; how many they were. */
static int32_t take_share(secateur_pool *pool, task_share *share) {
  uint64_t state = atomic_load(&share->state);
  for (int32_t taken = 0;; ++taken) {
    parallel_lambda lambda;
    void *data;
    parallel_env env = {0, 0};
    do {
      if ((state & 0xffff) >= (state >> 16 & 0xffff)) return taken;
      env.num_task = atomic_load(&pool->tasks);
      lambda = atomic_load(&pool->lambda);
      data = atomic_load(&pool->data);
    } while (!atomic_compare_exchange_weak(&share->state, &state, state + 1));
    if (lambda((int)(state & 0xffff), &env, data) != 0) atomic_store(&pool->failed, 1);
    state = atomic_load(&share->state);
  }
}

/* What is left to do, thread `index`'s own share first. It is reported at the end: a line that threads write to by
   turns takes longer than a small task. */
static void take_tasks(secateur_pool *pool, int32_t index) {
  int32_t taken = 0;
  for (int32_t i = 0; i < pool->threads; ++i) taken += take_share(pool, &pool->shares[(index + i) % pool->threads]);
  if (taken == 0) return;
  /* The loop goes on until these are counted, so that its number of tasks can still be read. */
  int32_t tasks = atomic_load(&pool->tasks);
  if (atomic_fetch_add(&pool->finished, taken) + taken == tasks && atomic_load(&pool->waiting)) {
    pthread_mutex_lock(&pool->lock);
    pthread_cond_signal(&pool->done);
    pthread_mutex_unlock(&pool->lock);
  }
}

static void *work(void *argument) {
  secateur_pool *pool = ((struct worker *)argument)->pool;
  int32_t index = ((struct worker *)argument)->index;
  for (;;) {
    uint32_t seen = atomic_load(&pool->number);
    take_tasks(pool, index);
    for (int turn = 1, idle = 0; atomic_load(&pool->number) == seen && idle < LINGER; ++turn) {
      idle = atomic_load(&pool->active) ? 0 : idle + 1;
      pause_briefly();
      if (turn % POLITE == 0) sched_yield();
    }
    if (atomic_load(&pool->number) == seen) {
      pthread_mutex_lock(&pool->lock);
      while (atomic_load(&pool->number) == seen && !atomic_load(&pool->active) && !atomic_load(&pool->stop))
        pthread_cond_wait(&pool->wake, &pool->lock);
      pthread_mutex_unlock(&pool->lock);
    }
    if (atomic_load(&pool->stop)) return 0;
  }
}

static int launch(parallel_lambda lambda, void *data, int tasks) {
  secateur_pool *pool = get_current();
  if (!pool || pool->threads == 1) {
    parallel_env env = {0, tasks > 0 ? tasks : 1};
    int status = 0;
    for (int32_t task = 0; task < env.num_task; ++task) status |= lambda(task, &env, data);
    return status ? -1 : 0;
  }
  set_current(0); /* a loop inside a loop runs inline */
  int32_t count = tasks > 0 ? tasks : pool->threads * TASKS_PER_THREAD;
  uint32_t number = atomic_load(&pool->number) + 1;
  atomic_store(&pool->tasks, count);
  atomic_store(&pool->lambda, lambda);
  atomic_store(&pool->data, data);
  atomic_store(&pool->failed, 0);
  atomic_store(&pool->finished, 0);
  for (int32_t i = 0; i < pool->threads; ++i) { /* after the above: whoever sees a share sees its loop */
    uint64_t begin = (uint64_t)count * i / pool->threads, end = (uint64_t)count * (i + 1) / pool->threads;
    atomic_store(&pool->shares[i].state, (uint64_t)number << 32 | end << 16 | begin);
  }
  atomic_store(&pool->number, number);
  take_tasks(pool, 0);
  for (int i = 0; i < LINGER && atomic_load(&pool->finished) < count; ++i) pause_briefly();
  if (atomic_load(&pool->finished) < count) {
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->waiting, 1);
    while (atomic_load(&pool->finished) < count) pthread_cond_wait(&pool->done, &pool->lock);
    atomic_store(&pool->waiting, 0);
    pthread_mutex_unlock(&pool->lock);
  }
  set_current(pool);
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
  free(pool->shares);
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
  if (threads < 1 || threads > 0xffff / TASKS_PER_THREAD) return 0;
  secateur_pool *pool = aligned_zeros(sizeof *pool);
  if (!pool) return 0;
  pool->threads = threads;
  pool->workers = calloc((size_t)threads, sizeof *pool->workers);
  pool->arguments = calloc((size_t)threads, sizeof *pool->arguments);
  pool->shares = aligned_zeros((size_t)threads * sizeof *pool->shares);
  if (!pool->workers || !pool->arguments || !pool->shares) {
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
  if (pool) stop_workers(pool, pool->threads - 1);
}
