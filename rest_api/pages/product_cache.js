/** Cache of products: names and prices from the catalogue, live stock from the socket. */

const MAX_WATCHED = 100; // products per socket

export class ProductCache {
  #products = new Map(); // code -> item of GET /v1/products
  #stock = new Map(); // code -> the `stock` frame of the highest version
  #desired = new Set(); // products to watch
  #watched = new Set(); // products that the server watches for this socket

  /** Store the items of a response to `GET /v1/products`. */
  store(items) {
    for (const item of items) this.#products.set(item.code, item);
  }

  product(code) {
    return this.#products.get(code);
  }

  /** Return the available quantity: the latest from the socket, else from the catalogue, else null. */
  available(code) {
    return this.#stock.get(code)?.available ?? this.#products.get(code)?.available ?? null;
  }

  /** Store a `stock` frame unless a later one is already stored. */
  updateStock(frame) {
    if (frame.version > (this.#stock.get(frame.product)?.version ?? -1)) this.#stock.set(frame.product, frame);
  }

  /** Set the products to watch: exactly these, or the first hundred of them. */
  setDesired(codes) {
    this.#desired = new Set([...codes].slice(0, MAX_WATCHED));
  }

  /** Clear the watched products: a new connection watches none. */
  clearWatched() {
    this.#watched.clear();
  }

  /** Return the frames that make the server watch the desired products: `unwatch` first, to stay within the limit. */
  watchFrames() {
    const removed = [...this.#watched].filter((code) => !this.#desired.has(code));
    const added = [...this.#desired].filter((code) => !this.#watched.has(code));
    this.#watched = new Set(this.#desired);
    const frames = [];
    if (removed.length) frames.push({ type: "unwatch", products: removed });
    if (added.length) frames.push({ type: "watch", products: added });
    return frames;
  }

  /** Return a frame that is answered at once and changes nothing, to test the connection. */
  probeFrame() {
    const [code] = this.#watched;
    return code === undefined ? { type: "cart" } : { type: "watch", products: [code] };
  }
}
