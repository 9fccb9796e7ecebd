// One turn: what the user said, and a list of each policy that was asked.

import { feedback, recommend } from "./api.js";
import { Answer } from "./answer.js";
import { nameOf } from "./items.js";

export class Turn {
  /**
   * @param request {conversation, text, messages, exclude}: the conversation's id, what to show as said (undefined: more of
   *   the same), the messages, items that are not wanted again
   * @param page hooks of the page: seen, say, options, keepsThumbs, more, retry, refused, done
   */
  constructor(request, page) {
    Object.assign(this, request, { page, answers: [] });
    this.element = document.getElementById("turn-template").content.firstElementChild.cloneNode(true);
    this.part(".said p").textContent = this.text ?? "More, without these";
    this.part(".more").addEventListener("click", () => page.more(this));
  }

  part(selector) {
    return this.element.querySelector(selector);
  }

  /** Names of all items in the turn's lists. */
  get names() {
    return [...new Set(this.answers.flatMap((answer) => answer.items.map(nameOf)))];
  }

  /** Ask the policies, side by side. */
  async run(models) {
    this.stopping = new AbortController();
    const asked = this.page.options();
    const thumb = this.page.keepsThumbs() ? (model) => (item, liked) => this.keep(model, item, liked) : () => null;
    this.answers = models.map((model) => new Answer(model, asked.n, this.page.seen, thumb(model)));
    this.part(".answers").classList.toggle("two", models.length > 1);
    this.part(".answers").replaceChildren(...this.answers.map((answer) => answer.element));
    this.page.say(`Asking ${models.join(" and ")}`);
    await Promise.all(this.answers.map((answer) => this.write(answer, asked)));
    this.compare();
    this.part(".more").hidden = !this.names.length;
    this.page.done(this);
  }

  /** Write one list as it streams in. */
  async write(answer, asked) {
    const started = performance.now();
    try {
      const request = { model: answer.model, messages: this.messages, exclude: this.exclude, ...asked };
      for await (const { item, done } of recommend(request, this.stopping.signal)) {
        if (item) answer.add(item);
        else answer.finish((performance.now() - started) / 1000, done.remarks);
      }
      this.page.say(`${answer.model}: ${answer.items.map(nameOf).join(", ") || "no items"}`);
    } catch (error) {
      if (error.name === "AbortError") answer.stop();
      else this.explain(answer, asked, error);
    }
  }

  explain(answer, asked, error) {
    const words = error.status === undefined ? "The page failed to show this list." : error.message;
    answer.fail(words, () => this.page.retry(this, this.answers.map((other) => other.model)));
    this.page.refused(error);
    if (error.status === undefined) console.error(error);
  }

  stop() {
    this.stopping?.abort();
  }

  refresh() {
    this.answers.forEach((answer) => answer.refresh());
  }

  /** Of two lists: mark the items in both, and count them. */
  compare() {
    if (this.answers.length < 2) return;
    const [first, second] = this.answers.map((answer) => new Set(answer.items.map(nameOf)));
    const both = new Set([...first].filter((name) => second.has(name)));
    this.answers.forEach((answer) => answer.mark(both));
    const length = Math.max(first.size, second.size);
    this.part(".shared").textContent = length ? `${both.size} of ${length} items are in both lists.` : "";
  }

  /** Send a thumb. Returns whether the server kept it. */
  async keep(model, item, liked) {
    const { title, year } = item;
    try {
      await feedback({
        model, messages: this.messages, seen: this.page.options().seen, item: { title, year }, liked,
        conversation: this.conversation,
      });
      this.page.say(liked === null ? `${nameOf(item)}: thumb taken back` : `${nameOf(item)}: ${liked ? "good" : "bad"}, saved`);
      return true;
    } catch (error) {
      this.page.say(error.message);
      return false;
    }
  }
}
