/* Threads in Node, against one package that was compiled for them (SECATEUR_PACKAGE); run by test_threads.py, with
   --expose-gc. A thread of this process is a folder in /proc/self/task. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";

const folder = process.env.SECATEUR_PACKAGE;
const entry = pathToFileURL(join(folder, "index.js")).href;
const { load, SecateurError } = await import(entry);
const expected = JSON.parse(readFileSync(join(folder, "..", "case.json"), "utf8"));
const feeds = { x: Float32Array.from(expected.x) };
const copies = mkdtempSync(join(tmpdir(), "secateur-threads-"));
const linux = existsSync("/proc/self/task") ? false : "reads /proc/self/task";

after(() => rmSync(copies, { recursive: true }));

function refused(promise, errorCode, message) {
  return assert.rejects(promise, (error) => {
    assert.equal(error.name, "SecateurError", String(error?.stack));
    assert.equal(error.code, errorCode);
    assert.match(error.message, message);
    return true;
  });
}

function close(actual, wanted) {
  let [difference, norm] = [0, 0];
  wanted.forEach((value, i) => {
    difference += (value - actual[i]) ** 2;
    norm += value ** 2;
  });
  assert.ok(Math.sqrt(difference / norm) < 1e-4, `relative difference ${Math.sqrt(difference / norm)}`);
}

/* The package with a line of a file replaced. */
async function altered(name, file, from, to) {
  const copy = join(copies, name);
  cpSync(folder, copy, { recursive: true });
  const text = readFileSync(join(copy, file), "utf8");
  assert.equal(text.split(from).length, 2, `${from} is in ${file} once`);
  writeFileSync(join(copy, file), text.replace(from, to));
  return import(pathToFileURL(join(copy, "index.js")).href);
}

/* A global variable has another value until the test ends. */
function hide(t, name, value) {
  const kept = globalThis[name];
  globalThis[name] = value;
  t.after(() => (globalThis[name] = kept));
}

const threads = () => readdirSync("/proc/self/task").length;

async function until(condition, what) {
  for (let i = 0; i < 500; ++i) {
    if (condition()) return;
    await sleep(10);
  }
  assert.fail(what);
}

test("each number of threads computes the same, every time", async () => {
  const one = await load({ threads: 1 });
  const { y } = await one.run(feeds);
  close(y, expected.y);
  assert.equal(one.threads, 1);
  for (const count of [2, 3, 4]) {
    const model = await load({ threads: count });
    assert.equal(model.threads, count);
    for (let i = 0; i < 200; ++i) assert.deepEqual((await model.run(feeds)).y, y);
    model.dispose();
  }
});

test("unless told, it uses the processors, four at most", async () => {
  const model = await load();
  assert.equal(model.threads, Math.min(4, availableParallelism()));
  close((await model.run(feeds)).y, expected.y);
  model.dispose();
});

test("code that is given is for one thread, unless told", async (t) => {
  const variant = "simd";
  const one = await load({ variant, code: readFileSync(join(folder, "model.wasm")) });
  assert.equal(one.threads, 1);
  const code = readFileSync(join(folder, "model-threads.wasm"));
  const two = await load({ variant, code, threads: 2 });
  assert.equal(two.threads, 2);
  close((await two.run(feeds)).y, expected.y);
  two.dispose();
  await refused(load({ variant, code, threads: 1 }), "E_ARTIFACT", /bytes instead of/);
  hide(t, "SharedArrayBuffer", undefined);
  await refused(load({ variant, code, threads: 2 }), "E_TARGET", /memory cannot be shared/);
});

for (const count of [0, -1, 1.5, 65, "2", true, Number.NaN]) {
  test(`a number of threads is refused: ${String(count)}`, () =>
    refused(load({ threads: count }), "E_OPTION", /'threads' must be a whole number from 1 to 64/));
}

test("in Node it takes Node's workers, whatever is called so", async (t) => {
  hide(t, "Worker", Worker);
  const model = await load({ threads: 2 });
  assert.equal(model.threads, 2);
  close((await model.run(feeds)).y, expected.y);
  model.dispose();
});

test("where memory cannot be shared, it runs on one thread", async (t) => {
  hide(t, "crossOriginIsolated", false);
  for (const wanted of [undefined, 2]) {
    const model = await load({ threads: wanted });
    assert.equal(model.threads, 1);
    close((await model.run(feeds)).y, expected.y);
  }
  globalThis.crossOriginIsolated = undefined;
  assert.equal((await load({ threads: 2 })).threads, 2);
  hide(t, "SharedArrayBuffer", undefined);
  assert.equal((await load({ threads: 2 })).threads, 1);
});

test("inputs are refused as on one thread", async () => {
  const model = await load({ threads: 2 });
  await refused(model.run({}), "E_INPUT", /input 'x' is missing/);
  await refused(model.run({ x: new Float32Array(3) }), "E_INPUT", /has 3 elements instead of 3072/);
  await refused(model.run({ x: new Float64Array(3072) }), "E_INPUT", /must be a Float32Array/);
  close((await model.run(feeds)).y, expected.y);
  model.dispose();
});

test("results are the caller's own and not shared", async () => {
  const model = await load({ threads: 2 });
  const { y } = await model.run(feeds);
  assert.ok(y.buffer instanceof ArrayBuffer);
  const kept = y.slice();
  await model.run({ x: new Float32Array(3072) });
  assert.deepEqual(y, kept);
  model.dispose();
});

