/* Loads and runs the models, so that the page stays alive. Messages: { id, call, ... } and { id, result | error }. */
const models = new Map();

const calls = {
  async load({ name, base }) {
    const start = performance.now();
    const { load } = await import(new URL("index.js", base).href);
    const model = await load();
    models.set(name, model);
    return { variant: model.variant, threads: model.threads, bytes: model.bytes, milliseconds: performance.now() - start };
  },

  run({ name, values }) {
    return models.get(name).run(values);
  },

  /* Every model in turn, until each has had its share of the time: what disturbs one disturbs all. */
  async measure({ names, values, milliseconds }) {
    const times = Object.fromEntries(names.map((name) => [name, []]));
    for (const name of names) await models.get(name).run(values);
    const end = performance.now() + milliseconds * names.length;
    do {
      for (const name of names) times[name].push(await time(models.get(name), values));
    } while (performance.now() < end);
    return Object.fromEntries(names.map((name) => [name, summary(times[name])]));
  },
};

/* Clocks of pages that are not isolated are coarse: short runs are timed together. */
async function time(model, values) {
  const start = performance.now();
  let runs = 0;
  let now;
  do {
    await model.run(values);
    runs += 1;
    now = performance.now();
  } while (now - start < 5);
  return (now - start) / runs;
}

function summary(times) {
  const sorted = [...times].sort((a, b) => a - b);
  return { median: sorted[sorted.length >> 1], least: sorted[0], count: sorted.length };
}

addEventListener("message", async ({ data: { id, call, ...values } }) => {
  try {
    postMessage({ id, result: await calls[call](values) });
  } catch (error) {
    postMessage({ id, error: { code: error.code ?? error.name, message: error.message } });
  }
});
