/* One thread of a model: started by threads.js with the model's module and memory, and a stack of its own. */
const page = typeof WorkerGlobalScope === "function" && globalThis instanceof WorkerGlobalScope;

async function work({ module, memory, stack, pool, index }, tell) {
  let exports;
  try {
    ({ exports } = await WebAssembly.instantiate(module, { env: { memory } }));
    exports.__stack_pointer.value = stack;
    tell("ready");
    exports.secateur_worker(pool, index);
  } catch (error) {
    if (exports) {
      exports.__stack_pointer.value = stack;
      exports.secateur_pool_lose(pool);
    }
    tell(error.message);
  }
}

if (page) {
  addEventListener("message", ({ data }) => work(data, postMessage), { once: true });
} else {
  const builtin = "node:worker_threads"; // not spelt in the import: bundlers would look for it
  import(/* webpackIgnore: true */ /* @vite-ignore */ builtin).then(({ parentPort, workerData }) =>
    work(workerData, (message) => parentPort.postMessage(message)),
  );
}
