// Speaks to the server: models, health, and chat completions as a stream, in OpenAI's dialect.

import { readSetting, writeSetting } from "./storage.js";

// Paths are relative to the page, which may lie behind a prefix.
const at = (path) => new URL(path, document.baseURI).href;

let key = readSetting("key", "");
let askKey = async () => null; // replaced by onKeyNeeded

export class ServerError extends Error {
  constructor(message, status, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds, or NaN
  }
}

// `ask(wrong)` is a promise of { key, keep }, or of null when the person gave none.
export function onKeyNeeded(ask) {
  askKey = ask;
}

function headers() {
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

let asking = null; // one question for requests that fail at the same time

async function newKey(used) {
  if (used !== key) return true;
  asking ??= askKey(key !== "").finally(() => {
    asking = null;
  });
  const given = await asking;
  if (given === null) return false;
  key = given.key;
  writeSetting("key", given.keep ? key : "");
  return true;
}

// Throws ServerError for an answer that refuses, TypeError when the server cannot be reached.
async function request(path, options = {}) {
  for (;;) {
    const used = key;
    const response = await fetch(at(path), { ...options, headers: headers() });
    if (response.status === 401 && (await newKey(used))) continue;
    if (!response.ok) throw await refusal(response);
    return response;
  }
}

async function refusal(response) {
  let message = `the server answered ${response.status}`;
  try {
    const { error } = await response.json();
    message = error?.message ?? error ?? message;
  } catch {
    // Not JSON: a proxy's own page. The status says enough.
  }
  return new ServerError(String(message), response.status, Number(response.headers.get("Retry-After") ?? NaN));
}

const post = (path, body, signal) => request(path, { method: "POST", body: JSON.stringify(body), signal });

// "ok", "loading model", … as the server says it; "gone" when there is none.
export async function health() {
  try {
    const response = await fetch(at("health"), { signal: AbortSignal.timeout(5000), cache: "no-store" });
    return (await response.json()).status;
  } catch {
    return "gone";
  }
}

export async function modelNames() {
  const { data } = await (await request("v1/models")).json();
  return data.map((model) => model.id);
}

// { n_ctx, params: the defaults of sampling } of a model; loads it when it is not.
export async function properties(model) {
  const query = model ? `?model=${encodeURIComponent(model)}` : "";
  const { default_generation_settings: settings, modalities } = await (await request(`props${query}`)).json();
  return { ...settings, vision: modalities.vision };
}

// How many tokens the model reads for these messages.
export async function countTokens(model, messages) {
  const { prompt } = await (await post("apply-template", { model, messages })).json();
  const { tokens } = await (await post("tokenize", { model, content: prompt, parse_special: true })).json();
  return tokens.length;
}

// Calls `onText(text)` for each piece. The promise: { finishReason, stoppedBy, usage }.
export async function streamChat(body, signal, onText) {
  const wanted = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await post("v1/chat/completions", wanted, signal);
  const result = { finishReason: null, stoppedBy: null, usage: null, complete: false };
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      result.complete = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message, 500, NaN);
    if (chunk.usage) result.usage = chunk.usage;
    for (const { delta, finish_reason: reason, stopped_by: stoppedBy } of chunk.choices) {
      if (delta.content) onText(delta.content);
      if (reason) Object.assign(result, { finishReason: reason, stoppedBy });
    }
  }
  if (!result.complete) throw new TypeError("the connection broke off");
  return result;
}

// The data of server-sent events.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trimStart();
  }
}
