// A list as it is written: lines of a fixed height that wait for their items, so that nothing moves.

import { detailsOf, nameOf, percent } from "./items.js";

const template = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

export class Answer {
  /**
   * @param model the policy's name
   * @param n lines to wait for
   * @param seen the titles that the user has seen, see seen.js
   * @param thumb called with (item, liked) when a thumb is pressed; null: the server keeps none
   */
  constructor(model, n, seen, thumb) {
    this.model = model;
    this.n = n;
    this.seen = seen;
    this.thumb = thumb;
    this.items = [];
    this.element = template("answer-template");
    this.list = this.element.querySelector(".list");
    this.progress = this.element.querySelector(".progress");
    this.element.querySelector("h2").textContent = model;
    this.element.setAttribute("aria-label", `List of ${model}`);
    this.list.replaceChildren(...Array.from({ length: n }, (_, at) => this.emptyLine(at)));
    this.count();
  }

  emptyLine(at) {
    const line = template("line-template");
    line.querySelector(".rank").textContent = at + 1;
    line.setAttribute("aria-hidden", "true");
    return line;
  }

  /** Write the next item into its line. */
  add(item) {
    const at = this.items.length;
    if (at >= this.list.children.length) this.list.append(this.emptyLine(at));
    this.items.push(item);
    this.fill(this.list.children[at], item);
    this.count();
  }

  /** Show how many lines there are, in a text of constant width. */
  count() {
    const width = String(this.n).length;
    this.progress.textContent = `${String(this.items.length).padStart(width, "\u2007")} of ${this.n}`;
  }

  fill(line, item) {
    const name = nameOf(item);
    const part = (selector) => line.querySelector(selector);
    line.classList.remove("waiting");
    line.removeAttribute("aria-hidden");
    line.dataset.name = name;
    part(".title").textContent = item.title;
    part(".title").title = name;
    part(".details").textContent = detailsOf(item);
    if (item.score != null) {
      const chance = percent(item.score);
      part(".value").textContent = chance;
      part(".fill").style.width = `${100 * Math.exp(item.score)}%`;
      part(".score").title = `Probability of this line, given those above: ${chance} (log-probability ${item.score.toFixed(2)})`;
      part(".chance").textContent = chance;
    } else {
      part(".score").replaceChildren();
    }
    this.wireSeen(part(".seen"), item);
    this.wireThumbs(part(".up"), part(".down"), item);
  }

  wireSeen(label, item) {
    const box = label.querySelector("input");
    label.querySelector(".hidden").textContent = `Seen: ${nameOf(item)}`;
    box.checked = this.seen.has(item);
    box.addEventListener("change", () => (box.checked ? this.seen.add(item) : this.seen.remove(item)));
  }

  wireThumbs(up, down, item) {
    if (!this.thumb) {
      up.remove();
      down.remove();
      return;
    }
    up.setAttribute("aria-label", `Good: ${nameOf(item)}`);
    down.setAttribute("aria-label", `Bad: ${nameOf(item)}`);
    const press = async (pressed, other, liked) => {
      const before = [up, down].map((button) => button.getAttribute("aria-pressed"));
      const on = pressed.getAttribute("aria-pressed") !== "true";
      pressed.setAttribute("aria-pressed", on);
      other.setAttribute("aria-pressed", false);
      if (!(await this.thumb(item, on ? liked : null))) {
        [up, down].forEach((button, at) => button.setAttribute("aria-pressed", before[at]));
      }
    };
    up.addEventListener("click", () => press(up, down, true));
    down.addEventListener("click", () => press(down, up, false));
  }

  /** Show again what is ticked: a title may be ticked in another list, or taken back among the options. */
  refresh() {
    this.items.forEach((item, at) => {
      this.list.children[at].querySelector("input").checked = this.seen.has(item);
    });
  }

  /** Mark the items that another list of the same turn holds too. */
  mark(names) {
    for (const line of this.list.children) line.querySelector(".both").hidden = !names.has(line.dataset.name);
  }

  /** The list is complete. Lines that no item came for go. remarks: what the server says about the list. */
  finish(seconds, remarks = []) {
    this.settle();
    const count = this.items.length;
    this.progress.textContent = `${count} item${count === 1 ? "" : "s"} in ${seconds.toFixed(1)} s`;
    this.say(remarks.join(" ") || (count ? "" : "No item of the catalog is left: change the filter, or what you have seen."));
  }

  stop() {
    this.settle();
    this.progress.textContent = "Stopped";
  }

  /** The list failed: say why, and offer to try again. */
  fail(words, again) {
    this.settle();
    this.progress.textContent = "";
    const failed = this.element.querySelector(".failed");
    failed.querySelector("p").textContent = words;
    failed.querySelector("button").addEventListener("click", again);
    failed.hidden = false;
  }

  settle() {
    this.element.setAttribute("aria-busy", "false");
    this.list.querySelectorAll(".waiting").forEach((line) => line.remove());
    this.list.hidden = !this.items.length;
  }

  say(words) {
    const note = this.element.querySelector(".note");
    note.textContent = words;
    note.hidden = !words;
  }
}
