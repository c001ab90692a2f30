/* Runs a package for the Python side: frames on standard input and output, no ports, no files.

   node node.mjs FOLDER VARIANT THREADS. A request is a uint32, how many runs, and the inputs' bytes in order. An answer is a
   uint32, 0 for success, a uint32, the length of what follows, and that: milliseconds of each run (float64) and the
   outputs' bytes in order; or an error { code, message } as JSON. The first answer, to no request, says who answers. */
import { readSync, writeSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { setFlagsFromString } from "node:v8";

const [folder, variant, threads] = process.argv.slice(2);

function read(bytes) {
  const buffer = Buffer.alloc(bytes);
  let have = 0;
  while (have < bytes) {
    const got = readSync(0, buffer, have, bytes - have, null);
    if (got === 0) process.exit(0);
    have += got;
  }
  return buffer;
}

function write(buffer) {
  let done = 0;
  while (done < buffer.length) done += writeSync(1, buffer, done);
}

function answer(status, ...parts) {
  const body = Buffer.concat(parts);
  const head = Buffer.alloc(8);
  head.writeUInt32LE(status, 0);
  head.writeUInt32LE(body.length, 4);
  write(head);
  write(body);
}

function fail(error) {
  answer(1, Buffer.from(JSON.stringify({ code: error.code ?? "E_RUN", message: error.message })));
}

function bytesOf(array) {
  return Buffer.from(array.buffer, array.byteOffset, array.byteLength);
}

/* Node 20 has relaxed SIMD behind a flag; later versions know no such flag, and need none. */
if (variant !== "simd" && Number(process.versions.node.split(".")[0]) < 21) {
  setFlagsFromString("--experimental-wasm-relaxed-simd");
}

try {
  const { load, zeros } = await import(pathToFileURL(resolve(folder, "index.js")).href);
  const model = await load({ variant, threads: Number(threads) });
  answer(0, Buffer.from(JSON.stringify({ node: process.versions.node, variant: model.variant })));
  const arrays = Object.fromEntries(model.inputs.map((t) => [t.name, zeros(t)]));
  for (;;) {
    const runs = read(4).readUInt32LE();
    for (const { name } of model.inputs) bytesOf(arrays[name]).set(read(arrays[name].byteLength));
    try {
      const times = new Float64Array(runs);
      let results;
      for (let i = 0; i < runs; ++i) {
        const start = performance.now();
        results = await model.run(arrays);
        times[i] = performance.now() - start;
      }
      answer(0, bytesOf(times), ...model.outputs.map(({ name }) => bytesOf(results[name])));
    } catch (error) {
      fail(error);
    }
  }
} catch (error) {
  fail(error);
}
