/**
 * A copy of the cart at one version, and a view that overlays the pending changes.
 *
 * The server owns the cart. This copy changes only by server frames, one version at a time. Pending changes are overlaid
 * when the cart is displayed and never stored in the copy, so a refusal has nothing to undo.
 */

export class Cart {
  version = null; // null until the first cart frame
  expiresAt = null; // milliseconds by the server's clock; null if nothing is held
  #lines = new Map(); // product -> quantity, price, name
  #otherPending = new Map(); // id -> a pending change of another page of this shopper

  /** Replace the copy by a `cart` frame unless the frame is older. `ownIds` has the ids of this page's requests. */
  replace(cart, ownIds) {
    if (this.version !== null && cart.version < this.version) return;
    this.version = cart.version;
    this.expiresAt = timestamp(cart.expires_at);
    this.#lines = new Map(cart.lines.map((line) => [line.product, line]));
    this.#otherPending = new Map(cart.pending.filter(({ id }) => !ownIds.has(id)).map((request) => [request.id, request]));
  }

  /** Apply a `held` frame. `product` is the catalogue's item, if known. */
  applyHeld({ product: code, line_quantity: quantity, expires_at: expires }, product) {
    const { name, price } = this.#lines.get(code) ?? product ?? {};
    this.#lines.set(code, { product: code, quantity, name, price });
    this.expiresAt = timestamp(expires);
  }

  /** Remove the line of a product, or, without a product, all lines (`removed` and `expired` frames). */
  removeLines(product) {
    if (product === undefined) this.#lines.clear();
    else this.#lines.delete(product);
    if (!this.#lines.size) this.expiresAt = null;
  }

  /** Forget a pending change: its outcome has arrived. */
  settle(id) {
    this.#otherPending.delete(id);
  }

  /** Return the held lines: `[{product, quantity}]`. */
  heldLines() {
    return [...this.#lines.values()];
  }

  /** Return the line of a product, with the name and price at which it was held. */
  line(product) {
    return this.#lines.get(product);
  }

  /**
   * Return the quantities to display, in order: `[product, {held, quantity, waiting}]`.
   *
   * `pending` are the unresolved requests of this page, oldest first. `quantity` is the line's quantity if all of them
   * are granted, `waiting` is their number. A line with a pending removal is omitted, unless it is in `alwaysShown`.
   */
  withPending(pending, alwaysShown) {
    const shown = new Map();
    const line = (product) => {
      if (!shown.has(product)) shown.set(product, { held: 0, quantity: 0, waiting: 0, hidden: false });
      return shown.get(product);
    };
    const hide = (entry) => Object.assign(entry, { held: 0, quantity: 0, waiting: 0, hidden: true });
    for (const [product, { quantity }] of this.#lines) Object.assign(line(product), { held: quantity, quantity });
    for (const { type, product, quantity } of [...this.#otherPending.values(), ...pending]) {
      if (type === "clear") shown.forEach(hide);
      else if (product === undefined) continue;
      else if (type === "remove" || quantity === 0) hide(line(product));
      else {
        const entry = line(product);
        entry.quantity = type === "add" ? entry.quantity + quantity : quantity;
        entry.waiting += 1;
        entry.hidden = false;
      }
    }
    for (const product of alwaysShown) line(product).hidden = false;
    return [...shown].filter(([, entry]) => !entry.hidden);
  }
}

function timestamp(time) {
  return time === null ? null : Date.parse(time);
}
