// What the user has seen: a set of items, shown as chips, with a search over the catalog's titles.

import { titles } from "./api.js";
import { nameOf } from "./items.js";

const PAUSE = 150; // milliseconds without a key before the catalog is asked
const SHOWN = 8;

/** The items. `changed` is called after each change. */
export class Seen {
  constructor(changed) {
    this.items = new Map();
    this.changed = changed;
  }

  has(item) {
    return this.items.has(nameOf(item));
  }

  add(item) {
    this.items.set(nameOf(item), item);
    this.changed();
  }

  remove(item) {
    this.items.delete(nameOf(item));
    this.changed();
  }

  get names() {
    return [...this.items.keys()];
  }
}

/** Show the items as chips, each with a button that takes it back. */
export function showChips(list, seen) {
  list.replaceChildren(...[...seen.items.values()].map((item) => chip(item, seen, list)));
}

function chip(item, seen, list) {
  const element = document.createElement("li");
  const name = document.createElement("span");
  name.textContent = name.title = nameOf(item);
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-label", `Remove ${nameOf(item)}`);
  button.append(icon("i-close"));
  button.addEventListener("click", () => {
    const at = [...list.children].indexOf(element);
    seen.remove(item);
    const next = list.children[Math.min(at, list.children.length - 1)];
    (next?.querySelector("button") ?? document.getElementById("search")).focus(); // the focus must not be lost
  });
  element.append(name, button);
  return element;
}

function icon(id) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#${id}`);
  svg.append(use);
  return svg;
}

/** A combobox over the catalog, as the ARIA practices describe it: arrows choose, Enter takes, Escape closes. */
export class TitleSearch {
  constructor(input, list, seen, say) {
    Object.assign(this, { input, list, seen, say, found: [], at: -1, wait: 0, request: null });
    input.addEventListener("input", () => this.ask());
    input.addEventListener("keydown", (event) => this.key(event));
    input.addEventListener("blur", () => this.close());
    list.addEventListener("mousedown", (event) => event.preventDefault()); // keeps the focus in the input
    list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.take([...list.children].indexOf(option));
    });
  }

  ask() {
    clearTimeout(this.wait);
    this.request?.abort();
    const query = this.input.value.trim();
    if (!query) return this.close();
    this.wait = setTimeout(() => this.find(query), PAUSE);
  }

  async find(query) {
    this.request = new AbortController();
    try {
      const found = await titles(query, SHOWN, this.request.signal);
      this.show(found.filter((item) => !this.seen.has(item)));
    } catch (error) {
      if (error.name !== "AbortError") this.show([], error.message);
    }
  }

  show(found, wrong = "No title matches.") {
    if (document.activeElement !== this.input) return;
    this.found = found;
    this.list.replaceChildren(...found.map((item, at) => this.option(item, at)));
    if (!found.length) {
      const none = document.createElement("li");
      none.className = "none";
      none.textContent = wrong;
      this.list.append(none);
    }
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.choose(found.length ? 0 : -1);
    this.say(found.length ? `${found.length} title${found.length === 1 ? "" : "s"} found` : wrong);
  }

  option(item, at) {
    const element = document.createElement("li");
    element.id = `found-${at}`;
    element.setAttribute("role", "option");
    element.textContent = nameOf(item);
    return element;
  }

  choose(at) {
    this.at = at;
    [...this.list.children].forEach((option, i) => option.setAttribute("aria-selected", i === at));
    if (at < 0) this.input.removeAttribute("aria-activedescendant");
    else {
      this.input.setAttribute("aria-activedescendant", `found-${at}`);
      this.list.children[at].scrollIntoView({ block: "nearest" });
    }
  }

  key(event) {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (move && this.found.length) {
      event.preventDefault();
      this.choose((this.at + move + this.found.length) % this.found.length);
    } else if (event.key === "Enter" && this.at >= 0) {
      event.preventDefault();
      this.take(this.at);
    } else if (event.key === "Escape" && !this.list.hidden) {
      event.preventDefault();
      event.stopPropagation();
      this.close();
    }
  }

  take(at) {
    const item = this.found[at];
    this.input.value = "";
    this.close();
    this.seen.add(item);
    this.say(`${nameOf(item)}: seen`);
  }

  close() {
    clearTimeout(this.wait);
    this.found = [];
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.choose(-1);
  }
}