test("a disposed model has no threads", { skip: linux }, async () => {
  await (await load({ threads: 2 })).dispose();
  await sleep(50);
  const before = threads();
  const model = await load({ threads: 4 });
  await model.run(feeds);
  assert.ok(threads() >= before + 3);
  model.dispose();
  model.dispose();
  assert.equal(model.bytes, 0);
  await refused(model.run(feeds), "E_CLOSED", /disposed; load it again/);
  await until(() => threads() <= before, "the threads did not end");
});

test("a model that is forgotten loses its threads", { skip: linux }, async () => {
  const before = threads();
  await (async () => (await load({ threads: 3 })).run(feeds))();
  await until(() => {
    globalThis.gc();
    return threads() <= before;
  }, "the threads did not end");
});

test("threads sleep between runs", async () => {
  const model = await load({ threads: 4 });
  for (let i = 0; i < 50; ++i) await model.run(feeds);
  await sleep(20);
  const start = process.cpuUsage();
  await sleep(300);
  const { user, system } = process.cpuUsage(start);
  assert.ok(user + system < 150e3, `${(user + system) / 1e3} ms of processors in 300`);
  close((await model.run(feeds)).y, expected.y);
  model.dispose();
});

test("threads keep no process alive", () => {
  const source = `
    const { load } = await import(${JSON.stringify(entry)});
    const model = await load({ threads: 3 });
    const { y } = await model.run({ x: new Float32Array(3072) });
    console.log(model.threads, y.length);
  `;
  const done = spawnSync(process.execPath, ["--input-type=module", "-e", source], { timeout: 30e3, encoding: "utf8" });
  assert.equal(done.status, 0, done.stderr);
  assert.equal(done.stdout, "3 10\n");
});

test("a worker may have threads of its own", async () => {
  const source = `
    import { parentPort, workerData } from "node:worker_threads";
    const { load } = await import(workerData.entry);
    const model = await load({ threads: 2 });
    const { y } = await model.run({ x: workerData.x });
    parentPort.postMessage({ y, threads: model.threads });
  `;
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`), {
    workerData: { entry, x: feeds.x },
  });
  const found = await new Promise((resolve, reject) => worker.on("message", resolve).on("error", reject));
  await worker.terminate();
  assert.equal(found.threads, 2);
  close(found.y, expected.y);
});

/* A worker without a stack: whatever it begins, it cannot go on. */
test("a thread that traps is an error, at once and from then on", { skip: linux }, async () => {
  const before = threads();
  const from = "exports.__stack_pointer.value = stack;\n    tell";
  const broken = await altered("trap", "worker.js", from, "exports.__stack_pointer.value = 0;\n    tell");
  const model = await broken.load({ threads: 2 });
  const untilItTraps = async () => {
    for (let i = 0; i < 10000; ++i) await model.run(feeds);
  };
  await refused(untilItTraps(), "E_RUN", /the model failed: a thread was lost: memory access out of bounds/);
  await refused(model.run(feeds), "E_RUN", /the model failed before \(a thread was lost: .*; load it again/);
  await until(() => threads() <= before, "the threads did not end");
  model.dispose();
  await refused(model.run(feeds), "E_CLOSED", /disposed/);
});

test("where the caller traps, the threads end", { skip: linux }, async () => {
  const before = threads();
  const from = "const pool = this.#team?.pool ?? 0;";
  const broken = await altered("caller", "index.js", from, `${from} this.#exports.__stack_pointer.value = 0;`);
  const model = await broken.load({ threads: 2 });
  await refused(model.run(feeds), "E_RUN", /the model failed: memory access out of bounds/);
  await refused(model.run(feeds), "E_RUN", /the model failed before \(memory access out of bounds\); load it again/);
  await until(() => threads() <= before, "the threads did not end");
});

test("a thread that ends between runs is an error", async () => {
  const from = "exports.secateur_worker(pool, index);";
  const broken = await altered("ends", "worker.js", from, "return;");
  const model = await broken.load({ threads: 2 });
  await sleep(200);
  await refused(model.run(feeds), "E_RUN", /a thread was lost: the worker ended/);
});

test("a thread that cannot be started is an error", { skip: linux }, async () => {
  const before = threads();
  const { load: without } = await altered("missing", "threads.js", 'NodeWorker(new URL("./w', 'NodeWorker(new URL("./nowhere/w');
  await refused(without({ threads: 3 }), "E_THREADS", /cannot be started: .*nowhere.*threads: 1 does without/s);
  assert.equal((await without({ threads: 1 })).threads, 1);
  await until(() => threads() <= before, "the threads did not end");
});

test("the engine may refuse shared memory", async (t) => {
  t.mock.method(WebAssembly, "Memory", function () {
    throw new RangeError("no");
  });
  await refused(load({ threads: 2 }), "E_MEMORY", /needs \d+ bytes of memory/);
});

test("a load that was stopped leaves no threads", { skip: linux }, async () => {
  const before = threads();
  const control = new AbortController();
  const loading = load({ threads: 3, signal: control.signal });
  await until(() => threads() > before, "no thread was started");
  control.abort();
  await assert.rejects(loading, (error) => error.name === "AbortError" || error instanceof SecateurError);
  await until(() => threads() <= before, "the threads did not end");
});
