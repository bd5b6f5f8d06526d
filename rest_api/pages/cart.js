/**
 * A copy of a cart: what is held at one version, and how that looks with what is still being decided laid over it.
 *
 * The cart itself lives with the shop. This copy changes only as the shop says, one version at a time; whatever the
 * shopper asked for meanwhile is shown beside it, never mixed into it, so that a refusal has nothing to undo.
 */

export class Cart {
  version = null; // none until the first cart is in
  expiresAt = null; // milliseconds of the server's clock; null when nothing is held
  #lines = new Map(); // product -> quantity, price, name
  #elsewhere = new Map(); // id -> a change that another page of this shopper asked for

  /** Take a whole cart unless it is older than ours. `mine` are the ids of the requests of this page. */
  replace(cart, mine) {
    if (this.version !== null && cart.version < this.version) return;
    this.version = cart.version;
    this.expiresAt = at(cart.expires_at);
    this.#lines = new Map(cart.lines.map((line) => [line.product, line]));
    this.#elsewhere = new Map(cart.pending.filter(({ id }) => !mine.has(id)).map((request) => [request.id, request]));
  }

  /** Apply `held`; `product` is what the catalogue knows of it, if anything. */
  hold({ product: code, line_quantity: quantity, expires_at: expires }, product) {
    const { name, price } = this.#lines.get(code) ?? product ?? {};
    this.#lines.set(code, { product: code, quantity, name, price });
    this.expiresAt = at(expires);
  }

  /** Apply `removed`; without a product, or with `expired`, all lines go. */
  remove(product) {
    if (product === undefined) this.#lines.clear();
    else this.#lines.delete(product);
    if (!this.#lines.size) this.expiresAt = null;
  }

  /** A request has its outcome. */
  settle(id) {
    this.#elsewhere.delete(id);
  }

  /** The lines that are held: `[{product, quantity}]`. */
  held() {
    return [...this.#lines.values()];
  }

  /** What this line is called and costs, as it was granted. */
  line(product) {
    return this.#lines.get(product);
  }

  /**
   * The quantities as the shopper should see them, in order: `[product, {held, quantity, waiting}]`.
   *
   * `asked` are the undecided requests of this page, oldest first; `quantity` is what the line comes to if all of them
   * are granted, `waiting` how many there are. A line whose removal is pending is not there; one of `kept` always is.
   */
  seen(asked, kept) {
    const seen = new Map();
    const line = (product) => {
      if (!seen.has(product)) seen.set(product, { held: 0, quantity: 0, waiting: 0, hidden: false });
      return seen.get(product);
    };
    const hide = (shown) => Object.assign(shown, { held: 0, quantity: 0, waiting: 0, hidden: true });
    for (const [product, { quantity }] of this.#lines) Object.assign(line(product), { held: quantity, quantity });
    for (const { type, product, quantity } of [...this.#elsewhere.values(), ...asked]) {
      if (type === "clear") seen.forEach(hide);
      else if (product === undefined) continue;
      else if (type === "remove" || quantity === 0) hide(line(product));
      else {
        const shown = line(product);
        shown.quantity = type === "add" ? shown.quantity + quantity : quantity;
        shown.waiting += 1;
        shown.hidden = false;
      }
    }
    for (const product of kept) line(product).hidden = false;
    return [...seen].filter(([, shown]) => !shown.hidden);
  }
}

function at(time) {
  return time === null ? null : Date.parse(time);
}
