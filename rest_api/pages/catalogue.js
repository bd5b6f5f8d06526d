/** The catalogue on the page: search, paging, live stock, and adding to the cart. */

import { byId, makeElement, setText } from "./dom.js";
import { productArt } from "./product_art.js";
import { commonWords, displayName, lineStatus, money, stockLabel } from "./format.js";

const PAGE_SIZE = 24;
const SEARCH_DELAY = 250; // milliseconds after the last key
const WATCH_DELAY = 300; // milliseconds after the last scroll
const MAX_QUANTITY = 999;
const MAX_QUERY = 200; // characters
const EXAMPLES = 3; // words in the placeholder of the search field

export class Catalogue {
  #products;
  #add;
  #watch;
  #onChange;
  #cards = new Map(); // code -> the elements of a product
  #query = null;
  #after = null;
  #total = 0; // products on all pages of the query
  #loading = null; // the AbortController of the current request
  #failed = false;
  #inView = new Set();
  #watchTimer = null;
  #observer;

  /**
   * `add(product, quantity)` adds to the cart; `watch(products)` watches the stock of the products in view; `onChange()`
   * requests a rendering.
   */
  constructor(products, add, watch, onChange) {
    this.#products = products;
    this.#add = add;
    this.#watch = watch;
    this.#onChange = onChange;
    this.#observer = new IntersectionObserver((entries) => this.#updateView(entries), { rootMargin: "200px" });
    let typing = null;
    const search = () => {
      clearTimeout(typing);
      this.#search(byId("q").value.trim().normalize("NFC").slice(0, MAX_QUERY));
    };
    byId("search").addEventListener("submit", (event) => {
      event.preventDefault();
      search();
    });
    byId("q").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(search, SEARCH_DELAY);
    });
    byId("more").addEventListener("click", () => this.#load());
  }

  /** Search for the query in the page's address. */
  start() {
    const query = new URLSearchParams(location.search).get("q") ?? "";
    byId("q").value = query;
    this.#search(query);
  }

  /** Load again if the last attempt failed. */
  retry() {
    if (this.#failed) this.#load();
  }

  /** Update stock and cart status of each product; `lines` are the client's. */
  render(lines) {
    const inCart = new Map(lines.map((line) => [line.product, line]));
    for (const [code, card] of this.#cards) {
      const line = inCart.get(code);
      setText(card.cartStatus, line ? lineStatus(line) : "");
      card.cartStatus.dataset.state = line?.state ?? "";
      const available = this.#products.available(code);
      if (card.available === available) continue;
      card.available = available;
      const { text, level } = stockLabel(available);
      setText(card.stock, text);
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
    this.#load();
  }

  async #load() {
    this.#loading?.abort();
    const loading = (this.#loading = new AbortController());
    const first = this.#after === null;
    const parameters = new URLSearchParams({ limit: PAGE_SIZE });
    if (this.#query) parameters.set("q", this.#query);
    if (first) parameters.set("total", "true");
    else parameters.set("after", this.#after);
    try {
      const response = await fetch(`/v1/products?${parameters}`, { signal: loading.signal });
      if (!response.ok) throw new Error(`the catalogue responded with ${response.status}`);
      const body = await response.json();
      this.#failed = false;
      if (first) this.#total = body.total;
      this.#show(body.items, body.after, first);
      setText(byId("catalogue-status"), this.#countText(body));
      if (first) this.#showSuggestions(body);
    } catch (error) {
      if (loading.signal.aborted) return;
      this.#failed = true;
      setText(byId("catalogue-status"), "The products cannot be loaded right now. We keep trying.");
    }
  }

  #show(items, after, first) {
    if (first) {
      this.#observer.disconnect();
      this.#inView.clear();
      this.#cards.clear();
      byId("products").replaceChildren();
    }
    this.#products.store(items);
    const added = items.filter((item) => !this.#cards.has(item.code)).map((item) => this.#createCard(item));
    byId("products").append(...added);
    this.#onChange();
    const wasMore = document.activeElement === byId("more");
    this.#after = after;
    byId("more").hidden = after === null;
    if (wasMore && after === null) added[0]?.querySelector("input").focus();
  }

  #countText({ after, corrected }) {
    const shown = this.#cards.size;
    if (!shown) return this.#query ? `No products found for “${this.#query}”.` : "There are no products yet.";
    const products = this.#total === 1 ? "1 product" : `${this.#total} products`;
    const count = after === null ? products : `${shown} of ${products}`;
    return corrected === undefined ? count : `No products found for “${this.#query}”. Showing ${count} for “${corrected}”.`;
  }

  /** Offer other searches when nothing was found, and name words that find something in the empty search field. */
  #showSuggestions({ items, suggestions = [] }) {
    const search = (text, label) => makeElement("button", { type: "button", class: "plain", click: () => {
      byId("q").value = text;
      byId("q").focus();
      this.#search(text);
    } }, label);
    const none = !items.length && this.#query;
    const buttons = none ? [...suggestions.map((word) => search(word, `Search for “${word}”`)), search("", "Show all products")] : [];
    byId("suggestions").replaceChildren(...buttons);
    const words = this.#query ? [] : commonWords(items.map(({ name }) => name), EXAMPLES);
    if (words.length) byId("q").placeholder = `Search: ${words.join(", ")}…`;
  }

  #createCard(product) {
    const { code, price } = product;
    const name = displayName(product.name, code);
    const quantity = makeElement("input", {
      type: "number", min: 1, max: MAX_QUANTITY, value: 1, required: true, inputmode: "numeric", "aria-label": `How many: ${name}`,
    });
    const add = makeElement("button", { type: "submit", "aria-label": `Add ${name}` }, "Add");
    const left = makeElement("p", { class: "stock" });
    const cartStatus = makeElement("p", { class: "cart-status" });
    const form = makeElement("form", { class: "add", submit: (event) => {
      event.preventDefault();
      if (add.getAttribute("aria-disabled") === "true") return;
      this.#add(code, quantity.valueAsNumber);
      quantity.value = "1";
    } }, quantity, add);
    const item = makeElement("li", { class: "product", "data-product": code },
      productArt(code, name),
      makeElement("h3", { class: "name" }, name),
      makeElement("p", { class: "price" }, money(price)),
      left,
      cartStatus,
      form,
    );
    this.#cards.set(code, { item, stock: left, cartStatus, add, available: undefined });
    this.#observer.observe(item);
    return item;
  }

  #updateView(entries) {
    for (const { target, isIntersecting } of entries) {
      const code = target.dataset.product;
      if (isIntersecting && this.#cards.get(code)?.item === target) this.#inView.add(code);
      else this.#inView.delete(code);
    }
    clearTimeout(this.#watchTimer);
    this.#watchTimer = setTimeout(() => this.#watch(this.#inView), WATCH_DELAY);
  }
}
