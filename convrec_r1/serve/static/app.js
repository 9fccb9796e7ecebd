// The page: a conversation, its lists, and what the next list leaves out.

import { models, titles, useKey } from "./api.js";
import { nameOf, tagsOf } from "./items.js";
import { Seen, TitleSearch, showChips } from "./seen.js";
import { Turn } from "./turn.js";

const at = (id) => document.getElementById(id);
const say = (words) => (at("status").textContent = words);

const state = { models: [], conversation: newId(), messages: [], turns: [], running: null };
const seen = new Seen(() => {
  showChips(at("seen"), seen);
  state.turns.forEach((turn) => turn.refresh());
  count();
});

/** An id that nobody guesses. `crypto.randomUUID` is missing where a page comes over plain HTTP from another machine. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Show on the button of the options, which hides them on a phone, how many are set. */
function count() {
  const set = seen.items.size + (at("where").value.trim() ? 1 : 0);
  at("options-count").textContent = set;
  at("options-count").hidden = !set;
}

// Policies

async function begin() {
  try {
    state.models = await models();
  } catch (error) {
    say(error.message);
    if (error.status === 401) askForKey();
    else showWrong(error.message);
    return;
  }
  const names = state.models.map((model) => model.id);
  at("only").textContent = names[0];
  at("only").hidden = names.length > 1;
  for (const [id, chosen] of [["policy", 0], ["other", 1]]) {
    at(id).replaceChildren(...names.map((name) => new Option(name, name)));
    at(id).selectedIndex = Math.min(chosen, names.length - 1);
  }
  at("policy").hidden = at("compare").hidden = names.length < 2;
  fit(state.models[0]);
  await showExamples();
}

/** Fit the options to what the server can do. */
function fit(model) {
  at("kept").hidden = !model.feedback;
  at("n").max = model.max_n;
  at("n").value = Math.min(model.n, model.max_n);
  at("seen-section").hidden = at("where-section").hidden = !model.catalog;
  const others = model.fields.filter((field) => !["title", "year"].includes(field));
  at("where").placeholder = others.length ? `${others[0]}=\u2026 and year>1990` : "year>1990";
  at("where-hint").textContent = `Filter by ${model.fields.join(", ")}. Empty: the whole catalog.`;
}

function chosen() {
  const first = at("policy").value || state.models[0]?.id;
  const comparing = at("compare").getAttribute("aria-pressed") === "true";
  return comparing && at("other").value !== first ? [first, at("other").value] : [first];
}

function compare() {
  const on = at("compare").getAttribute("aria-pressed") !== "true";
  at("compare").setAttribute("aria-pressed", on);
  at("other").hidden = !on;
  if (on && at("other").value === at("policy").value) at("other").selectedIndex = at("policy").selectedIndex ? 0 : 1;
}

function askForKey() {
  at("key-section").hidden = false;
  showOptions(true);
  at("key").focus();
}

// Examples: made of the catalog's own titles and tags, so that they fit any catalog.

async function showExamples() {
  let items = [];
  try {
    items = await titles("", 60);
  } catch {
    // the page works without examples
  }
  if (!items.length) return;
  const pick = (share) => items[Math.floor(share * (items.length - 1))].title;
  const [often, second] = commonest(items.flatMap(tagsOf));
  const texts = [
    `I loved ${pick(0.15)} and ${pick(0.6)}. What should I try next?`,
    often ? `Some ${often}, please, but not like ${pick(0.35)}.` : `Something a little different from ${pick(0.35)}?`,
    second ? `Is there good ${second} that I may not know yet?` : "What do people overlook?",
    `${pick(0.85)} was not for me. What else is there?`,
  ];
  at("examples").replaceChildren(...texts.map(example));
}

function commonest(words) {
  const counts = new Map();
  for (const word of words) counts.set(word, (counts.get(word) ?? 0) + 1);
  return [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a));
}

