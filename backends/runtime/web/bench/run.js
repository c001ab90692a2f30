/* node run.js [FILE]: writes this engine's profile to a file, or to standard output. */
import { writeFileSync } from "node:fs";
import { cpus } from "node:os";

const { versions } = process;
const engine = versions.bun ? `Bun ${versions.bun}` : versions.deno ? `Deno ${versions.deno}` : `Node ${versions.node}`;

/* Node 20 has relaxed SIMD behind a flag; later versions know no such flag, and need none. */
if (engine.startsWith("Node") && Number(versions.node.split(".")[0]) < 21) {
  const { setFlagsFromString } = await import("node:v8");
  setFlagsFromString("--experimental-wasm-relaxed-simd");
}

const { profile } = await import("./bench.js");
const found = await profile(`${engine} on ${cpus()[0]?.model ?? "unknown"}`);
writeFileSync(process.argv[2] ?? 1, `${JSON.stringify(found, null, 1)}\n`);
