/**
 * The state of the checkout in words, in the cart's heading, which stays in view while the cart scrolls.
 *
 * Progress is replaced by an outcome. An outcome takes the focus, unless the shopper is typing elsewhere, and stays until
 * the next click after it has been visible.
 */

import { byId, setText } from "./dom.js";

const FIELDS = "input, select, textarea";

export class CheckoutStatus {
  #element = byId("checkout-outcome");

  constructor() {
    // In the capture phase, so that a click that leads to a new text does not remove that text.
    document.addEventListener("click", ({ target }) => this.#handleClick(target), { capture: true });
  }

  /** Show a text; `level` is "progress", "success" or "trouble", and `summary` is a short text for the cart's bar. */
  show({ text, level, summary }) {
    const { dataset } = this.#element;
    if (dataset.level === level && this.#element.textContent === text) return;
    Object.assign(dataset, { level, summary });
    setText(this.#element, text);
    if (level === "progress" || !this.#isVisible() || this.#isTypingElsewhere()) return;
    this.#element.focus();
    this.#element.scrollIntoView({ block: "nearest" });
  }

  #handleClick(target) {
    const { level } = this.#element.dataset;
    if (level === "progress" || !this.#isVisible() || this.#element.contains(target)) return;
    Object.assign(this.#element.dataset, { level: "", summary: "" });
    setText(this.#element, "");
  }

  #isVisible() {
    return this.#element.textContent !== "" && this.#element.getClientRects().length > 0;
  }

  #isTypingElsewhere() {
    const active = document.activeElement;
    return active !== null && active.matches(FIELDS) && !byId("checkout").contains(active);
  }
}
