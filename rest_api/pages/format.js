/** Texts of the page: money, times, stock, refusals. No markup. */

const LOW = 5; // at most this many: the number left is shown

// Decimals by ISO 4217, as in contracts/currencies.py; a browser's own table differs for some currencies.
const NO_DECIMALS = new Set("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split(" "));
const FOUR_DECIMALS = new Set(["CLF", "UYW"]);
const THREE_DECIMALS = new Set("BHD IQD JOD KWD LYD OMR TND".split(" "));

/** Return the number of decimals of a currency. */
export function decimals(currency) {
  if (NO_DECIMALS.has(currency)) return 0;
  if (FOUR_DECIMALS.has(currency)) return 4;
  return THREE_DECIMALS.has(currency) ? 3 : 2;
}

const SIGNS = { GBP: "£", EUR: "€", USD: "$", JPY: "¥" };

/** Format an amount in minor units, as contracts/display.py does: £1,250.00, ¥849, 8.49 CHF. */
export function money({ amount, currency }) {
  const digits = decimals(currency);
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  const number = new Intl.NumberFormat("en-GB", options).format(Math.abs(amount) / 10 ** digits);
  const minus = amount < 0 ? "-" : "";
  return SIGNS[currency] ? `${minus}${SIGNS[currency]}${number}` : `${minus}${number} ${currency}`;
}

/**
 * Return the name of a product as it is displayed: a name in capitals in lower case, but for its first character.
 *
 * `code` is the product's code, which stands for an unknown name and is never changed. Mails and notices have the same
 * rule in Python.
 */
export function displayName(name, code) {
  const lowered = name.toLowerCase();
  if (name === code || name !== name.toUpperCase() || name === lowered) return name;
  return lowered.replace(/^./su, (first) => first.toUpperCase());
}

/** Return words that occur most often in names, as examples of a search that finds something. */
export function commonWords(names, count) {
  const numbers = new Map();
  for (const name of names) {
    for (const word of new Set(name.toLowerCase().match(/\p{L}[\p{L}\p{M}]{3,}/gu))) numbers.set(word, (numbers.get(word) ?? 0) + 1);
  }
  return [...numbers].sort(([, one], [, other]) => other - one).slice(0, count).map(([word]) => word);
}

/** Format a duration as minutes and seconds, rounded up. */
export function countdown(milliseconds) {
  const seconds = Math.ceil(milliseconds / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

/** Return the text and level of a product's stock: `{text, level}`. */
export function stockLabel(available) {
  if (available === null) return { text: "", level: "unknown" };
  if (available <= 0) return { text: "Sold out", level: "none" };
  if (available <= LOW) return { text: `Only ${available} left`, level: "low" };
  return { text: `${available} in stock`, level: "plenty" };
}

/** Describe the cart line of a product. */
export function lineStatus({ state, held, quantity, refusal: refused }) {
  if (state === "pending") return `Reserving ${quantity}…`;
  return state === "refused" ? refusalText(refused) : `${held} held for you`;
}

/** Explain why a change was refused. */
export function refusalText({ request, reason, available }) {
  switch (reason) {
    case "out_of_stock": return outOfStock(request, available);
    case "unknown_product": return "We no longer have this.";
    case "other_currency": return "Its price is in another currency than your cart's. Please order it by itself.";
    case "limit": return "That is more than one shopper can hold.";
    case "expired": return "That came too late, so nothing was changed.";
    case "failed": return "The shop could not process this, so nothing was changed.";
    default: return "That did not work, so nothing was changed.";
  }
}

function outOfStock({ type, quantity }, available) {
  if (!available) return type === "set" ? "There are no more of these." : "Sold out.";
  const left = type === "set" ? `Only ${available} more ${available === 1 ? "is" : "are"} left` : `Only ${available} left`;
  return `${left}; you asked for ${quantity}.`;
}

/** Describe an event for screen readers; `name` is the product's name. */
export function describeEvent(event, name) {
  switch (event.type) {
    case "held": return `${event.quantity} × ${name} held for you.`;
    case "removed": return event.product === undefined ? "Your cart is empty." : `${name} removed.`;
    case "refused": return `${name ?? "Your cart"}: ${refusalText(event)}`;
    case "expired": return "Your time ran out, so the items in your cart were released.";
    case "expiring": return "Two minutes left. Add anything to get more time.";
    case "rate_limited": return "That was a little fast. Your request is being sent again.";
    case "order": return `Your order: ${orderStatus(event)}.`.replace("..", ".");
    case "new_user": return "You have a new cart: your old session has ended.";
    default: return "";
  }
}

/** Summarize the cart in one line. */
export function cartSummary(lines) {
  const refused = lines.filter((line) => line.state === "refused").length;
  if (refused) return `Your cart: ${refused} refused`;
  if (lines.some((line) => line.state === "pending")) return "Your cart: updating…";
  const count = lines.reduce((sum, line) => sum + line.held, 0);
  if (!count) return "Your cart is empty";
  return `Your cart: ${count} ${count === 1 ? "item" : "items"}`;
}

const PROGRESS = {
  placed: "Order received",
  committed: "Reserved for you; waiting for the payment",
  paid: "Paid",
  confirmed: "Being packed",
  shipped: "On its way",
  delivered: "Delivered",
};

/** Describe the status of an order. */
export function orderStatus({ status, reason, refunded }) {
  if (status !== "cancelled") return PROGRESS[status] ?? status;
  const refund = refunded?.amount ? ` ${money(refunded)} was refunded.` : "";
  return `${cancellationText(reason)}${refund}`;
}

function cancellationText(reason) {
  switch (reason) {
    case "cancelled": return "Cancelled, as you asked.";
    case "declined": return "The payment was declined. The items are back in your cart if they were still available.";
    case "payment_unavailable": return "The payment could not be completed. The items are back in your cart if they were still available.";
    case "delivery_failed": return "It could not be delivered.";
    case "wrong_amount": return "The payment was for the wrong amount.";
    case "cart_changed": return "Not placed: your cart had changed in the meantime.";
    case "cart_empty": return "Not placed: your cart was empty.";
    case "total_changed": return "Not placed: the total had changed in the meantime.";
    case "expired": return "Not placed: the time of your cart had run out.";
    case "out_of_stock": return "Not placed: not everything was available any more.";
    case "unknown_product": return "Not placed: one of the products is no longer for sale.";
    case "other_currency": return "Not placed: its products are priced in different currencies.";
    case "limit": return "Not placed: that was more than one order can hold.";
    default: return "The shop could not process it.";
  }
}

/**
 * Describe how far an order is, for the shopper who has just placed it: `{text, level, summary}`.
 *
 * The level is "progress" while the payment is open, then "success", or "trouble" if the order was cancelled.
 */
export function checkoutOutcome(order) {
  const name = `order ${order.order_id.slice(0, 8)}`;
  if (order.status === "cancelled") {
    const again = order.reason === "declined" ? " Please check the card, or pay with another one." : "";
    const summary = order.reason === "declined" ? "Payment declined" : "Order cancelled";
    return { text: `Your ${name}: ${orderStatus(order)}${again}`, level: "trouble", summary };
  }
  if (order.status === "placed" || order.status === "committed") {
    return { text: `Your ${name} is placed. Waiting for the payment…`, level: "progress", summary: "Waiting for the payment" };
  }
  return { text: `Thank you. Your ${name} is paid. You can follow it under “Your orders”.`, level: "success", summary: "Thank you" };
}

/** Explain why an order was not placed; `answer` is the response, or null if there was none. */
export function orderErrorText(answer) {
  switch (slug(answer)) {
    case "cart-changed": return "Your cart has changed in the meantime. Please check it, then try again.";
    case "cart-empty": return "Your cart is empty.";
    case "cart-expired": return "Your time ran out, so the items in your cart were released.";
    case "total-changed": return "The total has changed in the meantime. Please check it, then try again.";
    case "other-currency": return "The products are priced in different currencies. Please order them one after the other.";
    case "out-of-stock": return "Not everything is available any more, so nothing was ordered. Please check your cart, then try again.";
    case "unknown-product": return "One of the products is no longer for sale. Please remove it, then try again.";
    case "over-limit": return "That is more than one order can hold.";
    case "payment-unavailable": return "Payments are not available right now. Your cart is unchanged; please try again in a moment.";
    case "unknown-payment-token": return "That payment method is not accepted.";
    case "invalid": return `Please check: ${fields(answer)}.`;
    default: return requestErrorText(answer);
  }
}

/** Explain why a request failed; `answer` is the response, or null if there was none. */
export function requestErrorText(answer) {
  switch (slug(answer)) {
    case "order-not-cancellable": return "It is already on its way, so it can no longer be cancelled.";
    case "rate-limited": return "That was a little fast. Please try again in a moment.";
    case "request-in-progress": return "The shop is still working on it. Please try again in a moment.";
    case "unauthenticated":
    case "token-expired": return "Your session has ended. Please load this page again.";
    default: return "The shop did not respond. Nothing is lost: please try again in a moment.";
  }
}

function slug(answer) {
  return answer?.body?.type?.replace("/problems/", "");
}

function fields({ body }) {
  const names = { line1: "street", line2: "address line 2", postal_code: "postcode", email: "e-mail", token: "payment" };
  return body.errors.map(({ pointer }) => pointer.split("/").pop()).map((name) => names[name] ?? name).join(", ");
}
