/** The shelf: products by search and page, their live stock, and the way into the cart. */

import { make, part, say } from "./dom.js";
import { paper } from "./paper.js";
import { mine, money, stock } from "./words.js";

const PAGE = 24;
const TYPING = 250; // after the last key, before we search
const LOOKING = 300; // after the last scroll, before we tell the shop what is in view
const MOST = 999;

export class Catalogue {
  #shelf;
  #ask;
  #watch;
  #changed;
  #cards = new Map(); // code -> what is shown of a product
  #query = null;
  #after = null;
  #reading = null; // the AbortController of the list being read
  #failed = false;
  #inView = new Set();
  #looking = null;
  #observer;

  /** `ask(product, quantity)` adds to the cart; `watch(products)` says whose stock is in view; `changed()`: draw me. */
  constructor(shelf, ask, watch, changed) {
    this.#shelf = shelf;
    this.#ask = ask;
    this.#watch = watch;
    this.#changed = changed;
    this.#observer = new IntersectionObserver((entries) => this.#look(entries), { rootMargin: "200px" });
    let typing = null;
    const search = () => {
      clearTimeout(typing);
      this.#search(part("q").value.trim());
    };
    part("search").addEventListener("submit", (event) => {
      event.preventDefault();
      search();
    });
    part("q").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(search, TYPING);
    });
    part("more").addEventListener("click", () => this.#read());
  }

  /** Show what the address asks for. */
  start() {
    const query = new URLSearchParams(location.search).get("q") ?? "";
    part("q").value = query;
    this.#search(query);
  }

  /** Try again what could not be read. */
  retry() {
    if (this.#failed) this.#read();
  }

  /** Bring stock up to date on the page, and what of it is in the cart; `lines` are the client's. */
  render(lines) {
    const own = new Map(lines.map((line) => [line.product, line]));
    for (const [code, card] of this.#cards) {
      const line = own.get(code);
      say(card.mine, line ? mine(line) : "");
      card.mine.dataset.state = line?.state ?? "";
      const available = this.#shelf.available(code);
      if (card.available === available) continue;
      card.available = available;
      const { text, level } = stock(available);
      say(card.stock, text);
      card.item.dataset.level = level;
      card.item.dataset.available = available ?? "";
      card.add.setAttribute("aria-disabled", String(level === "none"));
    }
  }

  #search(query) {
    if (query === this.#query) return;
    this.#query = query;
    this.#after = null;
    const address = new URL(location.href);
    if (query) address.searchParams.set("q", query);
    else address.searchParams.delete("q");
    history.replaceState(null, "", address);
    this.#read();
  }

  async #read() {
    this.#reading?.abort();
    const reading = (this.#reading = new AbortController());
    const first = this.#after === null;
    const asked = new URLSearchParams({ limit: PAGE });
    if (this.#query) asked.set("q", this.#query);
    if (!first) asked.set("after", this.#after);
    try {
      const answer = await fetch(`/v1/products?${asked}`, { signal: reading.signal });
      if (!answer.ok) throw new Error(`the catalogue answered ${answer.status}`);
      const { items, after } = await answer.json();
      this.#failed = false;
      this.#show(items, after, first);
    } catch (error) {
      if (reading.signal.aborted) return;
      this.#failed = true;
      say(part("shelf-says"), "The shelf cannot be read just now. We keep trying.");
    }
  }

  #show(items, after, first) {
    if (first) {
      this.#observer.disconnect();
      this.#inView.clear();
      this.#cards.clear();
      part("products").replaceChildren();
    }
    this.#shelf.learn(items);
    const fresh = items.filter((item) => !this.#cards.has(item.code)).map((item) => this.#card(item));
    part("products").append(...fresh);
    this.#changed();
    const wasMore = document.activeElement === part("more");
    this.#after = after;
    part("more").hidden = after === null;
    if (wasMore && after === null) fresh[0]?.querySelector("input").focus();
    say(part("shelf-says"), this.#count(after));
  }

  #count(after) {
    const shown = this.#cards.size;
    if (!shown) return this.#query ? `Nothing is called “${this.#query}”.` : "The shelf is empty.";
    return after === null ? `${shown} shown, that is all` : `${shown} shown`;
  }

  #card(product) {
    const { code, name, price } = product;
    const quantity = make("input", {
      type: "number", min: 1, max: MOST, value: 1, required: true, inputmode: "numeric", "aria-label": `How many: ${name}`,
    });
    const add = make("button", { type: "submit", "aria-label": `Add ${name}` }, "Add");
    const left = make("p", { class: "stock" });
    const inCart = make("p", { class: "mine" });
    const form = make("form", { class: "add", submit: (event) => {
      event.preventDefault();
      if (add.getAttribute("aria-disabled") === "true") return;
      this.#ask(code, quantity.valueAsNumber);
      quantity.value = "1";
    } }, quantity, add);
    const item = make("li", { class: "product", "data-product": code },
      paper(code, name),
      make("h3", { class: named(name) }, name),
      make("p", { class: "price" }, money(price)),
      left,
      inCart,
      form,
    );
    this.#cards.set(code, { item, stock: left, mine: inCart, add, available: undefined });
    this.#observer.observe(item);
    return item;
  }

  #look(entries) {
    for (const { target, isIntersecting } of entries) {
      const code = target.dataset.product;
      if (isIntersecting && this.#cards.get(code)?.item === target) this.#inView.add(code);
      else this.#inView.delete(code);
    }
    clearTimeout(this.#looking);
    this.#looking = setTimeout(() => this.#watch(this.#inView), LOOKING);
  }
}

/** Names that the till shouts are set in lower case by the style sheet; the text stays as the shop wrote it. */
export function named(name) {
  return name === name.toUpperCase() ? "name till" : "name";
}
