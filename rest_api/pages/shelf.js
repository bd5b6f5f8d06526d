/** What the page knows of the products: names and prices from the catalogue, live stock from the line. */

const MOST_WATCHED = 100; // that a socket may watch

export class Shelf {
  #products = new Map(); // code -> item of GET /v1/products
  #stock = new Map(); // code -> the `stock` frame of the highest version
  #wished = new Set();
  #watched = new Set();

  /** Learn the items of a list of `GET /v1/products`. */
  learn(items) {
    for (const item of items) this.#products.set(item.code, item);
  }

  product(code) {
    return this.#products.get(code);
  }

  /** How much there is: as the line told it last, else as the catalogue did, else null. */
  available(code) {
    return this.#stock.get(code)?.available ?? this.#products.get(code)?.available ?? null;
  }

  /** Take a `stock` frame unless we have a later one. */
  note(frame) {
    if (frame.version > (this.#stock.get(frame.product)?.version ?? -1)) this.#stock.set(frame.product, frame);
  }

  /** The products to watch from now on: exactly these, or the first hundred of them. */
  wish(codes) {
    this.#wished = new Set([...codes].slice(0, MOST_WATCHED));
  }

  /** The line is new: the server watches nothing for us. */
  lost() {
    this.#watched.clear();
  }

  /** The frames that bring what is watched to what is wished; room is made first. */
  frames() {
    const gone = [...this.#watched].filter((code) => !this.#wished.has(code));
    const come = [...this.#wished].filter((code) => !this.#watched.has(code));
    this.#watched = new Set(this.#wished);
    const frames = [];
    if (gone.length) frames.push({ type: "unwatch", products: gone });
    if (come.length) frames.push({ type: "watch", products: come });
    return frames;
  }

  /** A frame that is answered at once and changes nothing: to hear whether the line still carries. */
  probe() {
    const [code] = this.#watched;
    return code === undefined ? { type: "cart" } : { type: "watch", products: [code] };
  }
}
