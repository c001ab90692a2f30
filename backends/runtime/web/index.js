/* Loads and runs one compiled model: WebAssembly with SIMD, in pages, in workers and in Node.

   Nothing is evaluated from text: a Content-Security-Policy needs 'wasm-unsafe-eval' for script-src, no more. */
import { description } from "./model.js";

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
  const { file, ...code } = description.code[variant];
  const inside = description.weights.file === null;
  const weightsSource = options.weights ?? place(options.base, description.weights.file);
  const [codeBytes, weightsBytes] = await Promise.all([
    read(options.code ?? place(options.base, file), file, options),
    inside ? null : read(weightsSource, description.weights.file, options),
  ]);
  await check(codeBytes, code, file, options);
  const module = await compile(codeBytes, file);
  const weights = inside ? section(module, "secateur.weights", file) : weightsBytes;
  await check(weights, description.weights, description.weights.file ?? file, options);
  return new Model(await instantiate(module, file), weights, variant);
}

/** A loaded model; `load` makes it. */
class Model {
  #exports;
  #memory;
  #places;
  #variant;

  constructor(exports, weights, variant) {
    this.#exports = exports;
    this.#memory = exports.memory;
    this.#variant = variant;
    this.#places = this.#reserve(weights);
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

  /** Bytes of memory that the model holds; 0 when disposed. */
  get bytes() {
    return this.#memory === null ? 0 : this.#memory.buffer.byteLength;
  }

  /** The outputs by name for inputs by name, as typed arrays in row-major order. Nothing is cast silently. */
  async run(values) {
    if (this.#exports === null) throw new SecateurError("E_CLOSED", "the model was disposed; load it again");
    checkInputs(values);
    const { inputTable, outputTable, inputPlaces, outputPlaces, weights, arena } = this.#places;
    const buffer = this.#memory.buffer;
    inputs.forEach((tensor, i) => view(buffer, inputPlaces[i], tensor).set(values[tensor.name]));
    let status;
    try {
      status = this.#exports.secateur_run_steps(0, description.steps, inputTable, outputTable, weights, arena, 0);
    } catch (error) {
      throw new SecateurError("E_RUN", `the model failed: ${error.message}`, { cause: error });
    }
    if (status !== 0) throw new SecateurError("E_RUN", `the model failed with status ${status}`);
    return Object.fromEntries(outputs.map((tensor, i) => [tensor.name, view(buffer, outputPlaces[i], tensor).slice()]));
  }

  /** Gives the memory back. Disposing twice does nothing; running afterwards is an error. */
  dispose() {
    this.#exports = this.#memory = this.#places = null;
  }

  /** Grows the memory to what the model needs and copies the weights: addresses of everything. */
  #reserve(weights) {
    const start = aligned(this.#exports.__heap_base.value);
    let end = start;
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
      arena: take(description.arena_bytes),
    };
    try {
      this.#memory.grow(Math.max(0, Math.ceil((end - this.#memory.buffer.byteLength) / PAGE)));
    } catch (error) {
      throw new SecateurError("E_MEMORY", `the model needs ${end} bytes of memory, which the engine refuses`, {
        cause: error,
      });
    }
    const buffer = this.#memory.buffer;
    new Uint32Array(buffer, places.inputTable, inputs.length).set(places.inputPlaces);
    new Uint32Array(buffer, places.outputTable, outputs.length).set(places.outputPlaces);
    new Uint8Array(buffer, places.weights, description.weights.bytes).set(weights);
    return places;
  }
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

const OPTIONS = {
  base: [isUrl, "a URL"],
  code: [(v) => isUrl(v) || isBytes(v), "a URL or bytes"],
  weights: [(v) => isUrl(v) || isBytes(v), "a URL or bytes"],
  variant: [(v) => ["auto", "relaxed", "simd"].includes(v), "auto, relaxed or simd"],
  verify: [(v) => typeof v === "boolean", "true or false"],
  signal: [(v) => typeof v === "object" && "aborted" in v, "an AbortSignal"],
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

/* Written out one by one, so that bundlers see the files and copy them. */
function place(base, file) {
  if (base === undefined || base === null) {
    switch (file) {
      case "model.wasm":
        return new URL("./model.wasm", import.meta.url);
      case "model-relaxed.wasm":
        return new URL("./model-relaxed.wasm", import.meta.url);
      case "weights.bin":
        return new URL("./weights.bin", import.meta.url);
    }
  }
  const folder = absolute(base ?? ".", base === undefined || base === null ? import.meta.url : undefined);
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

async function instantiate(module, file) {
  let exports;
  try {
    ({ exports } = await WebAssembly.instantiate(module, {}));
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
