/** Recommendations below the cart: products often bought together with its lines, loaded once per product. */

import { byId, makeElement } from "./dom.js";
import { displayName, money } from "./format.js";

const MAX_LINES = 5; // the last lines of the cart, for which related products are loaded
const MAX_SHOWN = 3;

export class Recommendations {
  #products;
  #add;
  #onChange;
  #lists = new Map(); // product -> items of GET /v1/products/{code}/related; empty while loading
  #items = makeElement("ul");
  #block = makeElement("section", { class: "recommendations", hidden: true, "aria-labelledby": "recommendations-title" },
    makeElement("h3", { id: "recommendations-title" }, "Often bought with these"), this.#items);
  #shown = "";

  /** `add(product, quantity)` adds to the cart; `onChange()` requests a rendering. */
  constructor(products, add, onChange) {
    this.#products = products;
    this.#add = add;
    this.#onChange = onChange;
    byId("sum").before(this.#block);
  }

  /** Show related products that are not in the cart, those with the highest confidence first. */
  render(lines) {
    const inCart = new Set(lines.map((line) => line.product));
    const recent = [...inCart].slice(-MAX_LINES);
    for (const product of recent) if (!this.#lists.has(product)) this.#load(product);
    const found = new Map();
    for (const item of recent.flatMap((product) => this.#lists.get(product) ?? [])) {
      if (inCart.has(item.code) || item.available === 0) continue;
      if (item.confidence > (found.get(item.code)?.confidence ?? 0)) found.set(item.code, item);
    }
    const items = [...found.values()].sort((one, other) => other.confidence - one.confidence).slice(0, MAX_SHOWN);
    const shown = items.map((item) => item.code).join(" ");
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.#items.replaceChildren(...items.map((item) => this.#item(item)));
    this.#block.hidden = !items.length;
  }

  #item({ code, name: catalogueName, price }) {
    const name = displayName(catalogueName, code);
    const add = makeElement("button", { type: "button", class: "plain", "aria-label": `Add ${name}`, click: () => {
      this.#add(code, 1);
      byId("cart").focus();
    } }, "Add");
    return makeElement("li", { "data-related": code }, makeElement("span", { class: "name" }, name), money(price), add);
  }

  async #load(product) {
    this.#lists.set(product, []);
    try {
      const response = await fetch(`/v1/products/${encodeURIComponent(product)}/related`);
      if (!response.ok) return;
      const { items } = await response.json();
      this.#products.store(items);
      this.#lists.set(product, items);
      this.#onChange();
    } catch {
      // Recommendations are optional.
    }
  }
}
