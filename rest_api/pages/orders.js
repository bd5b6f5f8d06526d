/**
 * Checkout, and the shopper's orders with live status.
 *
 * An order is placed over HTTP with an idempotency key. Until a response arrives, the same form is sent with the same
 * key, so a second click, or a retry after a disconnect, cannot buy twice. Status changes arrive over the socket.
 */

import { byId, makeElement, setText } from "./dom.js";
import { money, orderErrorText, orderStatus, requestErrorText } from "./format.js";

const TIMEOUT = 15_000; // milliseconds, for a response
const WAIT = 10; // seconds that the server may wait for the outcome before it responds
const MAX_SHOWN = 10;
const RELOAD_DELAY = 300; // milliseconds after the last status change: an order may change several times in a row
const RETRY_DELAY = 2_000; // milliseconds after a failed load
const CANCELLABLE = new Set(["placed", "committed", "paid", "confirmed"]);

export class Orders {
  #client;
  #newId;
  #announce;
  #lastRequest = { text: null, key: null }; // the body of the last order without a response, and its idempotency key
  #buying = false;
  #shown = new Map(); // order id -> the elements of its entry
  #latestFrames = new Map(); // order id -> the newest `order` frame, which the list may not reflect yet
  #loadTimer = null;

  /** `announce(text)` announces a text to screen readers. */
  constructor(client, newId, announce) {
    this.#client = client;
    this.#newId = newId;
    this.#announce = announce;
    byId("checkout").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#buy();
    });
  }

  /** Update the checkout form; `lines` are the client's. */
  render(lines) {
    const held = lines.some((line) => line.held);
    const form = byId("checkout");
    form.hidden = !held && !this.#buying;
    byId("buy").disabled = this.#buying || !held || lines.some((line) => line.state === "pending");
  }

  /** Handle an `order` frame. */
  update(frame) {
    const known = this.#latestFrames.get(frame.order_id);
    if (known && known.order_version >= frame.order_version) return;
    this.#latestFrames.set(frame.order_id, frame);
    const entry = this.#shown.get(frame.order_id);
    if (entry) this.#updateEntry(entry, { ...entry.order, ...frame });
    this.load(RELOAD_DELAY);
  }

  /** Load the list of orders after a delay in milliseconds. */
  load(delay = 0) {
    clearTimeout(this.#loadTimer);
    this.#loadTimer = setTimeout(() => this.#loadList(), delay);
  }

  async #loadList() {
    const response = await request(`/v1/orders?limit=${MAX_SHOWN}`);
    if (!response?.ok) return this.load(RETRY_DELAY);
    const { items } = response.body;
    byId("orders").hidden = items.length === 0;
    const ids = new Set(items.map((order) => order.order_id));
    for (const [id, { item }] of this.#shown) {
      if (ids.has(id)) continue;
      item.remove();
      this.#shown.delete(id);
    }
    items.forEach((order, index) => {
      if (!this.#shown.has(order.order_id)) this.#shown.set(order.order_id, this.#createEntry(order));
      const entry = this.#shown.get(order.order_id);
      const latest = this.#latestFrames.get(order.order_id);
      this.#updateEntry(entry, latest && latest.order_version > order.order_version ? { ...order, ...latest } : order);
      const list = byId("order-list");
      if (list.children[index] !== entry.item) list.insertBefore(entry.item, list.children[index] ?? null);
    });
  }

  #createEntry(order) {
    const title = makeElement("h3", { class: "name" }, `Order ${order.order_id.slice(0, 8)}`);
    const total = makeElement("p", { class: "amount" });
    const what = makeElement("p", { class: "each" });
    const state = makeElement("p", { class: "state", role: "status" });
    const cancel = makeElement("button", { type: "button", class: "plain", click: () => this.#cancel(entry) }, "Cancel this order");
    const trouble = makeElement("p", { class: "trouble", role: "alert" });
    const item = makeElement("li", { class: "order", "data-order": order.order_id }, title, total, what, state, cancel, trouble);
    const entry = { order, item, total, what, state, cancel, trouble };
    return entry;
  }

  #updateEntry(entry, order) {
    entry.order = order;
    entry.item.dataset.status = order.status;
    setText(entry.total, order.total ? money(order.total) : "");
    setText(entry.what, order.lines.map((line) => `${line.quantity} × ${line.name}`).join(", "));
    setText(entry.state, orderStatus(order));
    entry.cancel.hidden = !CANCELLABLE.has(order.status);
  }

  async #cancel(entry) {
    const { order_id: id } = entry.order;
    entry.cancel.disabled = true;
    const headers = { "Idempotency-Key": `cancel ${id}`, Prefer: `wait=${WAIT}` };
    const response = await request(`/v1/orders/${encodeURIComponent(id)}/cancel`, { method: "POST", headers });
    entry.cancel.disabled = false;
    setText(entry.trouble, response?.ok ? "" : requestErrorText(response));
    this.load();
  }

  async #buy() {
    if (this.#buying) return;
    const text = JSON.stringify(this.#orderBody());
    if (text !== this.#lastRequest.text) this.#lastRequest = { text, key: this.#newId() };
    this.#buying = true;
    byId("buy").disabled = true;
    setText(byId("checkout-error"), "One moment…");
    const headers = { "Content-Type": "application/json", "Idempotency-Key": this.#lastRequest.key, Prefer: `wait=${WAIT}` };
    const response = await request("/v1/orders", { method: "POST", headers, body: text });
    this.#buying = false;
    byId("buy").disabled = false;
    setText(byId("checkout-error"), response?.ok ? "" : orderErrorText(response));
    if (!response?.ok) return;
    this.#lastRequest = { text: null, key: null };
    this.#announce("Thank you. Your order is placed.");
    this.load();
  }

  #orderBody() {
    const field = (name) => byId("checkout").elements[name].value.trim();
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

/** Send a request; return `{ok, status, body}`, or null if there was no response. */
async function request(path, options = {}) {
  try {
    const response = await fetch(path, { ...options, signal: AbortSignal.timeout(TIMEOUT) });
    return { ok: response.ok, status: response.status, body: await response.json() };
  } catch {
    return null;
  }
}
