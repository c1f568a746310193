// One prompt, one streamed completion. Everything from outside is shown as text, never as markup.
"use strict";

const element = (id) => document.getElementById(id);
const show = (id, text) => { element(id).textContent = text; };

let modelName = null;
let running = null;

async function readModelName() {
  const response = await fetch("v1/models");
  const models = await response.json();
  modelName = models.data[0].id;
  show("model", modelName);
}

// Drawn here so that it can be shown, and typed in again, from the start.
function chosenSeed() {
  const typed = element("seed").value;
  return typed === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number(typed);
}

function requestBody(seed) {
  return {
    model: modelName,
    prompt: element("prompt").value,
    temperature: Number(element("temperature").value),
    max_tokens: Number(element("max-tokens").value),
    speculation: { enabled: element("speculation").checked },
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    seed,
  };
}

// The `data:` lines of a stream of server-sent events.
async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ")) yield line.slice("data: ".length);
    }
  }
}

function showNumbers(event, startedMs, firstMs) {
  const tokens = event.usage.completion_tokens;
  const nowMs = performance.now();
  show("tokens", String(tokens));
  show("first", `${Math.round(firstMs - startedMs)} ms`);
  show("rate", (tokens / ((nowMs - startedMs) / 1000)).toFixed(1));
  if (event.dspark?.rounds > 0) show("tau", (tokens / event.dspark.rounds).toFixed(2));
}

async function readAnswer(response, startedMs) {
  let firstMs = null;
  for await (const data of readEvents(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message);
    firstMs ??= performance.now();
    // A text node per chunk: the page's work stays the same however long the answer is.
    for (const choice of event.choices) element("answer").append(document.createTextNode(choice.text));
    if (event.usage) showNumbers(event, startedMs, firstMs);
  }
  throw new Error("the connection ended before the answer did");
}

async function generate() {
  const startedMs = performance.now();
  if (modelName === null) await readModelName();
  const seed = chosenSeed();
  show("used-seed", String(seed));
  const response = await fetch("v1/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(requestBody(seed)),
    signal: running.signal,
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  await readAnswer(response, startedMs);
}

function setRunning(isRunning) {
  element("run").disabled = isRunning;
  element("stop").disabled = !isRunning;
}

async function onSubmit(submitted) {
  submitted.preventDefault();
  running = new AbortController();
  setRunning(true);
  show("answer", "");
  show("message", "");
  for (const id of ["rate", "tau", "tokens", "first", "used-seed"]) show(id, "–");
  element("run").textContent = "Generate";
  try {
    await generate();
  } catch (error) {
    // What came so far stays; the same button tries again.
    show("message", error.name === "AbortError" ? "stopped" : error.message);
    if (error.name !== "AbortError") element("run").textContent = "Retry";
  } finally {
    setRunning(false);
  }
}

element("form").addEventListener("submit", onSubmit);
element("stop").addEventListener("click", () => running.abort());
readModelName().catch(() => show("model", "the service does not answer"));
