/* The page of the benchmark, and the worker that it runs in. */
if (typeof WorkerGlobalScope === "function" && globalThis instanceof WorkerGlobalScope) {
  try {
    const { profile } = await import("./bench.js");
    const found = await profile(navigator.userAgent, { tell: (share) => postMessage({ share }) });
    postMessage({ found });
  } catch (error) {
    postMessage({ problem: error.message });
  }
} else {
  const status = document.querySelector("#status");
  const worker = new Worker(new URL("./page.js", import.meta.url), { type: "module" });
  worker.addEventListener("error", (event) => end(`The worker failed: ${event.message ?? "it could not be loaded"}`, "error"));
  worker.addEventListener("message", ({ data: { share, found, problem } }) => {
    if (problem !== undefined) end(problem, "error");
    else if (found !== undefined) show(found);
    else document.querySelector("progress").value = share;
  });

  const end = (text, state) => {
    status.textContent = text;
    document.querySelector("progress").hidden = true;
    document.body.dataset.state = state;
    worker.terminate();
  };

  const show = (found) => {
    const text = `${JSON.stringify(found, null, 1)}\n`;
    const link = document.querySelector("#save");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.hidden = false;
    Object.assign(document.querySelector("textarea"), { value: text, hidden: false });
    const rows = found.kernels.map(({ name, multiply_adds: work, least }) => {
      const row = document.createElement("tr");
      for (const cell of [name, (1e6 * least).toFixed(1), ((2e-9 * work) / least).toFixed(1)]) {
        row.append(Object.assign(document.createElement("td"), { textContent: cell }));
      }
      return row;
    });
    document.querySelector("tbody").replaceChildren(...rows);
    document.querySelector("table").hidden = false;
    end(`${found.processor}, ${found.code === "relaxed" ? "relaxed SIMD" : "SIMD"}`, "done");
  };
}
