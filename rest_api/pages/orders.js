/**
 * Checkout, and the shopper's orders with live status.
 *
 * An order is placed over HTTP with an idempotency key. Until a response arrives, the same form is sent with the same
 * key, so a second click, or a retry after a disconnect, cannot buy twice. Status changes arrive over the socket. The
 * order that this tab has placed last is watched until it is paid or cancelled, also across a reload.
 */

import { byId, makeElement, setText } from "./dom.js";
import { checkoutOutcome, displayName, money, orderErrorText, orderStatus, requestErrorText } from "./format.js";

const TIMEOUT = 15_000; // milliseconds, for a response
const WAIT = 10; // seconds that the server may wait for the outcome before it responds
const MAX_SHOWN = 10;
const MAX_OPEN = 2; // orders shown without a click
const STORAGE_KEY = "holdfast.order"; // in sessionStorage: the order whose outcome this tab waits for
const RELOAD_DELAY = 300; // milliseconds after the last status change: an order may change several times in a row
const MAX_MISSES = 10; // after which an awaited order is given up: it may be of another session
const RETRY_DELAY = 2_000; // milliseconds after a failed load
const CANCELLABLE = new Set(["placed", "committed", "paid", "confirmed"]);

export class Orders {
  #client;
  #newId;
  #status;
  #onChange;
  #lastRequest = { text: null, key: null }; // the body of the last order without a response, and its idempotency key
  #buying = false;
  #awaited = readAwaited(); // the id of the order whose outcome is to be shown, or null
  #misses = 0; // lists without the awaited order
  #unanswered = null; // the ids of the orders before a request without a response; a new one is the result of it
  #shown = new Map(); // order id -> the elements of its entry
  #latestFrames = new Map(); // order id -> the newest `order` frame, which the list may not reflect yet
  #loadTimer = null;

  /** `status` shows the state of the checkout; `onChange()` requests a rendering. */
  constructor(client, newId, status, onChange) {
    this.#client = client;
    this.#newId = newId;
    this.#status = status;
    this.#onChange = onChange;
    byId("more-orders").addEventListener("click", () => {
      byId("order-list").classList.add("all");
      byId("more-orders").hidden = true;
    });
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
    this.#report(frame, { isNews: !frame.replayed });
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
    byId("more-orders").hidden = items.length <= MAX_OPEN || byId("order-list").classList.contains("all");
    setText(byId("more-orders"), `Show all ${items.length} orders`);
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
      const current = latest && latest.order_version > order.order_version ? { ...order, ...latest } : order;
      this.#updateEntry(entry, current);
      if (this.#unanswered && !this.#unanswered.has(order.order_id)) this.#await(current);
      this.#report(current);
      const list = byId("order-list");
      if (list.children[index] !== entry.item) list.insertBefore(entry.item, list.children[index] ?? null);
    });
    if (!this.#awaited) return;
    if (!ids.has(this.#awaited) && ++this.#misses > MAX_MISSES) return this.#stopAwaiting();
    this.load(RETRY_DELAY); // a frame may have been missed
  }

  /** Wait for the outcome of an order, and show its state from now on. */
  #await(order) {
    this.#unanswered = null;
    this.#lastRequest = { text: null, key: null };
    this.#awaited = order.order_id;
    storeAwaited(this.#awaited);
    this.#report({ ...order, ...this.#latestFrames.get(order.order_id) });
  }

  /** Show the state of an order if this tab waits for it, or if it has just been cancelled by another than its shopper. */
  #report(order, { isNews = false } = {}) {
    const isAwaited = order.order_id === this.#awaited;
    const isCancelled = order.status === "cancelled" && order.reason !== "cancelled";
    if (!isAwaited && !(isNews && isCancelled)) return;
    const outcome = checkoutOutcome(order);
    this.#status.show(outcome);
    if (isAwaited && outcome.level !== "progress") this.#stopAwaiting();
    this.#onChange();
  }

  #stopAwaiting() {
    this.#awaited = null;
    this.#misses = 0;
    storeAwaited(null);
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
    setText(entry.what, order.lines.map((line) => `${line.quantity} × ${displayName(line.name, line.product)}`).join(", "));
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
    this.#unanswered = null;
    const text = JSON.stringify(this.#orderBody());
    if (text !== this.#lastRequest.text) this.#lastRequest = { text, key: this.#newId() };
    this.#buying = true;
    byId("buy").disabled = true;
    const before = new Set([...this.#shown.keys(), ...this.#latestFrames.keys()]);
    this.#status.show({ text: "Placing your order…", level: "progress", summary: "Placing your order…" });
    this.#onChange();
    const headers = { "Content-Type": "application/json", "Idempotency-Key": this.#lastRequest.key, Prefer: `wait=${WAIT}` };
    const response = await request("/v1/orders", { method: "POST", headers, body: text });
    this.#buying = false;
    byId("buy").disabled = false;
    if (response?.ok) this.#await({ status: "placed", ...response.body });
    else this.#status.show({ text: orderErrorText(response), level: "trouble", summary: "Order not placed" });
    if (response === null) this.#unanswered = before; // it may have been placed nevertheless
    if (response === null || response.ok) this.load();
    this.#onChange();
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

/** Return the stored id of the order whose outcome this tab waits for, or null. */
function readAwaited() {
  try {
    return sessionStorage.getItem(STORAGE_KEY);
  } catch {
    return null; // without storage, a reload loses it; the list of orders has it
  }
}

function storeAwaited(id) {
  try {
    if (id === null) sessionStorage.removeItem(STORAGE_KEY);
    else sessionStorage.setItem(STORAGE_KEY, id);
  } catch {
    // See `readAwaited`.
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
