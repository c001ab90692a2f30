/* Loads and runs one compiled model: WebAssembly with SIMD, in pages, in workers and in Node.

   Nothing is evaluated from text: a Content-Security-Policy needs 'wasm-unsafe-eval' for script-src, no more. */
import { description, files, threads } from "./model.js";

/** What went wrong: a stable `code` beside the message. */
export class SecateurError extends Error {
  constructor(code, message, options) {
    super(message, options);
    this.name = "SecateurError";
    this.code = code;
  }
}

/** The model's inputs and outputs, in order: { name, dtype, shape, length }. */
export const inputs = tensors(description.inputs);
export const outputs = tensors(description.outputs);

const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
};
const ALIGNMENT = 64;
const PAGE = 65536;
/* What a code's own data and stack take at most, beside the bytes that are in its file. */
const OWN = 512 << 10;
const MOST_PAGES = 65535;

/* Modules of one function each: i8x16.splat, and f32x4.relaxed_madd of three of those. */
const HEADER = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10];
const SPLAT = [65, 0, 253, 15];
const SIMD = [...HEADER, 8, 1, 6, 0, ...SPLAT, 11];
const RELAXED = [...HEADER, 19, 1, 17, 0, ...SPLAT, ...SPLAT, ...SPLAT, 253, 133, 2, 11];

/** What this engine can run: "relaxed", "simd", or null for neither. */
export function supported() {
  if (typeof WebAssembly !== "object") return null;
  if (WebAssembly.validate(Uint8Array.from(RELAXED))) return "relaxed";
  return WebAssembly.validate(Uint8Array.from(SIMD)) ? "simd" : null;
}

/** Zeros of a tensor's type and length: an array to fill and to give to `run`. */
export function zeros(tensor) {
  return new ARRAYS[tensor.dtype](tensor.length);
}

/** Loads the model. `source`: where its files lie (a URL of the folder), or options, or nothing: beside this module. */
export async function load(source) {
  const options = checkOptions(source);
  const variant = chooseVariant(options.variant);
  const count = await countThreads(options);
  const program = count > 1 ? description.threads : description;
  const { file, ...code } = program.code[variant];
  const inside = description.weights.file === null;
  const [codeBytes, weightsBytes] = await Promise.all([
    read(options.code ?? place(options.base, file), file, options),
    inside ? null : read(options.weights ?? place(options.base, "weights.bin"), "weights.bin", options),
  ]);
  await check(codeBytes, code, file, options);
  const module = await compile(codeBytes, file);
  const weights = inside ? section(module, "secateur.weights", file) : weightsBytes;
  await check(weights, description.weights, description.weights.file ?? file, options);
  const codeAlone = codeBytes.byteLength - (inside ? weights.byteLength : 0);
  const memory = count > 1 ? shareMemory(codeAlone, count) : null;
  const exports = await instantiate(module, file, memory);
  const places = reserve(exports, memory ?? exports.memory, program, count, weights);
  const team = count > 1 ? await startThreads(module, memory, exports, places.stacks, options) : null;
  return new Model(exports, memory ?? exports.memory, places, program, variant, team);
}

/** A loaded model; `load` makes it. */
class Model {
  #exports;
  #memory;
  #places;
  #steps;
  #variant;
  #team;
  #threads;
  #failure = null;

  constructor(exports, memory, places, program, variant, team) {
    this.#exports = exports;
    this.#memory = memory;
    this.#places = places;
    this.#steps = program.steps;
    this.#variant = variant;
    this.#team = team;
    this.#threads = places.stacks.length + 1;
    if (team !== null) forgotten.register(this, team, this);
  }

  get name() {
    return description.name;
  }

  get inputs() {
    return inputs;
  }

  get outputs() {
    return outputs;
  }

  /** Which code was chosen: "relaxed" or "simd". */
  get variant() {
    return this.#variant;
  }

  /** How many threads a run is shared among, the one that calls it included. */
  get threads() {
    return this.#threads;
  }

  /** Bytes of memory that the model holds; 0 when disposed. */
  get bytes() {
    return this.#memory === null ? 0 : this.#memory.buffer.byteLength;
  }

