/* Times small kernels of the kinds that models are made of in this engine. The profile that it makes lets Secateur choose
   kernels for it: secateur compile … --target wasm --profile profile.json */
import { supported } from "../index.js";
import { header, probes } from "./probes.js";

const LINE = 64;
const PAGE = 65536;
/* Milliseconds: of a batch of calls of one kernel at least, of all that is timed at most, of running a kernel before it
   is timed, and between the two, for the engine to compile what runs often once more and better. */
const BATCH = 1;
const TOTAL = 8000;
const WARM_UP = 20;
const PAUSE = 300;
/* How many steps of the clock a batch takes at least: pages see a clock that takes steps of up to a millisecond. */
const STEPS = 40;
const FEWEST_ROUNDS = 5;

/** The profile: an object to be written as JSON. `processor`: what runs this; `tell(share)` is told how far it is. */
export async function profile(processor, { rounds = 25, tell = () => {} } = {}) {
  const code = supported();
  if (code === null) throw new Error("this engine has no WebAssembly with SIMD");
  const [module, contents] = await Promise.all([read(`probes${code === "relaxed" ? "-relaxed" : ""}.wasm`), read("probes.bin")]);
  const { instance } = await WebAssembly.instantiate(module, {});
  const trials = prepare(instance.exports, new Uint8Array(contents));
  const batch = Math.max(BATCH, STEPS * clockStep());
  for (const trial of trials) fill(trial, WARM_UP);
  await new Promise((resolve) => setTimeout(resolve, PAUSE));
  /* Something else may take the processor away meanwhile, and few calls seem to take long: thrice. */
  for (const trial of trials) trial.calls = Math.max(...[1, 2, 3].map(() => fill(trial, batch)));
  const fitting = Math.floor(TOTAL / (2 * batch * trials.length));
  const turns = Math.min(rounds, Math.max(FEWEST_ROUNDS, fitting));
  for (let turn = 0; turn < turns; ++turn) {
    /* All kernels take turns, so that what disturbs the device for a while disturbs all alike. */
    for (const trial of trials) {
      time(trial, 1);
      trial.seconds.push(time(trial, trial.calls) / 1e3 / trial.calls);
    }
    tell((turn + 1) / turns);
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
  return { ...header, processor, code, kernels: trials.map(describe) };
}

/* Puts the arrays of all kernels into the module's memory: [{ probe, run(calls), seconds }]. */
function prepare({ memory, __heap_base: base, secateur_probe_repeat: repeat }, contents) {
  let end = round(base.value);
  const places = probes.map(({ arrays }) =>
    arrays.map(([bytes]) => {
      const at = end;
      end = round(end + bytes) + LINE;
      return at;
    }),
  );
  const tables = end;
  end += LINE * Math.ceil((4 * places.flat().length + 4) / LINE);
  memory.grow(Math.ceil(Math.max(0, end - memory.buffer.byteLength) / PAGE));
  let table = tables;
  return probes.map((probe, index) => {
    const own = table;
    table += 4 * probe.arrays.length;
    new Uint32Array(memory.buffer, own, probe.arrays.length).set(places[index]);
    probe.arrays.forEach(([bytes, offset], i) => {
      const at = places[index][i];
      if (offset < 0) new Float32Array(memory.buffer, at, bytes >> 2).fill(1 / 64);
      else new Uint8Array(memory.buffer, at, bytes).set(contents.subarray(offset, offset + bytes));
    });
    return { probe, run: (calls) => repeat(index, own, calls), seconds: [] };
  });
}

/* Milliseconds of so many calls. */
function time(trial, calls) {
  const start = performance.now();
  if (trial.run(calls) !== 0) throw new Error(`kernel '${trial.probe.name}' failed`);
  return performance.now() - start;
}

/* How many calls take so many milliseconds: doubled until they do. */
function fill(trial, milliseconds) {
  let calls = 1;
  while (time(trial, calls) < milliseconds && calls < 1 << 24) calls *= 2;
  return calls;
}

/* The least step of the clock, in milliseconds. */
function clockStep() {
  let least = Infinity;
  for (let i = 0; i < 10; ++i) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    least = Math.min(least, now - start);
  }
  return least;
}

function describe({ probe, calls, seconds }) {
  const sorted = seconds.slice().sort((a, b) => a - b);
  const at = (share) => sorted[Math.floor(share * sorted.length)];
  return {
    name: probe.name,
    multiply_adds: probe.multiplyAdds,
    calls: calls * seconds.length,
    median: at(0.5),
    least: sorted[0],
    spread: (at(0.75) - at(0.25)) / at(0.5),
  };
}

function round(place) {
  return LINE * Math.ceil(place / LINE);
}

async function read(file) {
  const url = new URL(file, import.meta.url);
  if (url.protocol === "file:") {
    const { readFile } = await import("node:fs/promises");
    return readFile(url);
  }
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${file}: the server answered ${response.status}`);
  return response.arrayBuffer();
}
