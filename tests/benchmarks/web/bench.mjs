/* Times one case: our package's codes, ONNX Runtime Web and TensorFlow.js, one thread each, and ours on two, in turns.

   node --experimental-wasm-relaxed-simd bench.mjs MODULES CASE SECONDS. CASE is a folder with package/, input.bin, the
   expected output.bin, the ONNX files dense.onnx and (for variants) variant.onnx, and what tensorflow_js.py wrote. Prints
   one JSON object: per side the times in milliseconds, and the relative difference from output.bin. */
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

import { tensorflow } from "./tensorflow.mjs";

const [modules, folder, seconds] = process.argv.slice(2);
const runtime = resolve(modules, "node_modules", "onnxruntime-web", "dist", "ort.wasm.bundle.min.mjs");
const ort = await import(pathToFileURL(runtime).href);
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

function floats(file) {
  const bytes = readFileSync(join(folder, file));
  return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
}

const input = floats("input.bin");
const expected = floats("output.bin");
const { load, inputs, outputs } = await import(pathToFileURL(resolve(folder, "package", "index.js")).href);

function difference(actual, wanted = expected) {
  let [sum, norm] = [0, 0];
  wanted.forEach((value, i) => {
    sum += (value - actual[i]) ** 2;
    norm += value ** 2;
  });
  return Math.sqrt(sum / norm);
}

async function ours(variant, threads = 1) {
  const model = await load({ variant, threads });
  const feeds = { [inputs[0].name]: input };
  return async () => (await model.run(feeds))[outputs[0].name];
}

async function theirs(file) {
  const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all" };
  const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(join(folder, file))), options);
  const feeds = { [session.inputNames[0]]: new ort.Tensor("float32", input, inputs[0].shape) };
  return async () => (await session.run(feeds))[session.outputNames[0]].data;
}

const sides = { simd: await ours("simd"), relaxed: await ours("relaxed"), "ort dense": await theirs("dense.onnx") };
const own = (() => {
  try {
    return readFileSync(join(folder, "variant.onnx")) && true;
  } catch {
    return false;
  }
})();
if (own) sides["ort same"] = await theirs("variant.onnx");
sides["tf dense"] = await tensorflow(modules, folder, input);
const apart = difference(sides["tf dense"](), await sides["ort dense"]());
if (!(apart < 1e-4)) throw new Error(`TensorFlow.js computes something else: ${apart}`);
sides["two threads"] = await ours("relaxed", 2);

const times = {};
const differences = {};
for (const [name, run] of Object.entries(sides)) {
  for (let i = 0; i < 3; ++i) differences[name] = difference(await run());
  times[name] = [];
}
/* In turns, five calls each after one that does not count; fewer of long ones. */
const end = performance.now() + 1e3 * Number(seconds);
while (performance.now() < end || times.simd.length < 5) {
  for (const [name, run] of Object.entries(sides)) {
    await run();
    const begin = performance.now();
    for (let i = 0; i < 5 && performance.now() - begin < 150; ++i) {
      const start = performance.now();
      await run();
      times[name].push(performance.now() - start);
    }
  }
}
console.log(JSON.stringify({ times, differences, node: process.versions.node, v8: process.versions.v8 }));
