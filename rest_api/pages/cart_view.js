/** The cart on the page: held lines and the time left, pending changes, and refusals with their reasons. */

import { byId, makeElement, setText } from "./dom.js";
import { productArt } from "./product_art.js";
import { cartSummary, countdown, money, refusalText } from "./format.js";

const MAX_QUANTITY = 999;
const SOON = 120_000; // milliseconds left, from which the clock is highlighted
const STATES = { pending: "Pending", held: "Held", refused: "Refused" };

export class CartView {
  #client;
  #onChange;
  #shown = new Map(); // product -> the elements of its line

  /** `onChange()` is called after the shopper has requested a change. */
  constructor(client, onChange) {
    this.#client = client;
    this.#onChange = onChange;
    byId("clear").addEventListener("click", () => {
      this.#change("clear");
      byId("cart").focus();
    });
  }

  /** Render the lines of the client. */
  render(lines) {
    const now = new Set(lines.map((line) => line.product));
    for (const [product, { item }] of this.#shown) {
      if (now.has(product)) continue;
      this.#moveFocus(item);
      item.remove();
      this.#shown.delete(product);
    }
    for (const line of lines) {
      if (!this.#shown.has(line.product)) this.#shown.set(line.product, this.#createLine(line));
      this.#updateLine(this.#shown.get(line.product), line);
    }
    this.#renderTotal(lines);
  }

  /** Update the clock. */
  tick(now) {
    const left = this.#client.timeLeft(now);
    const text = left === null ? "" : countdown(left);
    byId("clock").hidden = left === null;
    for (const id of ["clock-left", "bar-left"]) setText(byId(id), text);
    for (const clock of document.querySelectorAll(".clock")) clock.classList.toggle("soon", left !== null && left <= SOON);
  }

  #change(type, product, quantity) {
    if (!this.#client.change(type, product, quantity)) setText(byId("alerts"), "Too many changes are in progress. One moment, please.");
    this.#onChange();
  }

  #createLine({ product, name }) {
    const quantity = makeElement("input", {
      type: "number", min: 1, max: MAX_QUANTITY, inputmode: "numeric", "aria-label": `Quantity of ${name}`,
      change: () => quantity.reportValidity() && this.#change("set", product, quantity.valueAsNumber),
    });
    const step = (by, sign, label) => makeElement("button", { type: "button", class: "step", "aria-label": `${label}: ${name}`, click: () => {
      const wanted = Number(item.dataset.quantity) + by;
      if (wanted >= 1 && wanted <= MAX_QUANTITY) this.#change("set", product, wanted);
    } }, sign);
    const fewer = step(-1, "−", "One fewer");
    const more = step(1, "+", "One more");
    const title = makeElement("h3", { class: "name" }, name);
    const each = makeElement("p", { class: "each" });
    const state = makeElement("p", { class: "state" });
    const amount = makeElement("p", { class: "amount" });
    const reason = makeElement("p", {});
    const instead = makeElement("button", { type: "button", class: "plain", click: () => {
      const { type, quantity: wanted } = JSON.parse(instead.dataset.ask);
      this.#change(type, product, wanted);
    } });
    const dismiss = makeElement("button", { type: "button", class: "plain", "aria-label": `Dismiss: ${name}`, click: () => {
      this.#client.dismiss(product);
      this.#onChange();
    } }, "Dismiss");
    const why = makeElement("div", { class: "why", hidden: true }, reason, instead, dismiss);
    const stepper = makeElement("div", { class: "stepper" }, fewer, quantity, more);
    const remove = makeElement("button", { type: "button", class: "remove plain", "aria-label": `Remove ${name}`, click: () => this.#change("remove", product) }, "Remove");
    const item = makeElement("li", { class: "cart-line", "data-product": product },
      productArt(product, name), title, amount, each, state, stepper, remove, why);
    byId("lines").append(item);
    return { item, title, each, state, amount, quantity, fewer, stepper, remove, why, reason, instead };
  }

  #updateLine(parts, line) {
    const { item, quantity } = parts;
    const { name, price, held, state, refusal: refused } = line;
    Object.assign(item.dataset, { state, held, quantity: line.quantity });
    setText(parts.title, name);
    setText(parts.each, price ? `${money(price)} each` : "");
    setText(parts.amount, price && line.quantity ? money({ ...price, amount: price.amount * line.quantity }) : "");
    setText(parts.state, STATES[state]);
    // Do not overwrite what the shopper is typing, unless the line itself has changed: stock and clock render often.
    const now = String(line.quantity);
    if (document.activeElement !== quantity || quantity.dataset.shown !== now) quantity.value = now;
    quantity.dataset.shown = now;
    parts.fewer.setAttribute("aria-disabled", String(line.quantity <= 1));
    const bare = line.quantity === 0; // nothing is held: there is only the refusal to show
    parts.stepper.hidden = parts.remove.hidden = bare;
    parts.why.hidden = refused === null;
    if (!refused) return;
    setText(parts.reason, refusalText(refused));
    const wanted = refused.reason === "out_of_stock" && refused.available > 0 ? alternative(refused, held) : null;
    parts.instead.hidden = wanted === null;
    if (!wanted) return;
    parts.instead.dataset.ask = JSON.stringify(wanted);
    setText(parts.instead, wanted.type === "set" ? `Make it ${wanted.quantity}` : `Take ${wanted.quantity}`);
  }

  #renderTotal(lines) {
    const held = lines.filter((line) => line.held && line.price);
    const currency = held[0]?.price.currency ?? "GBP";
    const total = money({ amount: held.reduce((sum, line) => sum + line.price.amount * line.held, 0), currency });
    byId("cart-empty").hidden = lines.length > 0;
    byId("sum").hidden = !lines.some((line) => line.held || line.state === "pending");
    setText(byId("total"), total);
    const ended = !lines.length && byId("notice").textContent !== "";
    const { summary, level } = byId("checkout-outcome").dataset;
    setText(byId("bar-text"), summary || (ended ? "Your cart has expired" : cartSummary(lines)));
    setText(byId("bar-total"), held.length ? total : "");
    byId("bar").dataset.state = level === "trouble" ? "refused" : ["refused", "pending"].find((state) => lines.some((line) => line.state === state)) ?? "held";
  }

  /** If a line with the focus is removed, move the focus to the next line, or to the cart. */
  #moveFocus(item) {
    if (!item.contains(document.activeElement)) return;
    const next = item.nextElementSibling ?? item.previousElementSibling;
    (next?.querySelector("button.remove:not([hidden])") ?? byId("cart")).focus();
  }
}

/** Return the largest change that is possible instead of a refused one. */
function alternative({ request, available }, held) {
  if (request.type === "set") return { type: "set", quantity: held + available };
  return { type: "add", quantity: available };
}
