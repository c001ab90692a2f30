/* What comes out of a model, for people: bars for classes, a picture for pictures, a table for anything else. */

const MOST_BARS = 5;
const MOST_ROWS = 32;

export function showOutputs(place, outputs, config) {
  const parts = config.outputs.map((tensor) => {
    const values = outputs[tensor.name];
    if (tensor.kind === "classes") return bars(values, config.labels);
    if (tensor.kind === "picture") {
      const canvas = document.createElement("canvas");
      canvas.dataset.output = tensor.name;
      if (drawTensor(canvas, values, tensor.shape, { mean: [0, 0, 0], std: [1, 1, 1] })) return canvas;
    }
    return table(tensor, values);
  });
  place.replaceChildren(...parts);
}

/* Shares of the whole: the values themselves if that is what they are, else their softmax. */
function shares(values) {
  const numbers = Array.from(values, Number);
  const sum = numbers.reduce((a, b) => a + b, 0);
  if (Math.abs(sum - 1) < 1e-3 && numbers.every((value) => value >= 0)) return numbers;
  const most = Math.max(...numbers);
  const powers = numbers.map((value) => Math.exp(value - most));
  const whole = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / whole);
}

function bars(values, labels) {
  const list = document.createElement("div");
  list.className = "bars";
  const ranked = shares(values).map((share, index) => ({ share, index }));
  ranked.sort((a, b) => b.share - a.share);
  for (const { share, index } of ranked.slice(0, MOST_BARS)) {
    const [row, name, track, fill, value] = ["bar", "name", "track", "fill", "value"].map((className) => {
      const element = document.createElement("div");
      element.className = className;
      return element;
    });
    name.textContent = name.title = labels[index] ?? `class ${index}`;
    fill.style.width = `${100 * share}%`;
    value.textContent = `${(100 * share).toFixed(1)} %`;
    row.dataset.index = index;
    row.dataset.share = share;
    track.append(fill);
    row.append(name, track, value);
    list.append(row);
  }
  return list;
}

function table(tensor, values) {
  const element = document.createElement("table");
  element.dataset.output = tensor.name;
  element.createCaption().textContent = `${tensor.name}: ${tensor.dtype}[${tensor.shape.join(", ")}]`;
  for (let index = 0; index < Math.min(values.length, MOST_ROWS); ++index) {
    const row = element.insertRow();
    row.insertCell().textContent = place(index, tensor.shape);
    row.insertCell().textContent = typeof values[index] === "bigint" ? values[index] : Number(values[index]).toPrecision(6);
  }
  if (values.length > MOST_ROWS) element.insertRow().insertCell().textContent = `… ${values.length - MOST_ROWS} more`;
  return element;
}

function place(index, shape) {
  const at = [];
  for (const extent of [...shape].reverse()) {
    at.unshift(index % extent);
    index = Math.floor(index / extent);
  }
  return `[${at.join(", ")}]`;
}

/* A tensor [1, 1 or 3, height, width] as a picture, its normalisation undone. Values beyond [0, 1] are stretched to it,
   unless they look like bytes. False for other tensors. */
export function drawTensor(canvas, values, shape, { mean, std }) {
  if (shape.length !== 4 || shape[0] !== 1 || ![1, 3].includes(shape[1]) || Math.min(shape[2], shape[3]) < 8) return false;
  const [, channels, height, width] = shape;
  const size = height * width;
  const plain = Float32Array.from(values, (value, i) => Number(value) * std[Math.floor(i / size)] + mean[Math.floor(i / size)]);
  let [low, high] = [Infinity, -Infinity];
  for (const value of plain) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low >= -0.1 && high <= 1.1) [low, high] = [0, 1];
  else if (low >= 0 && high > 16 && high <= 255) [low, high] = [0, 255];
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  for (let i = 0; i < size; ++i) {
    for (let c = 0; c < 3; ++c) {
      image.data[4 * i + c] = (255 * (plain[(c % channels) * size + i] - low)) / Math.max(high - low, 1e-12);
    }
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return true;
}
