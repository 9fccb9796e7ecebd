// The server's API: the only file that knows requests, answers and their errors.

let key = "";

/** Send this key with every request from now on. It is kept in memory only. */
export function useKey(value) {
  key = value.trim();
}

/**
 * An answer that is not the one asked for. `message` is for people, `code` for programs; `status` is 0
 * if there was no answer.
 */
export class Refused extends Error {
  constructor(message, status = 0, code = "") {
    super(message);
    Object.assign(this, { status, code });
  }
}

const WORDS = {
  401: "This server asks for a key. Enter it under Options.",
  403: "This key may not do that.",
  404: "This server does not have that.",
  413: "That is more text than this server reads at once. Shorten the message, or start a new conversation.",
  429: "The server is busy.",
  503: "The server is starting or stopping. Try again in a moment.",
  504: "The answer took too long, and the server gave up. Try again.",
};

/** The policies of the server: [{id, n, max_n, catalog, fields, feedback}]. */
export async function models() {
  return (await call("v1/models")).data;
}

/** Items of the catalog whose titles hold `query`: [{title, year, metadata}]. */
export async function titles(query, limit, signal) {
  const asked = new URLSearchParams({ query, limit });
  return (await call(`v1/catalog?${asked}`, { signal })).items;
}

/** Keep a thumb: {model, conversation, messages, seen, item: {title, year}, liked}. liked: null takes it back. */
export function feedback(thumb) {
  return call("v1/feedback", { method: "POST", body: JSON.stringify(thumb) });
}

/**
 * Ask for a list. Yields {item} for each item as it is written, then {done} with what the server says about the list.
 *
 * request: {model, messages, n, seen, exclude, where}.
 */
export async function* recommend(request, signal) {
  const body = JSON.stringify({ ...request, stream: true });
  const response = await send("v1/recommendations", { method: "POST", body, signal });
  let ended = false;
  for await (const { event, data } of events(response)) {
    if (data === "[DONE]") break;
    const value = JSON.parse(data);
    if (event === "error" || value.error) throw new Refused(said(value) ?? "The server failed while it wrote this list.");
    if (event === "item") yield { item: value };
    if (event === "done") {
      ended = true;
      yield { done: value };
    }
  }
  if (!ended) throw new Refused("The connection was lost while the list was written.");
}

async function call(path, options) {
  const response = await send(path, options);
  return response.status === 204 ? null : response.json();
}

async function send(path, options = {}) {
  const headers = { ...(options.body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : lost();
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  const wait = Number(response.headers.get("Retry-After"));
  let words = WORDS[response.status] ?? said(body) ?? `The server answered with an error (${response.status}).`;
  if (response.status === 429) words += wait ? ` Try again in ${wait} second${wait === 1 ? "" : "s"}.` : " Try again in a moment.";
  return new Refused(words, response.status, body?.error?.code);
}

/** What a body says went wrong: {error: {message}} or FastAPI's {detail}. */
function said(body) {
  const detail = body?.error?.message ?? body?.error ?? body?.detail;
  if (Array.isArray(detail)) return detail.map((part) => part.msg).join(" ");
  return typeof detail === "string" ? detail : undefined;
}

function lost() {
  const off = navigator.onLine ? "" : " This device is offline.";
  return new Refused(`The server cannot be reached.${off} Check that it is running, then try again.`);
}

/** Yield the events of a text/event-stream: {event, data}. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new Refused("The connection was lost while the list was written.");
    }
    if (part.done) return;
    text = (text + part.value).replaceAll("\r\n", "\n");
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = { event: "message", data: "" };
      for (const line of block.split("\n")) {
        const [, name, value] = /^(event|data): ?(.*)$/.exec(line) ?? [];
        if (name === "event") fields.event = value;
        if (name === "data") fields.data += (fields.data && "\n") + value;
      }
      if (fields.data) yield fields;
    }
  }
}
