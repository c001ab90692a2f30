/* The page: chooses an input, lets the worker run the models on it, shows what comes out and how long it takes. */
import { inputs, zeros } from "../index.js";
import { config } from "./config.js";
import { drawTensor, showOutputs } from "./show.js";

const body = document.body;
const elements = Object.fromEntries(
  ["status", "problem", "pictures", "controls", "models"].map((id) => [id, document.getElementById(id)]),
);
const names = config.models.map((model) => model.name);
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
let values = {};
let busy = Promise.resolve();

worker.addEventListener("message", ({ data: { id, result, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error) reject(Object.assign(new Error(error.message), { code: error.code }));
  else resolve(result);
});
worker.addEventListener("error", (event) => fail(new Error(event.message || "the worker could not be started")));

function call(name, options) {
  const id = crypto.getRandomValues(new Uint32Array(2)).join("-");
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, call: name, ...options });
  });
}

function state(name, text) {
  body.dataset.state = name;
  elements.status.textContent = text;
}

function fail(error) {
  elements.problem.textContent = `${error.code ? `${error.code}: ` : ""}${error.message}`;
  elements.problem.hidden = false;
  state("error", "This did not work.");
}

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  const { dataset = {}, ...others } = properties;
  Object.assign(element, others);
  Object.assign(element.dataset, dataset);
  element.append(...children);
  return element;
}

function bytes(count) {
  return count < 1e6 ? `${(count / 1e3).toFixed(0)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

function card({ name, title, macs, weights, code }) {
  const millions = (macs / 1e6).toFixed(macs < 1e7 ? 1 : 0);
  return make(
    "section",
    { className: "model", ariaLabel: title, dataset: { model: name } },
    make("h2", { textContent: title }),
    make("p", { className: "latency", textContent: "…" }),
    make("p", {
      className: "facts",
      textContent: `${millions} million multiply-accumulates, ${bytes(weights)} of weights, ${bytes(code)} of code`,
    }),
    make("div", { className: "outputs" }),
  );
}

function part(name, selector) {
  return elements.models.querySelector(`[data-model="${name}"] ${selector}`);
}

/* One after the other: a new input waits until the last one is done. */
function use(next) {
  busy = busy
    .then(async () => {
      elements.problem.hidden = true;
      values = await next();
      showInputs();
      state("running", "Running…");
      for (const name of names) showOutputs(part(name, ".outputs"), await call("run", { name, values }), config);
      await measure();
    })
    .catch(fail);
  return busy;
}

async function measure() {
  const found = await call("measure", { names, values, milliseconds: config.milliseconds });
  for (const name of names) {
    const { median, least, count } = found[name];
    const element = part(name, ".latency");
    element.textContent = `${median.toFixed(median < 10 ? 2 : 1)} ms`;
    element.title = `median of ${count}; least ${least.toFixed(2)} ms`;
    element.dataset.milliseconds = median;
  }
  const [first, second] = names.map((name) => found[name].median);
  state("done", second === undefined ? "Done." : `${(second / first).toFixed(2)} times as fast as the dense model.`);
}

function showInputs() {
  elements.pictures.replaceChildren();
  for (const tensor of inputs) {
    const canvas = make("canvas", { dataset: { input: tensor.name } });
    if (drawTensor(canvas, values[tensor.name], tensor.shape, config)) elements.pictures.append(canvas);
    else elements.pictures.append(make("p", { textContent: `${tensor.name}: ${tensor.dtype}[${tensor.shape.join(", ")}]` }));
  }
}

/* Normal numbers from a fixed seed; zeros for integers, which may be indices. */
function noise() {
  let seed = 1;
  const random = () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return (seed + 1) / 4294967297;
  };
  const normal = () => Math.sqrt(-2 * Math.log(random())) * Math.cos(2 * Math.PI * random());
  return Object.fromEntries(
    inputs.map((tensor) => {
      const array = zeros(tensor);
      return [tensor.name, tensor.dtype === "float32" || tensor.dtype === "float64" ? array.map(normal) : array];
    }),
  );
}

let samples;

async function sample(index) {
  if (samples === undefined) {
    const response = await fetch(new URL("./samples.bin", import.meta.url));
    if (!response.ok) throw new Error(`samples.bin: the server answered ${response.status}`);
    samples = await response.arrayBuffer();
  }
  return Object.fromEntries(
    inputs.map((tensor) => {
      const { at, bytes } = config.samples.tensors[tensor.name];
      const array = zeros(tensor);
      new Uint8Array(array.buffer).set(new Uint8Array(samples, at + index * bytes, bytes));
      return [tensor.name, array];
    }),
  );
}

/* The picture fills the input's frame; what does not fit its sides is cut off. */
async function picture(file) {
  const { channels, height, width, name } = config.picture;
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name} is not a picture that this browser reads`);
  });
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const [w, h] = [bitmap.width * scale, bitmap.height * scale];
  context.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
  const { data } = context.getImageData(0, 0, width, height);
  const array = new Float32Array(channels * height * width);
  for (let c = 0; c < channels; ++c) {
    for (let i = 0; i < height * width; ++i) {
      const [r, g, b] = data.subarray(4 * i, 4 * i + 3);
      const value = channels === 1 ? 0.299 * r + 0.587 * g + 0.114 * b : data[4 * i + c];
      array[c * height * width + i] = (value / 255 - config.mean[c]) / config.std[c];
    }
  }
  return { [name]: array };
}

function controls() {
  if (config.samples) {
    const choices = config.samples.names.map((text, index) => make("option", { value: index, textContent: text }));
    const select = make("select", { id: "sample" }, ...choices);
    select.addEventListener("change", () => use(() => sample(Number(select.value))));
    elements.controls.append(make("label", { textContent: "Sample " }, select));
  }
  const again = make("button", { id: "noise", textContent: "Noise" });
  again.addEventListener("click", () => use(noise));
  elements.controls.append(again);
  if (config.picture) {
    const file = make("input", { id: "file", type: "file", accept: "image/*" });
    file.addEventListener("change", () => file.files.length && use(() => picture(file.files[0])));
    elements.controls.append(make("label", { textContent: "Your own picture " }, file));
  }
}

function threadsInWords(count) {
  if (count > 1) return `${count} threads`;
  return config.threads && !crossOriginIsolated ? "1 thread, since the page is not isolated" : "1 thread";
}

async function start() {
  elements.models.append(...config.models.map(card));
  controls();
  for (const { name, title, base } of config.models) {
    state("loading", `Loading ${title}…`);
    const { variant, threads } = await call("load", { name, base: new URL(base, import.meta.url).href });
    const facts = part(name, ".facts");
    facts.textContent += `${variant === "relaxed" ? ", relaxed SIMD" : ", SIMD"}, ${threadsInWords(threads)}`;
    facts.dataset.threads = threads;
  }
  await use(config.samples ? () => sample(0) : noise);
}

start().catch(fail);
