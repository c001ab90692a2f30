/* A network that tensorflow_js.py wrote, built of TensorFlow.js core operators on its WebAssembly backend. */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";

/* A function that computes the output for an input [n, c, h, w], on one thread. */
export async function tensorflow(modules, folder, input) {
  const network = JSON.parse(readFileSync(join(folder, "tensorflow.json")));
  const bytes = readFileSync(join(folder, "tensorflow.bin"));
  const require = createRequire(resolve(modules, "node_modules", "none.js"));
  const tf = require("@tensorflow/tfjs-core");
  const backend = require("@tensorflow/tfjs-backend-wasm");
  tf.env().set("WASM_HAS_MULTITHREAD_SUPPORT", false);
  if (!(await tf.setBackend("wasm"))) throw new Error("TensorFlow.js has no WebAssembly backend here");
  await tf.ready();
  if (!(await tf.env().getAsync("WASM_HAS_SIMD_SUPPORT"))) throw new Error("TensorFlow.js runs without SIMD");
  if (backend.version_wasm !== tf.version_core) throw new Error("TensorFlow.js in two versions");

  let at = bytes.byteOffset;
  const tensors = network.tensors.map((shape) => {
    const length = shape.reduce((a, b) => a * b, 1);
    const values = new Float32Array(bytes.buffer.slice(at, at + 4 * length));
    at += 4 * length;
    return tf.tensor(values, shape);
  });
  const image = pixelsFirst(input, network.input.shape);
  const steps = network.steps.map((step) => [step, compile(tf, step, tensors)]);
  return () => {
    const output = tf.tidy(() => {
      const values = { [network.input.name]: tf.tensor(image, network.input.shape) };
      for (const [step, run] of steps) values[step.y] = run(values[step.x], values[step.residual]);
      return values[network.output];
    });
    const data = output.dataSync();
    output.dispose();
    return data;
  };
}

/* One step as a function of its operand and the residual. */
function compile(tf, step, tensors) {
  const { strides, dilations, pad, size, activation } = step;
  const filter = tensors[step.filter];
  const bias = step.bias === null ? undefined : tensors[step.bias];
  const fused = step.residual ? "linear" : activation;
  const rounding = { dimRoundingMode: "floor", dataFormat: "NHWC" };
  const products = {
    conv2d: (x) => tf.fused.conv2d({ x, filter, strides, dilations, pad, bias, activation: fused, ...rounding }),
    depthwiseConv2d: (x) =>
      tf.fused.depthwiseConv2d({ x, filter, strides, dilations, pad, bias, activation: fused, ...rounding }),
    matMul: (x) => tf.fused.matMul({ a: x, b: filter, bias, activation: fused }),
  };
  const product = products[step.op];
  if (product && !step.residual) return product;
  if (product) {
    const end = { linear: (v) => v, relu: (v) => tf.relu(v), relu6: (v) => tf.relu6(v) }[activation];
    return (x, residual) => end(tf.add(product(x), residual));
  }
  const others = {
    maxPool: (x) => tf.maxPool(x, size, strides, pad, "floor"),
    mean: (x) => tf.mean(x, [1, 2]),
    same: (x) => x,
  };
  return others[step.op];
}

function pixelsFirst(input, [n, h, w, c]) {
  const image = new Float32Array(input.length);
  let to = 0;
  for (let i = 0; i < n; ++i)
    for (let p = 0; p < h * w; ++p) for (let k = 0; k < c; ++k) image[to++] = input[(i * c + k) * h * w + p];
  return image;
}
