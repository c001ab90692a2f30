/* Loops cut into tasks that threads claim: what the thread pools (parallel.c, web/threads.c) have in common.

   A loop is cut into a fixed number of tasks. Each thread begins with its own share of neighbouring tasks, the same
   part of every loop, so that it finds in its cache what it wrote; one that is done takes from the others' shares: a
   thread that wakes late delays nobody, and results do not depend on who did what. */
#ifndef SECATEUR_TASKS_H
#define SECATEUR_TASKS_H

#include <stdatomic.h>
#include <stdint.h>

enum {
  TASKS_PER_THREAD = 8,
  MOST_TASKS = 0xffff,
  LINE = 64 /* bytes of a cache line */
};

/* TVM's parallel-launch interface (tvm/runtime/c_backend_api.h). */
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

typedef struct {
  int32_t threads;
  task_share *shares;
  /* The loop in progress; its number changes when it can be worked on. */
  _Alignas(LINE) _Atomic uint32_t number;
  _Atomic(parallel_lambda) lambda;
  _Atomic(void *) data;
  atomic_int tasks;
  _Alignas(LINE) atomic_int finished;
  atomic_int failed;
} task_loop;

/* Every task on the calling thread; 0 on success. */
static int run_inline(parallel_lambda lambda, void *data, int tasks) {
  parallel_env env = {0, tasks > 0 ? tasks : 1};
  int status = 0;
  for (int32_t task = 0; task < env.num_task; ++task) status |= lambda(task, &env, data);
  return status ? -1 : 0;
}

/* Let threads claim the tasks of a loop; how many they are. tasks: 0 for as many as suit the threads. */
static int32_t open_loop(task_loop *loop, parallel_lambda lambda, void *data, int tasks) {
  int32_t count = tasks > 0 ? tasks : loop->threads * TASKS_PER_THREAD;
  uint32_t number = atomic_load(&loop->number) + 1;
  atomic_store(&loop->tasks, count);
  atomic_store(&loop->lambda, lambda);
  atomic_store(&loop->data, data);
  atomic_store(&loop->failed, 0);
  atomic_store(&loop->finished, 0);
  for (int32_t i = 0; i < loop->threads; ++i) { /* after the above: whoever sees a share sees its loop */
    uint64_t begin = (uint64_t)count * i / loop->threads, end = (uint64_t)count * (i + 1) / loop->threads;
    atomic_store(&loop->shares[i].state, (uint64_t)number << 32 | end << 16 | begin);
  }
  atomic_store(&loop->number, number);
  return count;
}

/* Claim and run tasks of one share until none is left; how many they were. */
static int32_t take_share(task_loop *loop, task_share *share) {
  uint64_t state = atomic_load(&share->state);
  for (int32_t taken = 0;; ++taken) {
    parallel_lambda lambda;
    void *data;
    parallel_env env = {0, 0};
    do {
      if ((state & 0xffff) >= (state >> 16 & 0xffff)) return taken;
      env.num_task = atomic_load(&loop->tasks);
      lambda = atomic_load(&loop->lambda);
      data = atomic_load(&loop->data);
    } while (!atomic_compare_exchange_weak(&share->state, &state, state + 1));
    if (lambda((int)(state & 0xffff), &env, data) != 0) atomic_store(&loop->failed, 1);
    state = atomic_load(&share->state);
  }
}

/* What is left to do, thread `index`'s own share first; 1 if that ended the loop. It is reported at the end: a line
   that threads write to by turns takes longer than a small task. */
static int take_tasks(task_loop *loop, int32_t index) {
  int32_t taken = 0;
  for (int32_t i = 0; i < loop->threads; ++i) taken += take_share(loop, &loop->shares[(index + i) % loop->threads]);
  if (taken == 0) return 0;
  /* The loop goes on until these are counted, so that its number of tasks can still be read. */
  int32_t tasks = atomic_load(&loop->tasks);
  return atomic_fetch_add(&loop->finished, taken) + taken == tasks;
}

#endif
