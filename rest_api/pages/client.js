/**
 * The client side of `holdfast.v1`, without I/O: takes frames and times, returns frames, events and a view of the cart.
 *
 * Each change of a cart increases its version by exactly one. A frame with the next version is applied. A frame that
 * skips versions makes the client request the whole cart. Any other frame only settles the request that it answers.
 * A request without an outcome stays in `unresolved`, across disconnects and reloads, and is sent again unchanged until
 * its outcome arrives; the server carries it out once.
 *
 * `now` is in milliseconds of any monotonic clock. The offset to the server's clock is computed from `welcome`.
 */

import { Cart } from "./cart.js";
import { displayName } from "./format.js";
import { ProductCache } from "./product_cache.js";

export const SUBPROTOCOL = "holdfast.v1";

const MAX_UNRESOLVED = 64;
const READ_TIMEOUT = 10_000; // after which a read without a response is retried
const RESUME_AFTER = 30_000; // without any outcome, until the unresolved requests are queried with `resume`
const CATCH_UP_DELAY = 500; // before a cart that is older than the highest known version is requested again
const RETRYABLE = new Set(["unavailable", "rate_limited", "too_many"]); // error codes: send the same frame again

export class Client {
  user = null;
  products = new ProductCache();
  #cart = new Cart();
  #unresolved = new Map(); // id -> {frame, sent (on this connection)}: requests of this page
  #refusals = new Map(); // product -> the refusal of its last change
  #newId;
  #outgoing = []; // frames to send
  #events = []; // events to announce
  #scheduled = []; // {at, action}
  #open = false; // `welcome` has arrived on this connection
  #resumed = false; // the state after a disconnect is known, so changes may be sent
  #resumeRequest = null; // the pending `resume`: {id, at}
  #cartRequest = null; // the pending `cart` request: {id, at}
  #highestVersion = 0; // of the cart, in any frame
  #resumeAt = Infinity; // when to send `resume`, unless an outcome arrives before
  #clockOffset = 0; // the server's clock minus ours
  #watchId = null; // id of the last `watch` or `unwatch`

  /** `newId` creates a unique id; `saved` is the result of `persistentState()` of an earlier page, or null. */
  constructor(newId, saved = null) {
    this.#newId = newId;
    if (!saved) return;
    this.user = saved.user;
    for (const frame of saved.frames) this.#unresolved.set(frame.id, { frame, sent: false });
  }

  // ---- requests of the page ----------------------------------------------------------------------------------------

