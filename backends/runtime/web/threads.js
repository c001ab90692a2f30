/* The threads of a model: workers on one shared memory, which take tasks of the loops that a run consists of (threads.c).

   Between runs they sleep. One that fails reports it through the memory, since the thread that waits for its tasks gets
   no messages; the message tells the reason. */

/** Bytes of each worker's stack. */
export const STACK = 128 << 10;
/* More than these seldom pay: phones have four fast cores at most, and a model's small layers have little to share. */
const USUAL = 4;

/** How many threads a model gets if it is told `wanted`, or nothing: one where memory cannot be shared. */
export async function count(wanted) {
  if (wanted === 1 || !canShare()) return 1;
  return wanted ?? Math.min(USUAL, await processors());
}

/* Pages share memory if they are isolated; what is no page has no such variable. */
function canShare() {
  return typeof SharedArrayBuffer === "function" && globalThis.crossOriginIsolated !== false;
}

async function processors() {
  if (!inNode()) return globalThis.navigator?.hardwareConcurrency ?? 1;
  return (await builtin("node:os")).availableParallelism();
}

/* Not by whether there is a Worker: packages in Node put theirs in its place. Electron's pages have both. */
function inNode() {
  return Boolean(globalThis.process?.versions?.node) && process.type !== "renderer";
}

/* Not spelt in the import: bundlers would look for it. */
function builtin(name) {
  return import(/* webpackIgnore: true */ /* @vite-ignore */ name);
}

/** A memory of so many pages that workers can use. Throws a RangeError if the engine has none. */
export function sharedMemory(pages) {
  return new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
}

/** Starts a worker on each of the `stacks` (addresses of their ends). Rejects if one of them cannot be started. */
export async function start(module, memory, exports, stacks) {
  const pool = exports.secateur_pool_create(stacks.length + 1);
  exports.secateur_pool_may_wait(pool, Number(mayWait()));
  const team = new Team(exports, pool);
  try {
    await Promise.all(stacks.map((stack, i) => team.add({ module, memory, stack, pool, index: i + 1 })));
  } catch (error) {
    team.end();
    throw error;
  }
  return team;
}

/* A page's own thread must not wait. */
function mayWait() {
  try {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 0);
    return true;
  } catch {
    return false;
  }
}

/** The workers of one model. */
class Team {
  #exports;
  #ends = [];
  #lost;

  /** The pool's address. */
  pool;
  /** Resolves to a reason when a worker was lost. */
  loss = new Promise((resolve) => {
    this.#lost = resolve;
  });

  constructor(exports, pool) {
    this.#exports = exports;
    this.pool = pool;
  }

  /** Starts a worker; resolves when it is ready. */
  add(task) {
    return new Promise((resolve, reject) => {
      const told = (message) => (message === "ready" ? resolve() : failed(message));
      const failed = (reason) => {
        this.#exports.secateur_pool_lose(this.pool);
        this.#lost(reason);
        reject(new Error(reason));
      };
      (inNode() ? nodeWorker : webWorker)(task, told, failed).then((end) => this.#ends.push(end), reject);
    });
  }

  /** Ends all workers, wherever they are. */
  end() {
    this.#exports.secateur_pool_destroy(this.pool);
    for (const end of this.#ends.splice(0)) end();
  }
}

async function webWorker(task, told, failed) {
  const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  worker.addEventListener("message", ({ data }) => told(data));
  worker.addEventListener("error", (event) => {
    event.preventDefault();
    failed(event.message || "worker.js could not be loaded");
  });
  worker.postMessage(task);
  return () => worker.terminate();
}

/* Workers do not keep a process alive that has come to its end. Their output is not joined to the process's, which would
   make its pipes non-blocking; they write nothing. */
async function nodeWorker(task, told, failed) {
  const { Worker: NodeWorker } = await builtin("node:worker_threads");
  const options = { workerData: task, execArgv: [], stdout: true, stderr: true };
  const worker = new NodeWorker(new URL("./worker.js", import.meta.url), options);
  worker.on("message", (message) => {
    worker.unref();
    told(message);
  });
  worker.on("error", (error) => failed(error.message));
  worker.on("exit", () => failed("the worker ended"));
  return () => worker.terminate();
}
