/**
 * The shopper's side of `holdfast.v1`, without a socket, a page, a clock or chance: frames in, frames and a view out.
 *
 * A cart is told under a version that grows by exactly one. So this keeps one rule above all: a frame that is the next
 * version is applied, one that leaps ahead makes us ask for the whole cart, and any other only settles the request it
 * answers. What was asked and has no outcome stays in `unresolved`, across cuts and reloads, and is sent again
 * unchanged until it has one; the server does it once.
 *
 * `now` is in milliseconds of any clock that only goes forward; what the server's clock says is learnt from `welcome`.
 */

import { Cart } from "./cart.js";
import { Shelf } from "./shelf.js";

export const SUBPROTOCOL = "holdfast.v1";

const MOST_UNRESOLVED = 64;
const READ_AGAIN = 10_000; // a read without an answer is asked again
const LOOK_AGAIN = 30_000; // when no change finds its outcome for so long, ask what became of them
const CATCH_UP = 500; // a cart older than what we have heard of is asked for again
const UNDECIDED = new Set(["unavailable", "rate_limited", "too_many"]); // send the same frame again

export class Client {
  user = null;
  shelf = new Shelf();
  #cart = new Cart();
  #unresolved = new Map(); // id -> {frame, sent (on this line)}: what this page asked for
  #refusals = new Map(); // product -> why the last change was refused
  #newId;
  #out = [];
  #news = [];
  #later = []; // what to do again, and when
  #open = false; // the server has said who we are
  #live = false; // what happened while we were away is known, so changes may be sent
  #resume = null; // the `resume` we wait for
  #ask = null; // the `cart` we wait for
  #needed = 0; // the highest version we heard of
  #lookAt = Infinity;
  #serverAhead = 0;
  #watchId = null;

  /** `newId` makes an id; `saved` is what `saved()` of an earlier page gave, or null. */
  constructor(newId, saved = null) {
    this.#newId = newId;
    if (!saved) return;
    this.user = saved.user;
    for (const frame of saved.frames) this.#unresolved.set(frame.id, { frame, sent: false });
  }

  // ---- what the page asks ------------------------------------------------------------------------------------------

