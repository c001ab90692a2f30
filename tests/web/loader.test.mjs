/* The loader, against one package (SECATEUR_PACKAGE) and its expected outputs (case.json beside it, by the Python side).
   Run by test_loader.py, without code generation from strings. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";

const folder = process.env.SECATEUR_PACKAGE;
const entry = pathToFileURL(join(folder, "index.js")).href;
const { load, inputs, outputs, supported, zeros, SecateurError } = await import(entry);
const expected = JSON.parse(readFileSync(join(folder, "..", "case.json"), "utf8"));
const weights = new Uint8Array(readFileSync(join(folder, "weights.bin")));
const code = new Uint8Array(readFileSync(join(folder, "model.wasm")));
const feeds = { x: Float32Array.from(expected.x) };

function refused(promise, errorCode, message) {
  return assert.rejects(promise, (error) => {
    assert.ok(error instanceof SecateurError, String(error?.stack));
    assert.equal(error.code, errorCode);
    assert.match(error.message, message);
    return true;
  });
}

function close(actual, wanted) {
  let difference = 0;
  let norm = 0;
  assert.equal(actual.length, wanted.length);
  wanted.forEach((value, i) => {
    difference += (value - actual[i]) ** 2;
    norm += value ** 2;
  });
  assert.ok(Math.sqrt(difference / norm) < 1e-4, `relative difference ${Math.sqrt(difference / norm)}`);
}

test("it tells what it takes and gives", async () => {
  assert.deepEqual(inputs, [{ name: "x", dtype: "float32", shape: [1, 3, 32, 32], length: 3072 }]);
  assert.deepEqual(outputs, [{ name: "y", dtype: "float32", shape: [1, 10], length: 10 }]);
  assert.ok(Object.isFrozen(inputs) && Object.isFrozen(inputs[0].shape));
  assert.deepEqual(zeros(inputs[0]), new Float32Array(3072));
  const model = await load();
  assert.equal(model.variant, supported());
  assert.equal(model.inputs, inputs);
  assert.ok(model.bytes > weights.length);
});

for (const variant of ["auto", "simd", ...(supported() === "relaxed" ? ["relaxed"] : [])]) {
  test(`it computes what ONNX Runtime computes: ${variant}`, async () => {
    const model = await load({ variant });
    close((await model.run(feeds)).y, expected.y);
  });
}

test("results are the caller's own, and calls do not disturb each other", async () => {
  const model = await load();
  const other = await load();
  const first = (await model.run(feeds)).y;
  const kept = first.slice();
  const [again, zero] = await Promise.all([model.run(feeds), model.run({ x: new Float32Array(3072) }), other.run(feeds)]);
  assert.deepEqual(first, kept);
  assert.deepEqual(again.y, kept);
  assert.notDeepEqual(zero.y, kept);
});

test("a view into a larger array is taken as it is", async () => {
  const model = await load();
  const large = new Float32Array(4000);
  large.set(feeds.x, 500);
  close((await model.run({ x: large.subarray(500, 3572) })).y, expected.y);
});

for (const [what, values, message] of [
  ["nothing", undefined, /run takes an object of typed arrays by name: x float32\[1,3,32,32\]/],
  ["null", null, /run takes an object/],
  ["an array", new Float32Array(3072), /run takes an object/],
  ["no input", {}, /input 'x' is missing/],
  ["undefined", { x: undefined }, /input 'x' is missing/],
  ["an unknown name", { x: feeds.x, z: feeds.x }, /unknown input 'z'; the inputs are: x/],
  ["a name of Object", { x: feeds.x, toString: feeds.x }, /unknown input 'toString'/],
  ["a list", { x: [...feeds.x] }, /'x' must be a Float32Array \(float32\)/],
  ["another type", { x: new Float64Array(3072) }, /'x' must be a Float32Array/],
  ["a number", { x: 3 }, /'x' must be a Float32Array/],
  ["null inside", { x: null }, /'x' must be a Float32Array/],
  ["too few", { x: new Float32Array(3071) }, /has 3071 elements instead of 3072/],
  ["too many", { x: new Float32Array(3073) }, /has 3073 elements instead of 3072/],
  ["none", { x: new Float32Array(0) }, /has 0 elements/],
]) {
  test(`inputs are refused: ${what}`, async () => {
    const model = await load();
    await refused(model.run(values), "E_INPUT", message);
    close((await model.run(feeds)).y, expected.y);
  });
}

test("a disposed model says so", async () => {
  const model = await load();
  model.dispose();
  model.dispose();
  assert.equal(model.bytes, 0);
  await refused(model.run(feeds), "E_CLOSED", /disposed; load it again/);
});

for (const [what, options, message] of [
  ["a number", 3, /takes a URL or an object/],
  ["null", null, /takes a URL or an object/],
  ["an unknown option", { variants: "simd" }, /unknown option 'variants'; there are: base, code/],
  ["a variant", { variant: "sse" }, /'variant' must be auto, relaxed or simd/],
  ["verify", { verify: "yes" }, /'verify' must be true or false/],
  ["weights", { weights: 17 }, /'weights' must be a URL or bytes/],
  ["code without variant", { code }, /option 'variant' says which/],
  ["no URL", "http://", /is not a URL/],
]) {
  test(`options are refused: ${what}`, () => refused(load(options), "E_OPTION", message));
}

test("files are taken from bytes", async () => {
  for (const given of [weights, weights.buffer, new DataView(weights.buffer), Buffer.from(weights)]) {
    const model = await load({ weights: given, code, variant: "simd" });
    close((await model.run(feeds)).y, expected.y);
  }
  const shared = new Uint8Array(new SharedArrayBuffer(weights.length));
  shared.set(weights);
  close((await (await load({ weights: shared })).run(feeds)).y, expected.y);
});

test("files that were cut short or grew are refused, checked or not", async () => {
  for (const length of [0, 1, 63, weights.length >> 1, weights.length - 1]) {
    await refused(load({ weights: weights.slice(0, length), verify: false }), "E_ARTIFACT", /weights\.bin has \d+ bytes/);
    const cut = code.slice(0, Math.min(length, code.length - 1));
    await refused(load({ code: cut, variant: "simd" }), "E_ARTIFACT", /model\.wasm has \d+ bytes/);
  }
  await refused(load({ weights: new Uint8Array(weights.length + 1) }), "E_ARTIFACT", /bytes instead of/);
});

test("files of which any byte was altered are refused", async () => {
  let state = 1;
  const random = (below) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  for (let i = 0; i < 100; ++i) {
    const bad = weights.slice();
    bad[random(bad.length)] ^= 1 << random(8);
    await refused(load({ weights: bad }), "E_ARTIFACT", /weights\.bin is not the file .* hash differs/);
    const worse = code.slice();
    worse[random(worse.length)] ^= 1 << random(8);
    await refused(load({ code: worse, variant: "simd" }), "E_ARTIFACT", /model\.wasm is not the file .* hash differs/);
  }
});

test("without checks, altered weights are loaded, and code that is none is refused", async () => {
  const bad = weights.slice();
  bad.fill(0);
  assert.ok((await (await load({ weights: bad, verify: false })).run(feeds)).y instanceof Float32Array);
  await refused(
    load({ code: new Uint8Array(code.length), variant: "simd", verify: false }),
    "E_TARGET",
    /cannot be compiled here/,
  );
});

test("an engine without what the code needs is told so", async (t) => {
  let longest = 0;
  t.mock.method(WebAssembly, "validate", (bytes) => bytes.length < longest);
  assert.equal(supported(), null);
  await refused(load(), "E_TARGET", /no WebAssembly SIMD/);
  longest = 36;
  assert.equal(supported(), "simd");
  await refused(load({ variant: "relaxed" }), "E_TARGET", /no WebAssembly relaxed SIMD/);
  close((await (await load()).run(feeds)).y, expected.y);
});

test("memory that the engine refuses is an error with a code", async (t) => {
  t.mock.method(WebAssembly.Memory.prototype, "grow", () => {
    throw new RangeError("no");
  });
  await refused(load(), "E_MEMORY", /needs \d+ bytes of memory/);
});

test("where there are no hashes, insisting on them is an error", async (t) => {
  t.mock.getter(globalThis, "crypto", () => undefined);
  close((await (await load()).run(feeds)).y, expected.y);
  await refused(load({ verify: true }), "E_TARGET", /secure context/);
});

test("it runs in a worker", async () => {
  const source = `
    import { parentPort, workerData } from "node:worker_threads";
    const { load } = await import(workerData.entry);
    const model = await load();
    parentPort.postMessage((await model.run({ x: workerData.x })).y);
  `;
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`), {
    workerData: { entry, x: feeds.x },
  });
  const y = await new Promise((resolve, reject) => worker.on("message", resolve).on("error", reject));
  await worker.terminate();
  close(y, expected.y);
});

let server;
let site;

before(async () => {
  server = createServer((request, response) => {
    const [, place, file] = request.url.split("/");
    if (place === "gone") return response.writeHead(404).end();
    const bytes = readFileSync(join(folder, file));
    response.writeHead(200, { "content-length": bytes.length });
    if (place === "slow") return response.write(bytes.subarray(0, 10));
    if (place !== "broken") return response.end(bytes);
    response.write(bytes.subarray(0, bytes.length >> 1), () => response.destroy());
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  site = `http://127.0.0.1:${server.address().port}`;
});

after(() => {
  server.closeAllConnections();
  server.close();
});

test("it loads over HTTP, with and without a slash at the end", async () => {
  for (const base of [`${site}/here`, `${site}/here/`, new URL(`${site}/here/`)]) {
    close((await (await load(base)).run(feeds)).y, expected.y);
    close((await (await load({ base })).run(feeds)).y, expected.y);
  }
  close((await (await load({ weights: `${site}/here/weights.bin` })).run(feeds)).y, expected.y);
});

test("files that a server does not have, or does not send whole, are refused", async () => {
  await refused(load(`${site}/gone`), "E_ARTIFACT", /cannot be read from .*the server answered 404/);
  await refused(load(`${site}/broken`), "E_ARTIFACT", /cannot be read from/);
  await refused(load(pathToFileURL(join(folder, "nowhere"))), "E_ARTIFACT", /cannot be read from file:.*ENOENT/);
});

test("a load can be stopped", async () => {
  const control = new AbortController();
  const loading = load({ base: `${site}/slow`, signal: control.signal });
  setTimeout(() => control.abort(), 50);
  await assert.rejects(loading, { name: "AbortError" });
});
