/** What others bought together with what is in the cart: asked for once a product, shown under the cart. */

import { named } from "./catalogue.js";
import { make, part } from "./dom.js";
import { money } from "./words.js";

const ASKED = 5; // of the cart's lines: the last ones
const MOST = 3;

export class Together {
  #shelf;
  #add;
  #changed;
  #lists = new Map(); // product -> items of GET /v1/products/{code}/related; empty while they are being read
  #items = make("ul");
  #block = make("section", { class: "together", hidden: true, "aria-labelledby": "together-title" },
    make("h3", { id: "together-title" }, "Often bought with these"), this.#items);
  #shown = "";

  /** `add(product, quantity)` asks for it; `changed()`: draw me. */
  constructor(shelf, add, changed) {
    this.#shelf = shelf;
    this.#add = add;
    this.#changed = changed;
    part("sum").before(this.#block);
  }

  /** Show what goes with these lines and is not among them; what goes with most certainty comes first. */
  render(lines) {
    const own = new Set(lines.map((line) => line.product));
    const asked = [...own].slice(-ASKED);
    for (const product of asked) if (!this.#lists.has(product)) this.#read(product);
    const found = new Map();
    for (const item of asked.flatMap((product) => this.#lists.get(product) ?? [])) {
      if (own.has(item.code) || item.available === 0) continue;
      if (item.confidence > (found.get(item.code)?.confidence ?? 0)) found.set(item.code, item);
    }
    const items = [...found.values()].sort((one, other) => other.confidence - one.confidence).slice(0, MOST);
    const shown = items.map((item) => item.code).join(" ");
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.#items.replaceChildren(...items.map((item) => this.#item(item)));
    this.#block.hidden = !items.length;
  }

  #item({ code, name, price }) {
    const add = make("button", { type: "button", class: "plain", "aria-label": `Add ${name}`, click: () => {
      this.#add(code, 1);
      part("cart").focus();
    } }, "Add");
    return make("li", { "data-related": code }, make("span", { class: named(name) }, name), money(price), add);
  }

  async #read(product) {
    this.#lists.set(product, []);
    try {
      const answer = await fetch(`/v1/products/${encodeURIComponent(product)}/related`);
      if (!answer.ok) return;
      const { items } = await answer.json();
      this.#shelf.learn(items);
      this.#lists.set(product, items);
      this.#changed();
    } catch {
      // The cart does without it.
    }
  }
}
