/** The cart on the page: what is held and for how long, what is still being decided, what was refused and why. */

import { named } from "./catalogue.js";
import { make, part, say } from "./dom.js";
import { paper } from "./paper.js";
import { minutes, money, refusal, summary } from "./words.js";

const MOST = 999;
const SOON = 120_000;
const STATES = { pending: "Pending", held: "Held", refused: "Refused" };

export class Basket {
  #client;
  #changed;
  #shown = new Map(); // product -> the parts of its line

  /** `changed()` is called after the shopper asked for something. */
  constructor(client, changed) {
    this.#client = client;
    this.#changed = changed;
    part("clear").addEventListener("click", () => {
      this.#ask("clear");
      part("cart").focus();
    });
  }

  /** Bring the page up to date; `lines` are the client's. */
  render(lines) {
    const now = new Set(lines.map((line) => line.product));
    for (const [product, { item }] of this.#shown) {
      if (now.has(product)) continue;
      this.#keepFocus(item);
      item.remove();
      this.#shown.delete(product);
    }
    for (const line of lines) {
      if (!this.#shown.has(line.product)) this.#shown.set(line.product, this.#line(line));
      this.#update(this.#shown.get(line.product), line);
    }
    this.#sum(lines);
  }

  /** Let the clock go on. */
  tick(now) {
    const left = this.#client.left(now);
    const text = left === null ? "" : minutes(left);
    part("clock").hidden = left === null;
    for (const id of ["clock-left", "bar-left"]) say(part(id), text);
    for (const clock of document.querySelectorAll(".clock")) clock.classList.toggle("soon", left !== null && left <= SOON);
  }

  #ask(type, product, quantity) {
    if (!this.#client.change(type, product, quantity)) say(part("warned"), "Too much is waiting for an answer. One moment, please.");
    this.#changed();
  }

  #line({ product, name }) {
    const quantity = make("input", {
      type: "number", min: 1, max: MOST, inputmode: "numeric", "aria-label": `Quantity of ${name}`,
      change: () => quantity.reportValidity() && this.#ask("set", product, quantity.valueAsNumber),
    });
    const step = (by, sign, label) => make("button", { type: "button", class: "step", "aria-label": `${label}: ${name}`, click: () => {
      const wanted = Number(item.dataset.quantity) + by;
      if (wanted >= 1 && wanted <= MOST) this.#ask("set", product, wanted);
    } }, sign);
    const fewer = step(-1, "−", "One fewer");
    const more = step(1, "+", "One more");
    const title = make("h3", {}, name);
    const each = make("p", { class: "each" });
    const state = make("p", { class: "state" });
    const amount = make("p", { class: "amount" });
    const reason = make("p", {});
    const instead = make("button", { type: "button", class: "plain", click: () => {
      const { type, quantity: wanted } = JSON.parse(instead.dataset.ask);
      this.#ask(type, product, wanted);
    } });
    const dismiss = make("button", { type: "button", class: "plain", "aria-label": `Dismiss: ${name}`, click: () => {
      this.#client.dismiss(product);
      this.#changed();
    } }, "Dismiss");
    const why = make("div", { class: "why", hidden: true }, reason, instead, dismiss);
    const stepper = make("div", { class: "stepper" }, fewer, quantity, more);
    const remove = make("button", { type: "button", class: "remove plain", "aria-label": `Take out ${name}`, click: () => this.#ask("remove", product) }, "Take out");
    const item = make("li", { class: "cart-line", "data-product": product },
      paper(product, name), title, amount, each, state, stepper, remove, why);
    part("lines").append(item);
    return { item, title, each, state, amount, quantity, fewer, stepper, remove, why, reason, instead };
  }

  #update(parts, line) {
    const { item, quantity } = parts;
    const { name, price, held, state, refusal: refused } = line;
    Object.assign(item.dataset, { state, held, quantity: line.quantity });
    say(parts.title, name);
    parts.title.className = named(name);
    say(parts.each, price ? `${money(price)} each` : "");
    say(parts.amount, price && line.quantity ? money({ ...price, amount: price.amount * line.quantity }) : "");
    say(parts.state, STATES[state]);
    // Who is typing is not interrupted, unless the line itself has changed: stock and clock redraw it all the time.
    const now = String(line.quantity);
    if (document.activeElement !== quantity || quantity.dataset.shown !== now) quantity.value = now;
    quantity.dataset.shown = now;
    parts.fewer.setAttribute("aria-disabled", String(line.quantity <= 1));
    const bare = line.quantity === 0; // nothing of it is held: there is only the refusal to read
    parts.stepper.hidden = parts.remove.hidden = bare;
    parts.why.hidden = refused === null;
    if (!refused) return;
    say(parts.reason, refusal(refused));
    const wanted = refused.reason === "out_of_stock" && refused.available > 0 ? instead(refused, held) : null;
    parts.instead.hidden = wanted === null;
    if (!wanted) return;
    parts.instead.dataset.ask = JSON.stringify(wanted);
    say(parts.instead, wanted.type === "set" ? `Make it ${wanted.quantity}` : `Take ${wanted.quantity}`);
  }

  #sum(lines) {
    const held = lines.filter((line) => line.held && line.price);
    const currency = held[0]?.price.currency ?? "GBP";
    const total = money({ amount: held.reduce((sum, line) => sum + line.price.amount * line.held, 0), currency });
    part("cart-empty").hidden = lines.length > 0;
    part("sum").hidden = lines.length === 0;
    say(part("total"), total);
    const ended = !lines.length && part("notice").textContent !== "";
    say(part("bar-says"), ended ? "Your cart has ended" : summary(lines));
    say(part("bar-total"), held.length ? total : "");
    part("bar").dataset.state = ["refused", "pending"].find((state) => lines.some((line) => line.state === state)) ?? "held";
  }

  /** When the line under the shopper's hands goes, leave them at the next one, or at the cart. */
  #keepFocus(item) {
    if (!item.contains(document.activeElement)) return;
    const next = item.nextElementSibling ?? item.previousElementSibling;
    (next?.querySelector("button.remove:not([hidden])") ?? part("cart")).focus();
  }
}

/** What could be had of what was refused. */
function instead({ asked, available }, held) {
  if (asked.type === "set") return { type: "set", quantity: held + available };
  return { type: "add", quantity: available };
}
