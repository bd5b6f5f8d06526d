/** Entry point of the shop's page: creates the client, its connection and the views, and runs the timer. */

import { CartView } from "./cart_view.js";
import { Catalogue } from "./catalogue.js";
import { CheckoutStatus } from "./checkout_status.js";
import { Client } from "./client.js";
import { Connection } from "./connection.js";
import { fillCountries } from "./countries.js";
import { byId, makeElement, setText } from "./dom.js";
import { Orders } from "./orders.js";
import { Recommendations } from "./recommendations.js";
import { describeEvent } from "./format.js";

const TICK = 250; // milliseconds
const RENDER_DELAY = 16; // milliseconds
const STORAGE_KEY = "holdfast.unresolved"; // in sessionStorage: this tab's requests that have no outcome yet
const ALERTS = new Set(["refused", "expired", "expiring", "rate_limited", "new_user"]); // events announced at once

const client = new Client(newId, restore());
const connection = new Connection(client, onChange);
const cartView = new CartView(client, onRequest);
const orders = new Orders(client, newId, new CheckoutStatus(), onChange);
const catalogue = new Catalogue(client.products, add, watch, onChange);
const recommendations = new Recommendations(client.products, add, onChange);

let rendering = null;
let savedText = null;

function add(product, quantity) {
  if (!client.change("add", product, quantity)) setText(byId("alerts"), "Too many changes are in progress. One moment, please.");
  setText(byId("notice"), "");
  onRequest();
}

function watch(products) {
  client.watch(products);
  connection.flush();
}

/** Store and send a change that the shopper has requested. It is stored first, so that a reload cannot lose it. */
function onRequest() {
  onChange();
  connection.flush();
}

/** Store unresolved requests at once, announce events, and schedule a rendering. */
function onChange() {
  save();
  for (const event of client.takeEvents()) announce(event);
  rendering ??= setTimeout(render, RENDER_DELAY);
}

function render() {
  rendering = null;
  const lines = client.lines();
  catalogue.render(lines);
  cartView.render(lines);
  orders.render(lines);
  recommendations.render(lines);
  cartView.tick(performance.now());
  renderConnection();
}

function announce(event) {
  const text = describeEvent(event, event.product === undefined ? undefined : client.name(event.product));
  byId(ALERTS.has(event.type) ? "alerts" : "announcements").textContent = text; // set it even if unchanged: it is read again
  if (ALERTS.has(event.type) && event.product === undefined) showNotice(text, event.lines ?? []);
  if (event.type === "order") orders.update(event);
  if (event.type === "held" || event.type === "removed") setText(byId("notice"), "");
}

/** Show a notice above the cart, with the expired lines, if any. */
function showNotice(text, lines) {
  const expired = lines.map(({ product, quantity }) => makeElement("li", {}, `${quantity} × ${client.name(product)}`));
  byId("notice").replaceChildren(text, ...(expired.length ? [makeElement("ul", {}, ...expired)] : []));
}

function renderConnection() {
  const { state, retryAt } = connection;
  const texts = {
    connecting: "Connecting…",
    open: "Live stock",
    waiting: "Connection lost. Your cart is unchanged.",
    stopped: "Disconnected by the shop.",
  };
  if (state === "open" && byId("connection").dataset.state !== "open") {
    catalogue.retry();
    orders.load();
  }
  byId("connection").dataset.state = state;
  setText(byId("connection-text"), texts[state]);
  const seconds = state === "waiting" ? Math.max(1, Math.ceil((retryAt - performance.now()) / 1000)) : 0;
  setText(byId("connection-wait"), seconds ? `Trying again in ${seconds} s` : "");
  byId("reconnect").hidden = state !== "waiting" && state !== "stopped";
}

function openCart(open) {
  document.body.classList.toggle("cart-open", open);
  byId("bar").setAttribute("aria-expanded", String(open));
  byId("catalogue").inert = open;
  onChange();
  (open ? byId("cart") : byId("bar")).focus();
}

/** Create a random id. `randomUUID` is not available on pages loaded over plain HTTP. */
function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Load the client's stored state; null if there is none. */
function restore() {
  try {
    return JSON.parse(sessionStorage.getItem(STORAGE_KEY));
  } catch {
    return null; // without storage, only reloads lose requests
  }
}

/** Store the client's state if it has changed. */
function save() {
  const state = client.persistentState();
  const text = state && JSON.stringify(state);
  if (text === savedText) return;
  savedText = text;
  try {
    if (text === null) sessionStorage.removeItem(STORAGE_KEY);
    else sessionStorage.setItem(STORAGE_KEY, text);
  } catch {
    // See `restore`.
  }
}

fillCountries(byId("checkout").elements.country);
byId("reconnect").addEventListener("click", () => connection.connect());
byId("bar").addEventListener("click", () => openCart(true));
byId("cart-close").addEventListener("click", () => openCart(false));
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.body.classList.contains("cart-open")) openCart(false);
});
matchMedia("(min-width: 60rem)").addEventListener("change", ({ matches }) => {
  if (matches && document.body.classList.contains("cart-open")) openCart(false);
});
for (const hint of ["online", "offline", "pageshow"]) addEventListener(hint, () => connection.check(performance.now()));
document.addEventListener("visibilitychange", () => document.hidden || connection.check(performance.now()));

setInterval(() => {
  const now = performance.now();
  connection.tick(now);
  connection.flush();
  cartView.tick(now);
  renderConnection();
}, TICK);
catalogue.start();
connection.connect();