  /** The outputs by name for inputs by name, as typed arrays in row-major order. Nothing is cast silently. */
  async run(values) {
    if (this.#exports === null) throw new SecateurError("E_CLOSED", "the model was disposed; load it again");
    if (this.#failure !== null) throw new SecateurError("E_RUN", `${this.#failure}; load it again`);
    checkInputs(values);
    const { inputTable, outputTable, inputPlaces, outputPlaces, weights, arena } = this.#places;
    const buffer = this.#memory.buffer;
    inputs.forEach((tensor, i) => view(buffer, inputPlaces[i], tensor).set(values[tensor.name]));
    let status;
    try {
      const pool = this.#team?.pool ?? 0;
      status = this.#exports.secateur_run_steps(0, this.#steps, inputTable, outputTable, weights, arena, pool);
    } catch (error) {
      if (this.#team !== null) this.#giveUp(error.message);
      throw new SecateurError("E_RUN", `the model failed: ${error.message}`, { cause: error });
    }
    if (status !== 0) throw new SecateurError("E_RUN", `the model failed${await this.#reason(status)}`);
    return Object.fromEntries(outputs.map((tensor, i) => [tensor.name, view(buffer, outputPlaces[i], tensor).slice()]));
  }

  /** Gives the memory back and ends the threads. Disposing twice does nothing; running afterwards is an error. */
  dispose() {
    this.#endThreads();
    this.#exports = this.#memory = this.#places = null;
  }

  /* What the other threads are in the middle of is unknown. */
  #giveUp(reason) {
    this.#failure = `the model failed before (${reason})`;
    this.#endThreads();
  }

  #endThreads() {
    if (this.#team === null) return;
    this.#team.end();
    this.#team = null;
    forgotten.unregister(this);
  }

  /* Why a run ended with a status. A thread that was lost tells so in a message, which may be on its way. */
  async #reason(status) {
    if (this.#team === null) return ` with status ${status}`;
    this.#failure = `the model failed before (status ${status})`;
    const told = await Promise.race([this.#team.loss, new Promise((resolve) => setTimeout(resolve, 1000))]);
    const reason = told ? `a thread was lost: ${told}` : `status ${status}`;
    this.#giveUp(reason);
    return `: ${reason}`;
  }
}

/* Threads of models that nobody disposed and nobody can run any more. */
const forgotten = new FinalizationRegistry((team) => team.end());

/* Where everything lies in a program's memory from `start` on; stacks: ends of the workers'. */
function layout(start, program, count) {
  let end = aligned(start);
  const take = (bytes) => {
    const at = end;
    end = aligned(end + Math.max(bytes, 1));
    return at;
  };
  const places = {
    inputTable: take(4 * inputs.length),
    outputTable: take(4 * outputs.length),
    inputPlaces: inputs.map((tensor) => take(byteLength(tensor))),
    outputPlaces: outputs.map((tensor) => take(byteLength(tensor))),
    weights: take(description.weights.bytes),
    arena: take(program.arena_bytes),
    stacks: Array.from({ length: count - 1 }, () => take(threads.STACK) + threads.STACK),
  };
  return { ...places, end };
}

/** Grows the memory to what the model needs and copies the weights: addresses of everything. */
function reserve(exports, memory, program, count, weights) {
  const places = layout(exports.__heap_base.value, program, count);
  try {
    memory.grow(Math.max(0, Math.ceil((places.end - memory.buffer.byteLength) / PAGE)));
  } catch (error) {
    throw refusedMemory(places.end, error);
  }
  new Uint32Array(memory.buffer, places.inputTable, inputs.length).set(places.inputPlaces);
  new Uint32Array(memory.buffer, places.outputTable, outputs.length).set(places.outputPlaces);
  new Uint8Array(memory.buffer, places.weights, description.weights.bytes).set(weights);
  return places;
}

/* A shared memory is made before the code that says where it begins to be free; it cannot grow. */
function shareMemory(codeBytes, count) {
  const { end } = layout(OWN + codeBytes, description.threads, count);
  try {
    return threads.sharedMemory(Math.min(Math.ceil(end / PAGE), MOST_PAGES));
  } catch (error) {
    throw refusedMemory(end, error);
  }
}

function refusedMemory(bytes, cause) {
  return new SecateurError("E_MEMORY", `the model needs ${bytes} bytes of memory, which the engine refuses`, { cause });
}

/* Code that is given is for one thread, unless the option says otherwise. */
async function countThreads({ code, threads: wanted }) {
  const given = code !== undefined && code !== null;
  if (threads === null || (given && wanted === undefined)) return 1;
  const count = await threads.count(wanted ?? undefined);
  if (given && wanted > 1 && count === 1) {
    throw new SecateurError("E_TARGET", "memory cannot be shared here: give the code for one thread, and threads: 1");
  }
  return count;
}

async function startThreads(module, memory, exports, stacks, { signal }) {
  let team;
  try {
    team = await threads.start(module, memory, exports, stacks);
  } catch (error) {
    const needed = "worker.js must lie beside index.js, on the page's own origin; threads: 1 does without";
    throw new SecateurError("E_THREADS", `a thread cannot be started: ${error.message}; ${needed}`, { cause: error });
  }
  if (signal?.aborted) {
    team.end();
    throw signal.reason;
  }
  return team;
}

function tensors(entries) {
  return Object.freeze(
    entries.map(({ name, dtype, shape }) =>
      Object.freeze({ name, dtype, shape: Object.freeze(shape), length: shape.reduce((a, b) => a * b, 1) }),
    ),
  );
}

function aligned(bytes) {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}

function byteLength(tensor) {
  return tensor.length * ARRAYS[tensor.dtype].BYTES_PER_ELEMENT;
}

function view(buffer, at, tensor) {
  return new ARRAYS[tensor.dtype](buffer, at, tensor.length);
}

function isBytes(value) {
  return value instanceof ArrayBuffer || ArrayBuffer.isView(value);
}

function isUrl(value) {
  return typeof value === "string" || value instanceof URL;
}

/* MOST_THREADS of threads.c. */
const MOST_THREADS = 64;

const OPTIONS = {
  base: [isUrl, "a URL"],
  code: [(v) => isUrl(v) || isBytes(v), "a URL or bytes"],
  weights: [(v) => isUrl(v) || isBytes(v), "a URL or bytes"],
  variant: [(v) => ["auto", "relaxed", "simd"].includes(v), "auto, relaxed or simd"],
  verify: [(v) => typeof v === "boolean", "true or false"],
  signal: [(v) => typeof v === "object" && "aborted" in v, "an AbortSignal"],
  threads: [(v) => Number.isInteger(v) && v >= 1 && v <= MOST_THREADS, `a whole number from 1 to ${MOST_THREADS}`],
};

function checkOptions(source) {
  if (source === undefined) return {};
  if (isUrl(source)) return { base: source };
  if (source === null || typeof source !== "object") {
    throw new SecateurError("E_OPTION", "load takes a URL or an object of options");
  }
  for (const [name, value] of Object.entries(source)) {
    if (!(name in OPTIONS)) {
      throw new SecateurError("E_OPTION", `unknown option '${name}'; there are: ${Object.keys(OPTIONS).join(", ")}`);
    }
    const [fits, wanted] = OPTIONS[name];
    if (value !== undefined && value !== null && !fits(value)) {
      throw new SecateurError("E_OPTION", `option '${name}' must be ${wanted}`);
    }
  }
  if (isBytes(source.code) && (source.variant ?? "auto") === "auto") {
    throw new SecateurError("E_OPTION", "with code given as bytes, option 'variant' says which code it is");
  }
  return source;
}

function chooseVariant(wanted) {
  const found = supported();
  if (found === null || (wanted === "relaxed" && found !== "relaxed")) {
    const feature = found === null ? "SIMD" : "relaxed SIMD";
    throw new SecateurError("E_TARGET", `this engine has no WebAssembly ${feature}, which the model's code needs`);
  }
  return wanted === undefined || wanted === null || wanted === "auto" ? found : wanted;
}

function place(base, file) {
  if (base === undefined || base === null) return files[file]();
  const folder = absolute(base);
  if (!folder.pathname.endsWith("/")) folder.pathname += "/";
  return new URL(file, folder);
}

/* Relative to the page or the worker, as fetch does; in Node to this module. */
function absolute(url, from = typeof location === "object" ? location.href : import.meta.url) {
  try {
    return new URL(url, from);
  } catch (error) {
    throw new SecateurError("E_OPTION", `'${url}' is not a URL`, { cause: error });
  }
}

/** The bytes of a file: given, by fetch, or (file URLs) by Node's file system. */
async function read(source, file, options) {
  if (source instanceof ArrayBuffer) return new Uint8Array(source);
  if (ArrayBuffer.isView(source)) return new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
  const url = absolute(source);
  try {
    if (url.protocol === "file:" && globalThis.process?.versions?.node) {
      const builtin = "node:fs/promises"; // not spelt in the import: bundlers would look for it
      const { readFile } = await import(/* webpackIgnore: true */ /* @vite-ignore */ builtin);
      return new Uint8Array(await readFile(url, { signal: options.signal ?? undefined }));
    }
    const response = await fetch(url, { signal: options.signal ?? undefined });
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    return new Uint8Array(await response.arrayBuffer());
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new SecateurError("E_ARTIFACT", `${file} cannot be read from ${url}: ${error.message}`, { cause: error });
  }
}

/** Refuses bytes of another length or, where the engine offers hashes (secure contexts), of another content. */
async function check(bytes, expected, file, options) {
  if (bytes.byteLength !== expected.bytes) {
    throw new SecateurError(
      "E_ARTIFACT",
      `${file} has ${bytes.byteLength} bytes instead of ${expected.bytes}: cut short, or of another model`,
    );
  }
  if (options.verify === false) return;
  const subtle = globalThis.crypto?.subtle;
  if (subtle === undefined) {
    if (options.verify !== true) return;
    throw new SecateurError("E_TARGET", "hashes cannot be checked here: crypto.subtle needs a secure context (https)");
  }
  const own = bytes.buffer instanceof ArrayBuffer ? bytes : bytes.slice();
  const digest = new Uint8Array(await subtle.digest("SHA-256", own));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== expected.sha256) {
    throw new SecateurError("E_ARTIFACT", `${file} is not the file that the model was built with: its hash differs`);
  }
}

async function compile(bytes, file) {
  try {
    return await WebAssembly.compile(bytes);
  } catch (error) {
    throw new SecateurError("E_TARGET", `${file} cannot be compiled here: ${error.message}`, { cause: error });
  }
}

function section(module, name, file) {
  const found = WebAssembly.Module.customSections(module, name);
  if (found.length !== 1) throw new SecateurError("E_ARTIFACT", `${file} does not hold the model's weights`);
  return new Uint8Array(found[0]);
}

async function instantiate(module, file, memory) {
  let exports;
  try {
    ({ exports } = await WebAssembly.instantiate(module, memory === null ? {} : { env: { memory } }));
  } catch (error) {
    throw new SecateurError("E_MEMORY", `${file} cannot be started: ${error.message}`, { cause: error });
  }
  if (exports.secateur_abi_version?.() !== description.abi_version) {
    throw new SecateurError("E_ARTIFACT", `${file} and index.js are of different versions`);
  }
  return exports;
}

function checkInputs(values) {
  if (values === null || typeof values !== "object" || ArrayBuffer.isView(values)) {
    throw new SecateurError("E_INPUT", `run takes an object of typed arrays by name: ${inputs.map(spell).join(", ")}`);
  }
  for (const name of Object.keys(values)) {
    if (!inputs.some((tensor) => tensor.name === name)) {
      throw new SecateurError("E_INPUT", `unknown input '${name}'; the inputs are: ${inputs.map(spell).join(", ")}`);
    }
  }
  for (const tensor of inputs) {
    const value = Object.hasOwn(values, tensor.name) ? values[tensor.name] : undefined;
    const wanted = ARRAYS[tensor.dtype].name;
    if (value === undefined) throw new SecateurError("E_INPUT", `input '${tensor.name}' is missing: ${spell(tensor)}`);
    if (Object.prototype.toString.call(value) !== `[object ${wanted}]`) {
      throw new SecateurError("E_INPUT", `input '${tensor.name}' must be a ${wanted} (${tensor.dtype})`);
    }
    if (value.length !== tensor.length) {
      throw new SecateurError(
        "E_INPUT",
        `input '${tensor.name}' has ${value.length} elements instead of ${tensor.length} (${spell(tensor)})`,
      );
    }
  }
}

function spell({ name, dtype, shape }) {
  return `${name} ${dtype}[${shape.join(",")}]`;
}