  /** Request a change: `add` or `set` a quantity, `remove` a product, `clear`. Return false if too many are pending. */
  change(type, product, quantity) {
    if (this.#unresolved.size >= MAX_UNRESOLVED) return false;
    const frame = { id: this.#newId(), type };
    if (product !== undefined) frame.product = product;
    if (quantity !== undefined) frame.quantity = quantity;
    this.#unresolved.set(frame.id, { frame, sent: false });
    if (product === undefined) this.#refusals.clear();
    else this.#refusals.delete(product);
    if (this.#resumed) this.#sendChange(frame.id);
    return true;
  }

  /** Remove the refusal of a product from the view. */
  dismiss(product) {
    this.#refusals.delete(product);
  }

  /** Watch the stock of these products and of no others. */
  watch(products) {
    this.products.setDesired(products);
    this.#watch();
  }

  /** Send a harmless request to test the connection. */
  probe() {
    this.#send(this.products.probeFrame());
  }

  // ---- the connection ----------------------------------------------------------------------------------------------

  /** Handle a disconnect: changes stay pending, reads are dropped, and the view stays as it is. */
  handleDisconnect() {
    this.#open = this.#resumed = false;
    this.#resumeRequest = this.#cartRequest = this.#watchId = null;
    this.#outgoing = [];
    this.#scheduled = [];
    this.products.clearWatched();
    for (const request of this.#unresolved.values()) request.sent = false;
  }

  /** Run scheduled actions, and retry requests that have timed out. Call this regularly. */
  tick(now) {
    const due = this.#scheduled.filter((entry) => entry.at <= now);
    this.#scheduled = this.#scheduled.filter((entry) => entry.at > now);
    for (const { action } of due) action(now);
    if (!this.#open) return;
    if (!this.#unresolved.size) this.#resumeAt = now + RESUME_AFTER;
    if (this.#cartRequest && now - this.#cartRequest.at >= READ_TIMEOUT) this.#requestCart(now);
    const timedOut = this.#resumeRequest && now - this.#resumeRequest.at >= READ_TIMEOUT;
    const overdue = !this.#resumeRequest && this.#resumed && now >= this.#resumeAt;
    if (timedOut || overdue) this.#requestResume(now);
  }

  /** Handle a frame. Unknown frames and fields are ignored, so that the server may add new ones. */
  receive(frame, now) {
    switch (frame.type) {
      case "welcome": return this.#handleWelcome(frame, now);
      case "cart": return this.#replaceCart(frame, now);
      case "resumed": return this.#handleResumed(frame, now);
      case "held": return this.#handleHeld(frame, now);
      case "removed": return this.#handleRemoved(frame, now);
      case "refused": return this.#handleRefusal(frame.id, frame.reason, frame.available ?? null, now);
      case "expired": return this.#handleExpired(frame, now);
      case "expiring": return this.#handleExpiring(frame);
      case "order": return this.#events.push(frame); // the server stores it; the same frame may arrive twice
      case "stock": return this.products.updateStock(frame);
      case "error": return this.#handleError(frame, now);
    }
  }

  /** Return the frames to send, in order, and remove them from the queue. */
  takeFrames() {
    return this.#outgoing.splice(0);
  }

  /** Return the events since the last call, for screen readers. */
  takeEvents() {
    return this.#events.splice(0);
  }

  /** Return the state that must survive a reload, or null: the unresolved requests. It contains no secret. */
  persistentState() {
    if (!this.#unresolved.size) return null;
    return { user: this.user, frames: this.#unresolvedFrames() };
  }

  // ---- the view ----------------------------------------------------------------------------------------------------

  /** The version of the displayed cart; null before the first one. */
  get version() {
    return this.#cart.version;
  }

  /** Return the milliseconds until the cart expires by the server's clock, at least 0; null if nothing is held. */
  timeLeft(now) {
    const end = this.#cart.expiresAt;
    return end === null ? null : Math.max(0, end - (now + this.#clockOffset));
  }

  /** Return the name of a product as it is displayed, or its code if the name is unknown. */
  name(product) {
    return displayName(this.#cart.line(product)?.name ?? this.products.product(product)?.name ?? product, product);
  }

  /** Return `[{product, name, price, held, quantity, state: "pending" | "held" | "refused", refusal}]`. */
  lines() {
    const shown = this.#cart.withPending(this.#unresolvedFrames(), this.#refusals.keys());
    return shown.map(([product, { held, quantity, waiting }]) => {
      const refusal = this.#refusals.get(product) ?? null;
      const price = this.#cart.line(product)?.price ?? this.products.product(product)?.price ?? null;
      const state = waiting ? "pending" : refusal ? "refused" : "held";
      return { product, name: this.name(product), price, held, quantity, state, refusal };
    });
  }

  // ---- frames, one by one ------------------------------------------------------------------------------------------

  #handleWelcome(frame, now) {
    this.#clockOffset = Date.parse(frame.server_time) - now;
    if (this.user !== null && this.user !== frame.user_id) this.#reset();
    this.user = frame.user_id;
    this.#open = true;
    this.#watch();
    // The server sends the first cart without a request.
    if (this.version === null && !this.#unresolved.size) this.#resumed = true;
    else this.#requestResume(now);
  }

  /** Drop the cart and requests of another shopper. */
  #reset() {
    this.#cart = new Cart();
    this.#unresolved.clear();
    this.#refusals.clear();
    this.#highestVersion = 0;
    this.#events.push({ type: "new_user" });
  }

  #replaceCart(frame, now) {
    if (this.#cartRequest && frame.id === this.#cartRequest.id) this.#cartRequest = null;
    const lapsed = this.timeLeft(now) === 0 ? this.#cart.heldLines() : [];
    this.#cart.replace(frame, this.#unresolved);
    // The cart expired while disconnected.
    if (lapsed.length && !frame.lines.length) this.#events.push({ type: "expired", lines: lapsed });
    if (this.version < this.#highestVersion) this.#schedule(now + CATCH_UP_DELAY, (then) => this.#catchUp(then));
  }

  #handleResumed(frame, now) {
    if (frame.id !== this.#resumeRequest?.id) return;
    this.#resumeRequest = null;
    this.#resumed = true;
    this.#resumeAt = now + RESUME_AFTER;
    for (const [id, request] of this.#unresolved) {
      if (frame.pending.includes(id)) request.sent = true;
      else if (!request.sent || frame.unknown.includes(id)) this.#sendChange(id);
    }
    this.#catchUp(now);
  }

  #handleHeld(frame, now) {
    const own = this.#settle(frame.id, now);
    if (this.#advanceTo(frame.version, now)) {
      const product = this.products.product(frame.product);
      if (!product && !this.#cart.line(frame.product)) this.#requestCart(now); // the cart has the name and the price
      this.#cart.applyHeld(frame, product);
    }
    if (own) this.#events.push({ type: "held", product: frame.product, quantity: frame.line_quantity });
  }

  #handleRemoved(frame, now) {
    const own = this.#settle(frame.id, now);
    if (this.#advanceTo(frame.version, now)) this.#cart.removeLines(frame.product);
    if (own) this.#events.push({ type: "removed", product: frame.product });
  }

  #handleRefusal(id, reason, available, now) {
    const own = this.#settle(id, now);
    if (!own) return; // another page's request, or a repeat
    const refusal = { type: "refused", request: own, reason, available };
    if (own.product !== undefined) this.#refusals.set(own.product, refusal);
    this.#events.push({ product: own.product, ...refusal });
  }

  #handleExpired(frame, now) {
    if (this.version === null || frame.version <= this.version) return;
    if (this.#advanceTo(frame.version, now)) this.#cart.removeLines();
    this.#events.push({ type: "expired", lines: frame.lines });
  }

  #handleExpiring(frame) {
    if (frame.version === this.version) this.#events.push({ type: "expiring" });
  }

  #handleError(frame, now) {
    const { id, code } = frame;
    const then = now + 1000 * (frame.retry_after ?? 1);
    if (this.#unresolved.has(id)) {
      if (!RETRYABLE.has(code)) return this.#handleRefusal(id, code, null, now);
      if (code === "rate_limited") this.#events.push({ type: "rate_limited" });
      this.#schedule(then, () => this.#resumed && this.#unresolved.has(id) && this.#sendChange(id));
    } else if (id === this.#cartRequest?.id) this.#schedule(then, (later) => this.#requestCart(later));
    else if (id === this.#resumeRequest?.id) this.#schedule(then, (later) => this.#requestResume(later));
    else if (id === this.#watchId) this.#schedule(then, () => this.#restartWatch());
  }

  // ---- helpers -----------------------------------------------------------------------------------------------------

  /** Advance to the next version and return true if the frame is to be applied; if it skips one, request the cart. */
  #advanceTo(version, now) {
    this.#highestVersion = Math.max(this.#highestVersion, version);
    if (this.version === null) return false; // the first cart has not arrived yet
    if (version === this.version + 1) {
      this.#cart.version = version;
      return true;
    }
    if (this.#resumed) this.#catchUp(now); // else `#handleResumed` does
    return false;
  }

  #catchUp(now) {
    if (!this.#cartRequest && this.version < this.#highestVersion) this.#requestCart(now);
  }

  /** Mark a request as resolved; return its frame if this page sent it, else undefined. */
  #settle(id, now) {
    const request = this.#unresolved.get(id);
    if (request) this.#resumeAt = now + RESUME_AFTER;
    this.#unresolved.delete(id);
    this.#cart.settle(id);
    return request?.frame;
  }

  #unresolvedFrames() {
    return [...this.#unresolved.values()].map((request) => request.frame);
  }

  #requestCart(now) {
    this.#cartRequest = { id: this.#send({ type: "cart" }), at: now };
  }

  #requestResume(now) {
    const unresolved = [...this.#unresolved.keys()];
    this.#resumeRequest = { id: this.#send({ type: "resume", version: this.version ?? 0, unresolved }), at: now };
  }

  #watch() {
    if (!this.#open) return;
    for (const frame of this.products.watchFrames()) this.#watchId = this.#send(frame);
  }

  #restartWatch() {
    this.#send({ type: "unwatch" });
    this.products.clearWatched();
    this.#watch();
  }

  #sendChange(id) {
    const request = this.#unresolved.get(id);
    request.sent = true;
    this.#outgoing.push(request.frame);
  }

  #send(frame) {
    const id = this.#newId();
    if (this.#open) this.#outgoing.push({ id, ...frame });
    return id;
  }

  #schedule(at, action) {
    this.#scheduled.push({ at, action });
  }
}
