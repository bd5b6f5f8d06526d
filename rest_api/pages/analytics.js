/** The page of figures: loads the windows of a time range and draws each figure as an SVG chart. */

import { byId, makeElement, makeSvg, setText } from "./dom.js";

const WINDOW_LENGTH = { minute: 60e3, hour: 3600e3, day: 86400e3 };
const WINDOW_COUNT = { minute: 60, hour: 48, day: 31 };
const RELOAD_INTERVAL = 5000; // milliseconds
const STORAGE_KEY = "holdfast.figures-token"; // in sessionStorage: deleted with the tab
const [WIDTH, HEIGHT, FOOTER] = [360, 120, 18]; // near the size in pixels, so that text keeps its size

const percent = (share) => `${(share * 100).toFixed(1)} %`;
const decimal = (number) => number.toLocaleString("en-GB", { maximumFractionDigits: 2 });

/** Return the charts: each has a summary over all windows, and one or two values per window. Null leaves a gap. */
function charts(windows, by) {
  const sum = (value) => windows.reduce((all, window) => all + (window ? value(window) : 0), 0);
  const share = (selected, whole) => (sum(whole) ? percent(sum(selected) / sum(whole)) : "none yet");
  const currencies = [...new Set(windows.flatMap((window) => window?.revenue.map((each) => each.currency) ?? []))];
  const money = (window, currency) => window.revenue.find((each) => each.currency === currency);
  const most = Math.max(0, ...windows.map((window) => window?.orders.placed ?? 0));
  const bars = (title, first, second, summary) => ({ title, summary, bars: [first, second].filter(Boolean) });
  const line = (title, value, summary) => ({ title, summary, line: value });
  return [
    bars("Orders placed", (w) => w.orders.placed, null, `${sum((w) => w.orders.placed)}, at most ${most} in one ${by}`),
    bars("Orders confirmed and cancelled", (w) => w.orders.confirmed, (w) => w.orders.cancelled,
      `${sum((w) => w.orders.confirmed)} confirmed, ${sum((w) => w.orders.cancelled)} cancelled`),
    ...currencies.map((currency) => {
      const of = (name) => (w) => (money(w, currency)?.[name] ?? 0) / minorUnits(currency);
      const orders = sum((w) => paidOrders(money(w, currency)));
      const paid = sum((w) => paidOrders(money(w, currency)) * (money(w, currency)?.average_order ?? 0)) / minorUnits(currency);
      return bars(`Revenue, ${currency}`, of("captured"), of("refunded"),
        `${decimal(sum(of("revenue")))} captured less refunded; ${orders ? decimal(paid / orders) : "no"} average order`);
    }),
    line("Order success", (w) => w.orders.success, share((w) => w.orders.confirmed, (w) => w.orders.confirmed + w.orders.cancelled)),
    line("Payment success", (w) => w.payments.success, share((w) => w.payments.captured, (w) => w.payments.captured + w.payments.declined)),
    line("Conversion", (w) => w.conversion.rate,
      `${share((w) => w.conversion.buyers, (w) => w.conversion.shoppers)} of the shoppers with something held ordered in the same ${by}`),
    bars("Holds granted and refused", (w) => w.holds.granted, (w) => w.holds.refused,
      `${share((w) => w.holds.refused, (w) => w.holds.granted + w.holds.refused)} refused`),
    bars("Carts abandoned", (w) => w.carts.abandoned, null, `${sum((w) => w.carts.abandoned)}`),
  ];
}

/** Return the number of orders that the average of a window is of: paid ones, or all in records without their number. */
function paidOrders(money) {
  if (!money || money.average_order === null) return 0;
  return money.payments || money.orders;
}

function minorUnits(currency) {
  return 10 ** new Intl.NumberFormat("en-GB", { style: "currency", currency }).resolvedOptions().maximumFractionDigits;
}

