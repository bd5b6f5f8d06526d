/** The shop's page: joins the client, its connection, the shelf and the cart, and lets time pass. */

import { Basket } from "./basket.js";
import { Catalogue, named } from "./catalogue.js";
import { Client } from "./client.js";
import { Connection } from "./connection.js";
import { make, part, say } from "./dom.js";
import { Orders } from "./orders.js";
import { Together } from "./together.js";
import { heard } from "./words.js";

const TICK = 250;
const FRAME = 16;
const SAVED = "holdfast.unresolved"; // in sessionStorage: this tab's requests that have no outcome yet
const GRAVE = new Set(["refused", "expired", "expiring", "rate_limited", "stranger"]);

const client = new Client(newId, restored());
const connection = new Connection(client, changed);
const basket = new Basket(client, asked);
const orders = new Orders(client, newId, (text) => say(part("said"), text));
const catalogue = new Catalogue(client.shelf, add, watch, changed);
const together = new Together(client.shelf, add, changed);

let rendering = null;
let savedText = null;

function add(product, quantity) {
  if (!client.change("add", product, quantity)) say(part("warned"), "Too much is waiting for an answer. One moment, please.");
  say(part("notice"), "");
  asked();
}

function watch(products) {
  client.watch(products);
  connection.flush();
}

/** The shopper asked for something: keep it before it is sent, so that a reload cannot lose it. */
function asked() {
  changed();
  connection.flush();
}

/** Something changed: keep what must be kept at once, show it soon. */
function changed() {
  save();
  for (const news of client.takeNews()) tell(news);
  rendering ??= setTimeout(render, FRAME);
}

function render() {
  rendering = null;
  const lines = client.lines();
  catalogue.render(lines);
  basket.render(lines);
  orders.render(lines);
  together.render(lines);
  basket.tick(performance.now());
  showLine();
}

function tell(news) {
  const text = heard(news, news.product === undefined ? undefined : client.name(news.product));
  part(GRAVE.has(news.type) ? "warned" : "said").textContent = text; // also when it says the same again
  if (GRAVE.has(news.type) && news.product === undefined) notice(text, news.lines ?? []);
  if (news.type === "order") orders.heard(news);
  if (news.type === "held" || news.type === "removed") say(part("notice"), "");
}

function notice(text, lines) {
  const lost = lines.map(({ product, quantity }) => {
    const name = client.name(product);
    return make("li", {}, `${quantity} × `, make("span", { class: named(name) }, name));
  });
  part("notice").replaceChildren(text, ...(lost.length ? [make("ul", {}, ...lost)] : []));
}

function showLine() {
  const { state, retryAt } = connection;
  const says = {
    connecting: "Connecting…",
    open: "Open",
    waiting: "Out of reach. Your cart stays as it was.",
    stopped: "The shop has hung up.",
  };
  if (state === "open" && part("line").dataset.state !== "open") {
    catalogue.retry();
    orders.read();
  }
  part("line").dataset.state = state;
  say(part("line-says"), says[state]);
  const seconds = state === "waiting" ? Math.max(1, Math.ceil((retryAt - performance.now()) / 1000)) : 0;
  say(part("line-wait"), seconds ? `Trying again in ${seconds} s` : "");
  part("line-now").hidden = state !== "waiting" && state !== "stopped";
}

function openCart(open) {
  document.body.classList.toggle("cart-open", open);
  part("bar").setAttribute("aria-expanded", String(open));
  part("shelf").inert = open;
  (open ? part("cart") : part("bar")).focus();
}

/** A random UUID, also where the page came over plain HTTP and `randomUUID` is withheld. */
function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function restored() {
  try {
    return JSON.parse(sessionStorage.getItem(SAVED));
  } catch {
    return null; // no storage here: then a reload forgets, and nothing else
  }
}

function save() {
  const kept = client.saved();
  const text = kept && JSON.stringify(kept);
  if (text === savedText) return;
  savedText = text;
  try {
    if (text === null) sessionStorage.removeItem(SAVED);
    else sessionStorage.setItem(SAVED, text);
  } catch {
    // as above
  }
}

part("line-now").addEventListener("click", () => connection.connect());
part("bar").addEventListener("click", () => openCart(true));
part("cart-close").addEventListener("click", () => openCart(false));
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
  basket.tick(now);
  showLine();
}, TICK);
catalogue.start();
connection.connect();
