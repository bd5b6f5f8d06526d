/**
 * Buying what is in the cart, and the orders of this shopper as they move.
 *
 * An order is asked for over HTTP under a key of its own: as long as nobody has answered, the same form is sent under
 * the same key, so a second click, or a second try after a cut, cannot buy twice. How it goes is told by the line.
 */

import { make, part, say } from "./dom.js";
import { declined, money, progress, refusedOrder } from "./words.js";

const PATIENCE = 15_000; // for an answer
const WAIT = 10; // seconds that the shop may take to decide before it answers
const SHOWN = 10;
const SOON = 300; // after the last news, before the list is read again: one order moves in quick steps
const LATER = 2_000; // before it is read again when that did not go well
const OPEN = new Set(["placed", "committed", "paid", "confirmed"]); // that may still be cancelled

export class Orders {
  #client;
  #newId;
  #said;
  #asked = { text: null, key: null }; // the last order that was asked for, and its key
  #buying = false;
  #shown = new Map(); // order id -> the parts of its entry
  #moved = new Map(); // order id -> the newest frame: the list may be a moment behind the line
  #reading = null;

  /** `said(text)` tells those who hear the page. */
  constructor(client, newId, said) {
    this.#client = client;
    this.#newId = newId;
    this.#said = said;
    part("checkout").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#buy();
    });
  }

  /** Bring the form up to date; `lines` are the client's. */
  render(lines) {
    const held = lines.some((line) => line.held);
    const form = part("checkout");
    form.hidden = !held && !this.#buying;
    part("buy").disabled = this.#buying || !held || lines.some((line) => line.state === "pending");
  }

  /** The line tells that an order moved. */
  heard(frame) {
    const known = this.#moved.get(frame.order_id);
    if (known && known.order_version >= frame.order_version) return;
    this.#moved.set(frame.order_id, frame);
    const entry = this.#shown.get(frame.order_id);
    if (entry) this.#update(entry, { ...entry.order, ...frame });
    this.read(SOON);
  }

  /** Read the list, after a moment. */
  read(after = 0) {
    clearTimeout(this.#reading);
    this.#reading = setTimeout(() => this.#list(), after);
  }

  async #list() {
    const answer = await ask(`/v1/orders?limit=${SHOWN}`);
    if (!answer?.ok) return this.read(LATER);
    const { items } = answer.body;
    part("orders").hidden = items.length === 0;
    const ids = new Set(items.map((order) => order.order_id));
    for (const [id, { item }] of this.#shown) {
      if (ids.has(id)) continue;
      item.remove();
      this.#shown.delete(id);
    }
    items.forEach((order, place) => {
      if (!this.#shown.has(order.order_id)) this.#shown.set(order.order_id, this.#entry(order));
      const entry = this.#shown.get(order.order_id);
      const moved = this.#moved.get(order.order_id);
      this.#update(entry, moved && moved.order_version > order.order_version ? { ...order, ...moved } : order);
      const list = part("order-list");
      if (list.children[place] !== entry.item) list.insertBefore(entry.item, list.children[place] ?? null);
    });
  }

  #entry(order) {
    const title = make("h3", { class: "name" }, `Order ${order.order_id.slice(0, 8)}`);
    const total = make("p", { class: "amount" });
    const what = make("p", { class: "each" });
    const state = make("p", { class: "state", role: "status" });
    const cancel = make("button", { type: "button", class: "plain", click: () => this.#cancel(entry) }, "Cancel this order");
    const trouble = make("p", { class: "trouble", role: "alert" });
    const item = make("li", { class: "order", "data-order": order.order_id }, title, total, what, state, cancel, trouble);
    const entry = { order, item, total, what, state, cancel, trouble };
    return entry;
  }

  #update(entry, order) {
    entry.order = order;
    entry.item.dataset.status = order.status;
    say(entry.total, order.total ? money(order.total) : "");
    say(entry.what, order.lines.map((line) => `${line.quantity} × ${line.name}`).join(", "));
    say(entry.state, progress(order));
    entry.cancel.hidden = !OPEN.has(order.status);
  }

  async #cancel(entry) {
    const { order_id: id } = entry.order;
    entry.cancel.disabled = true;
    const headers = { "Idempotency-Key": `cancel ${id}`, Prefer: `wait=${WAIT}` };
    const answer = await ask(`/v1/orders/${id}/cancel`, { method: "POST", headers });
    entry.cancel.disabled = false;
    say(entry.trouble, answer?.ok ? "" : declined(answer));
    this.read();
  }

  async #buy() {
    if (this.#buying) return;
    const text = JSON.stringify(this.#wanted());
    if (text !== this.#asked.text) this.#asked = { text, key: this.#newId() };
    this.#buying = true;
    part("buy").disabled = true;
    say(part("checkout-says"), "One moment…");
    const headers = { "Content-Type": "application/json", "Idempotency-Key": this.#asked.key, Prefer: `wait=${WAIT}` };
    const answer = await ask("/v1/orders", { method: "POST", headers, body: text });
    this.#buying = false;
    part("buy").disabled = false;
    say(part("checkout-says"), answer?.ok ? "" : refusedOrder(answer));
    if (!answer?.ok) return;
    this.#asked = { text: null, key: null };
    this.#said("Thank you. Your order is placed.");
    this.read();
  }

  #wanted() {
    const field = (name) => part("checkout").elements[name].value.trim();
    const filled = (...names) => Object.fromEntries(names.map((name) => [name, field(name)]).filter(([, value]) => value));
    const held = this.#client.lines().filter((line) => line.held && line.price);
    const amount = held.reduce((sum, line) => sum + line.price.amount * line.held, 0);
    return {
      version: this.#client.version,
      address: filled("name", "line1", "line2", "city", "postal_code", "country"),
      contact: filled("email", "phone"),
      payment: { token: field("token") },
      expect: { total: { amount, currency: held[0]?.price.currency ?? "GBP" } },
    };
  }
}

/** What the shop answers: `{ok, status, body}`; null when nobody did. */
async function ask(path, options = {}) {
  try {
    const response = await fetch(path, { ...options, signal: AbortSignal.timeout(PATIENCE) });
    return { ok: response.ok, status: response.status, body: await response.json() };
  } catch {
    return null;
  }
}