function chart({ title, summary, bars, line }, windows, starts) {
  const svg = makeSvg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + FOOTER}`, role: "img", "aria-label": `${title}: ${summary}` });
  const step = WIDTH / windows.length;
  const values = windows.map((window) => (window ? (bars ?? [line]).map((value) => value(window)) : bars ? [0] : [null]));
  const most = line ? 1 : Math.max(1, ...values.map((each) => each.reduce((all, value) => all + value, 0)));
  if (values.every((each) => each.every((value) => !value && !(line && value === 0)))) {
    return makeElement("section", { class: "chart" }, makeElement("h2", {}, title), makeElement("p", { class: "nothing" }, "Nothing in this time range."));
  }
  const top = (value) => HEIGHT - (value / most) * (HEIGHT - 14);
  svg.append(makeSvg("line", { class: "axis", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }));
  svg.append(makeSvg("text", { x: 0, y: 11 }, line ? "100 %" : decimal(most)));
  svg.append(makeSvg("text", { x: 0, y: HEIGHT + 14 }, label(starts[0])));
  svg.append(makeSvg("text", { x: WIDTH, y: HEIGHT + 14, "text-anchor": "end" }, label(starts.at(-1))));
  if (line) {
    const points = values.flatMap(([value], index) => (value === null ? [] : [[(index + 0.5) * step, top(value), index]]));
    svg.append(makeSvg("polyline", { class: "line", points: points.map(([x, y]) => `${x},${y}`).join(" ") }));
    for (const [x, y, index] of points) svg.append(makeSvg("circle", { class: "dot", cx: x, cy: y, r: 3 }, tooltip(starts[index], percent(values[index][0]))));
  } else {
    values.forEach((each, index) => {
      let below = 0;
      each.forEach((value, kind) => {
        if (!value) return;
        const [y, height] = [top(below + value), top(below) - top(below + value)];
        const shape = { class: kind ? "column second" : "column", x: index * step + step * 0.1, y, width: step * 0.8, height };
        svg.append(makeSvg("rect", shape, tooltip(starts[index], each.map(decimal).join(" and "))));
        below += value;
      });
    });
  }
  return makeElement("section", { class: "chart" }, makeElement("h2", {}, title), makeElement("p", {}, summary), svg);
}

const tooltip = (start, text) => makeSvg("title", {}, `${label(start)}: ${text}`);
const label = (start) => new Date(start).toISOString().slice(5, 16).replace("T", " ");

async function load() {
  const by = byId("by").value;
  const last = Math.floor(Date.now() / WINDOW_LENGTH[by]) * WINDOW_LENGTH[by];
  const starts = Array.from({ length: WINDOW_COUNT[by] }, (_, index) => last - (WINDOW_COUNT[by] - 1 - index) * WINDOW_LENGTH[by]);
  const query = new URLSearchParams({ by, from: new Date(starts[0]).toISOString(), limit: 100 });
  const response = await fetch(`/v1/analytics/all?${query}`, { headers: { Authorization: `Bearer ${byId("token").value.trim()}` } });
  const body = await response.json();
  if (!response.ok) return setText(byId("status"), `${body.title}. ${body.detail ?? ""}`);
  const found = new Map(body.items.map((item) => [Date.parse(item.start), item]));
  const windows = starts.map((start) => found.get(start) ?? null);
  sessionStorage.setItem(STORAGE_KEY, byId("token").value.trim());
  byId("charts").replaceChildren(...charts(windows, by).map((each) => chart(each, windows, starts)));
  setText(byId("status"), found.size ? "" : "Nothing happened in this time range.");
  return undefined;
}

async function show() {
  try {
    if (byId("token").value) await load();
    else setText(byId("status"), "A token is needed. For the local shop, run `holdfast token --role support` and paste the token above.");
  } catch {
    setText(byId("status"), "The shop cannot be reached. Trying again…");
  }
}

/** Take the token from the fragment of the address, `#token=…`, which browsers send to no server, and remove it there. */
function tokenFromAddress() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token !== null) history.replaceState(null, "", location.pathname);
  return token;
}

byId("token").value = tokenFromAddress() ?? sessionStorage.getItem(STORAGE_KEY) ?? "";
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  show();
});
byId("by").addEventListener("change", show);
setInterval(() => document.hidden || !byId("token").value || show(), RELOAD_INTERVAL);
show();
