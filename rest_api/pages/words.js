/** What the page says: money, times, stock, refusals. Plain English, no markup. */

const LOW = 5; // from here down we say how few are left

/** Money of integer minor units, as people write it. */
export function money({ amount, currency }) {
  const format = new Intl.NumberFormat("en-GB", { style: "currency", currency });
  return format.format(amount / 10 ** format.resolvedOptions().maximumFractionDigits);
}

/** Minutes and seconds; a started second counts whole. */
export function minutes(milliseconds) {
  const seconds = Math.ceil(milliseconds / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

/** The stock of a product: `{text, level}`. */
export function stock(available) {
  if (available === null) return { text: "", level: "unknown" };
  if (available <= 0) return { text: "Sold out", level: "none" };
  if (available <= LOW) return { text: `Only ${available} left`, level: "low" };
  return { text: `${available} in stock`, level: "plenty" };
}

/** What of a product is in the cart, in a few words. */
export function mine({ state, held, quantity, refusal: refused }) {
  if (state === "pending") return `Asking for ${quantity}…`;
  return state === "refused" ? refusal(refused) : `${held} held for you`;
}

/** Why a change was refused, in one sentence or two. */
export function refusal({ asked, reason, available }) {
  switch (reason) {
    case "out_of_stock": return outOfStock(asked, available);
    case "unknown_product": return "We no longer have this.";
    case "limit": return "That is more than one cart may hold.";
    case "expired": return "That came too late, so nothing was done.";
    case "failed": return "The shop could not decide this, so nothing was done.";
    default: return "That did not go through, so nothing was done.";
  }
}

function outOfStock({ type, quantity }, available) {
  if (!available) return type === "set" ? "There are no more of these." : "Sold out.";
  const left = type === "set" ? `Only ${available} more ${available === 1 ? "is" : "are"} left` : `Only ${available} left`;
  return `${left}; you asked for ${quantity}.`;
}

/** What came of something, for those who hear the page; `name` is the product's. */
export function heard(news, name) {
  switch (news.type) {
    case "held": return `${news.quantity} × ${name} held for you.`;
    case "removed": return news.product === undefined ? "Your cart is empty." : `${name} taken out.`;
    case "refused": return `${name ?? "Your cart"}: ${refusal(news)}`;
    case "expired": return "The time ran out, and your cart went back on the shelf.";
    case "expiring": return "Two minutes are left. Adding anything gives you more time.";
    case "rate_limited": return "That was a little fast. What you asked is being sent again.";
    case "order": return `Your order: ${progress(news)}.`.replace("..", ".");
    case "stranger": return "You have a new cart: the old session has ended.";
    default: return "";
  }
}

/** The cart in one line. */
export function summary(lines) {
  const refused = lines.filter((line) => line.state === "refused").length;
  if (refused) return `Your cart: ${refused} refused`;
  if (lines.some((line) => line.state === "pending")) return "Your cart: asking…";
  const count = lines.reduce((sum, line) => sum + line.held, 0);
  if (!count) return "Your cart is empty";
  return `Your cart: ${count} ${count === 1 ? "piece" : "pieces"}`;
}

const PROGRESS = {
  placed: "Being looked at",
  committed: "Held for you; waiting for the payment",
  paid: "Paid",
  confirmed: "Being packed",
  shipped: "On its way",
  delivered: "Delivered",
};

/** Where an order has come to. */
export function progress({ status, reason, refunded }) {
  if (status !== "cancelled") return PROGRESS[status] ?? status;
  const back = refunded?.amount ? ` ${money(refunded)} went back to you.` : "";
  switch (reason) {
    case "cancelled": return `Cancelled, as you asked.${back}`;
    case "declined": return "The payment was declined. What was held is in your cart again, as far as it could be.";
    case "payment_unavailable": return `The payment did not come about. What was held is in your cart again.${back}`;
    case "delivery_failed": return `It could not be delivered.${back}`;
    case "wrong_amount": return `The payment was not for the right sum.${back}`;
    default: return `Cancelled: ${(reason ?? "failed").replaceAll("_", " ")}.${back}`;
  }
}

/** Why an order was not taken; `answer` is the shop's, or null when nobody answered. */
export function refusedOrder(answer) {
  switch (slug(answer)) {
    case "cart-changed": return "Your cart has changed meanwhile. Look at it once more, then try again.";
    case "cart-empty": return "There is nothing in your cart.";
    case "cart-expired": return "The time ran out, and your cart went back on the shelf.";
    case "total-changed": return "The total has changed meanwhile. Look at it once more, then try again.";
    case "payment-unavailable": return "Payments are out of reach just now. Your cart stays yours; try again in a moment.";
    case "unknown-payment-token": return "We do not know that way of paying.";
    case "invalid": return `Please look at this again: ${fields(answer)}.`;
    default: return declined(answer);
  }
}

/** Why something did not come about. */
export function declined(answer) {
  switch (slug(answer)) {
    case "order-not-cancellable": return "It is on its way already, so it can no longer be cancelled.";
    case "rate-limited": return "That was a little fast. One moment, please.";
    default: return "The shop did not answer. Nothing is lost: try again in a moment.";
  }
}

function slug(answer) {
  return answer?.body?.type?.replace("/problems/", "");
}

function fields({ body }) {
  const names = { line1: "street", line2: "second line", postal_code: "postcode", email: "e-mail", token: "payment" };
  return body.errors.map(({ pointer }) => pointer.split("/").pop()).map((name) => names[name] ?? name).join(", ");
}