function example(text) {
  const element = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", () => ask(text));
  element.append(button);
  return element;
}

// The conversation

function submit(event) {
  event.preventDefault();
  if (state.running) {
    state.running.stop();
    return;
  }
  const text = at("message").value.trim();
  if (text) ask(text);
}

function ask(text) {
  if (state.running || !state.models.length) return;
  at("message").value = "";
  state.messages.push({ role: "user", content: text });
  start({ text, messages: [...state.messages], exclude: [] });
}

const hooks = {
  seen,
  say,
  /** What a request says besides the conversation. */
  options: () => ({ n: length(), seen: seen.names, where: at("where").value.trim() || null }),
  keepsThumbs: () => Boolean(state.models[0]?.feedback),
  more: (turn) => start({ messages: turn.messages, exclude: [...turn.exclude, ...turn.names] }),
  /** Ask all policies of a turn again, with the options as they are now. */
  retry: (turn, names) => {
    if (!state.running) run(turn, names);
  },
  refused: (error) => {
    if (error.status === 401) askForKey();
    if (at("where").value && /\bwhere\b/.test(error.message)) at("where-error").textContent = error.message;
  },
  done: (turn) => {
    state.running = null;
    showSending();
    const names = turn.answers[0].items.map(nameOf);
    if (names.length) state.messages = [...turn.messages, { role: "assistant", content: names.join(", ") }];
    else if (turn.text) state.messages = turn.messages.slice(0, -1); // it had no answer
  },
};

/** request: see Turn, without the conversation's id. */
function start(request) {
  if (state.running) return;
  const turn = new Turn({ conversation: state.conversation, ...request }, hooks);
  showOptions(false);
  at("empty").hidden = true;
  at("restart").classList.remove("away");
  state.turns.push(turn);
  at("conversation").append(turn.element);
  run(turn, chosen());
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  turn.element.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
}

function run(turn, names) {
  at("where-error").textContent = "";
  state.running = turn;
  showSending();
  turn.run(names);
}

function showSending() {
  const on = Boolean(state.running);
  at("send").setAttribute("aria-label", on ? "Stop" : "Send");
  at("send").querySelector("use").setAttribute("href", on ? "#i-stop" : "#i-send");
}

function restart() {
  state.running?.stop();
  Object.assign(state, { conversation: newId(), messages: [], turns: [] });
  at("conversation").replaceChildren();
  at("empty").hidden = false;
  at("restart").classList.add("away");
  say("A new conversation");
  at("message").focus();
}

function length() {
  const { min, max, value } = at("n");
  return Math.min(Math.max(Math.round(Number(value)) || 10, min), max);
}

// Options

function showOptions(on) {
  at("options").classList.toggle("open", on);
  at("options-button").setAttribute("aria-expanded", on);
}

function showWrong(words) {
  const wrong = document.createElement("li");
  const text = document.createElement("p");
  const again = document.createElement("button");
  text.className = "wrong";
  text.textContent = words;
  again.type = "button";
  again.textContent = "Try again";
  again.addEventListener("click", () => {
    wrong.remove();
    begin();
  });
  wrong.append(text, again);
  at("examples").replaceChildren(wrong);
}

new ResizeObserver(() => {
  document.documentElement.style.setProperty("--bar", `${document.querySelector(".bar").offsetHeight}px`);
}).observe(document.querySelector(".bar"));
new TitleSearch(at("search"), at("found"), seen, say);
at("composer").addEventListener("submit", submit);
at("compare").addEventListener("click", compare);
at("restart").addEventListener("click", restart);
at("where").addEventListener("input", count);
at("key").addEventListener("change", () => {
  useKey(at("key").value);
  if (!state.models.length) begin();
});
at("options-button").addEventListener("click", () => showOptions(!at("options").classList.contains("open")));
at("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("composer").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && at("options").classList.contains("open")) {
    showOptions(false);
    at("options-button").focus();
  }
});
begin();