  /** Ask for a change: `add` or `set` a quantity, `remove` a product, `clear`. False when too much is unanswered. */
  change(type, product, quantity) {
    if (this.#unresolved.size >= MOST_UNRESOLVED) return false;
    const frame = { id: this.#newId(), type };
    if (product !== undefined) frame.product = product;
    if (quantity !== undefined) frame.quantity = quantity;
    this.#unresolved.set(frame.id, { frame, sent: false });
    if (product === undefined) this.#refusals.clear();
    else this.#refusals.delete(product);
    if (this.#live) this.#sendChange(frame.id);
    return true;
  }

  /** A refusal was read. */
  dismiss(product) {
    this.#refusals.delete(product);
  }

  /** Watch the stock of these products and no others. */
  watch(products) {
    this.shelf.wish(products);
    this.#watch();
  }

  /** Ask for anything, to hear whether the line still carries. */
  probe() {
    this.#send(this.shelf.probe());
  }

  // ---- the line ----------------------------------------------------------------------------------------------------

  /** The socket is gone: what was asked stays asked, what was being read is forgotten, the view stays as it is. */
  closed() {
    this.#open = this.#live = false;
    this.#resume = this.#ask = this.#watchId = null;
    this.#out = [];
    this.#later = [];
    this.shelf.lost();
    for (const request of this.#unresolved.values()) request.sent = false;
  }

  /** Time has passed. */
  tick(now) {
    const due = this.#later.filter((todo) => todo.at <= now);
    this.#later = this.#later.filter((todo) => todo.at > now);
    for (const { again } of due) again(now);
    if (!this.#open) return;
    if (!this.#unresolved.size) this.#lookAt = now + LOOK_AGAIN;
    if (this.#ask && now - this.#ask.at >= READ_AGAIN) this.#askForCart(now);
    if (this.#resume ? now - this.#resume.at >= READ_AGAIN : this.#live && now >= this.#lookAt) this.#askWhatBecame(now);
  }

  /** A frame came. Frames and fields that we do not know are ignored: the server may learn new ones. */
  receive(frame, now) {
    switch (frame.type) {
      case "welcome": return this.#welcome(frame, now);
      case "cart": return this.#whole(frame, now);
      case "resumed": return this.#resumed(frame, now);
      case "held": return this.#held(frame, now);
      case "removed": return this.#removed(frame, now);
      case "refused": return this.#refused(frame.id, frame.reason, frame.available ?? null, now);
      case "expired": return this.#expired(frame, now);
      case "expiring": return this.#expiring(frame);
      case "order": return this.#news.push(frame); // kept by the shop, not by us: it may be told twice
      case "stock": return this.shelf.note(frame);
      case "error": return this.#error(frame, now);
    }
  }

  /** The frames to send now, in order; each is given once. */
  takeFrames() {
    return this.#out.splice(0);
  }

  /** What happened since last asked, for those who cannot see the page change. */
  takeNews() {
    return this.#news.splice(0);
  }

  /** What must outlive this page, or null: no secret, only what was asked and has no outcome. */
  saved() {
    if (!this.#unresolved.size) return null;
    return { user: this.user, frames: this.#asked() };
  }

  // ---- the view ----------------------------------------------------------------------------------------------------

  /** The version of the cart that is shown; null before the first. */
  get version() {
    return this.#cart.version;
  }

  /** Milliseconds until the cart ends by the server's clock, at least 0; null when nothing is held. */
  left(now) {
    const end = this.#cart.expiresAt;
    return end === null ? null : Math.max(0, end - (now + this.#serverAhead));
  }

  name(product) {
    return this.#cart.line(product)?.name ?? this.shelf.product(product)?.name ?? product;
  }

  /** `[{product, name, price, held, quantity, state: "pending" | "held" | "refused", refusal}]`; see `Cart.seen`. */
  lines() {
    return this.#cart.seen(this.#asked(), this.#refusals.keys()).map(([product, { held, quantity, waiting }]) => {
      const refusal = this.#refusals.get(product) ?? null;
      const price = this.#cart.line(product)?.price ?? this.shelf.product(product)?.price ?? null;
      const state = waiting ? "pending" : refusal ? "refused" : "held";
      return { product, name: this.name(product), price, held, quantity, state, refusal };
    });
  }

  // ---- frames, one by one ------------------------------------------------------------------------------------------

  #welcome(frame, now) {
    this.#serverAhead = Date.parse(frame.server_time) - now;
    if (this.user !== null && this.user !== frame.user_id) this.#forget();
    this.user = frame.user_id;
    this.#open = true;
    this.#watch();
    if (this.version === null && !this.#unresolved.size) this.#live = true; // the first cart follows by itself
    else this.#askWhatBecame(now);
  }

  /** Another shopper's cart and requests are not this one's. */
  #forget() {
    this.#cart = new Cart();
    this.#unresolved.clear();
    this.#refusals.clear();
    this.#needed = 0;
    this.#news.push({ type: "stranger" });
  }

  #whole(frame, now) {
    if (this.#ask && frame.id === this.#ask.id) this.#ask = null;
    const lapsed = this.left(now) === 0 ? this.#cart.held() : [];
    this.#cart.replace(frame, this.#unresolved);
    if (lapsed.length && !frame.lines.length) this.#news.push({ type: "expired", lines: lapsed }); // while we were away
    if (this.version < this.#needed) this.#again(now + CATCH_UP, (then) => this.#catchUp(then));
  }

  #resumed(frame, now) {
    if (frame.id !== this.#resume?.id) return;
    this.#resume = null;
    this.#live = true;
    this.#lookAt = now + LOOK_AGAIN;
    for (const [id, request] of this.#unresolved) {
      if (frame.pending.includes(id)) request.sent = true;
      else if (!request.sent || frame.unknown.includes(id)) this.#sendChange(id);
    }
    this.#catchUp(now);
  }

  #held(frame, now) {
    const mine = this.#settle(frame.id, now);
    if (this.#isNext(frame.version, now)) {
      const product = this.shelf.product(frame.product);
      if (!product && !this.#cart.line(frame.product)) this.#askForCart(now); // it knows the name and the price
      this.#cart.hold(frame, product);
    }
    if (mine) this.#news.push({ type: "held", product: frame.product, quantity: frame.line_quantity });
  }

  #removed(frame, now) {
    const mine = this.#settle(frame.id, now);
    if (this.#isNext(frame.version, now)) this.#cart.remove(frame.product);
    if (mine) this.#news.push({ type: "removed", product: frame.product });
  }

  #refused(id, reason, available, now) {
    const mine = this.#settle(id, now);
    if (!mine) return; // another page's, or heard before
    const refusal = { type: "refused", asked: mine, reason, available };
    if (mine.product !== undefined) this.#refusals.set(mine.product, refusal);
    this.#news.push({ product: mine.product, ...refusal });
  }

  #expired(frame, now) {
    if (this.version === null || frame.version <= this.version) return;
    if (this.#isNext(frame.version, now)) this.#cart.remove();
    this.#news.push({ type: "expired", lines: frame.lines });
  }

  #expiring(frame) {
    if (frame.version === this.version) this.#news.push({ type: "expiring" });
  }

  #error(frame, now) {
    const { id, code } = frame;
    const then = now + 1000 * (frame.retry_after ?? 1);
    if (this.#unresolved.has(id)) {
      if (!UNDECIDED.has(code)) return this.#refused(id, code, null, now);
      if (code === "rate_limited") this.#news.push({ type: "rate_limited" });
      this.#again(then, () => this.#live && this.#unresolved.has(id) && this.#sendChange(id));
    } else if (id === this.#ask?.id) this.#again(then, (later) => this.#askForCart(later));
    else if (id === this.#resume?.id) this.#again(then, (later) => this.#askWhatBecame(later));
    else if (id === this.#watchId) this.#again(then, () => this.#watchAnew());
  }

  // ---- small parts -------------------------------------------------------------------------------------------------

  /** Whether a frame of this version is to be applied, and then we are at it; a leap asks for the whole cart. */
  #isNext(version, now) {
    this.#needed = Math.max(this.#needed, version);
    if (this.version === null) return false; // the first cart is on its way
    if (version === this.version + 1) {
      this.#cart.version = version;
      return true;
    }
    if (this.#live) this.#catchUp(now); // else `resumed` does
    return false;
  }

  #catchUp(now) {
    if (!this.#ask && this.version < this.#needed) this.#askForCart(now);
  }

  /** A request has its outcome: our frame that asked for it, or undefined. */
  #settle(id, now) {
    const request = this.#unresolved.get(id);
    if (request) this.#lookAt = now + LOOK_AGAIN;
    this.#unresolved.delete(id);
    this.#cart.settle(id);
    return request?.frame;
  }

  #asked() {
    return [...this.#unresolved.values()].map((request) => request.frame);
  }

  #askForCart(now) {
    this.#ask = { id: this.#send({ type: "cart" }), at: now };
  }

  #askWhatBecame(now) {
    const unresolved = [...this.#unresolved.keys()];
    this.#resume = { id: this.#send({ type: "resume", version: this.version ?? 0, unresolved }), at: now };
  }

  #watch() {
    if (!this.#open) return;
    for (const frame of this.shelf.frames()) this.#watchId = this.#send(frame);
  }

  #watchAnew() {
    this.#send({ type: "unwatch" });
    this.shelf.lost();
    this.#watch();
  }

  #sendChange(id) {
    const request = this.#unresolved.get(id);
    request.sent = true;
    this.#out.push(request.frame);
  }

  #send(frame) {
    const id = this.#newId();
    if (this.#open) this.#out.push({ id, ...frame });
    return id;
  }

  #again(at, again) {
    this.#later.push({ at, again });
  }
}
