/** The page of figures: asks for the windows of a span and draws each figure as an SVG. */

import { draw, make, part, say } from "./dom.js";

const LENGTH = { minute: 60e3, hour: 3600e3, day: 86400e3 };
const SHOWN = { minute: 60, hour: 48, day: 31 };
const AGAIN = 5000;
const SAVED = "holdfast.figures-token"; // in sessionStorage: gone with the tab
const [WIDE, HIGH, FOOT] = [480, 140, 16];

const percent = (share) => `${(share * 100).toFixed(1)} %`;
const rate = (number) => number.toLocaleString("en-GB", { maximumSignificantDigits: 2 });
const plain = (number) => number.toLocaleString("en-GB", { maximumFractionDigits: 2 });

/** What is drawn: a sum or a share over all windows, and one value (or two) a window. A null is a gap. */
function charts(windows) {
  const sum = (of) => windows.reduce((all, window) => all + (window ? of(window) : 0), 0);
  const share = (part_, whole) => (sum(whole) ? percent(sum(part_) / sum(whole)) : "none yet");
  const currencies = [...new Set(windows.flatMap((window) => window?.revenue.map((each) => each.currency) ?? []))];
  const money = (window, currency) => window.revenue.find((each) => each.currency === currency);
  const most = Math.max(0, ...windows.map((window) => window?.orders.per_second ?? 0));
  const bars = (title, first, second, says) => ({ title, says, bars: [first, second].filter(Boolean) });
  const line = (title, value, says) => ({ title, says, line: value });
  return [
    bars("Orders placed", (w) => w.orders.placed, null, `${sum((w) => w.orders.placed)}, at most ${rate(most)} a second`),
    bars("Orders confirmed and cancelled", (w) => w.orders.confirmed, (w) => w.orders.cancelled,
      `${sum((w) => w.orders.confirmed)} confirmed, ${sum((w) => w.orders.cancelled)} cancelled`),
    ...currencies.map((currency) => {
      const of = (name) => (w) => (money(w, currency)?.[name] ?? 0) / 100;
      const [taken, ordered, orders] = [sum(of("revenue")), sum(of("ordered")), sum((w) => money(w, currency)?.orders ?? 0)];
      return bars(`Revenue, ${currency}`, of("captured"), of("refunded"),
        `${plain(taken)} captured less refunded; ${orders ? plain(ordered / orders) : "no"} average order`);
    }),
    line("Order success", (w) => w.orders.success, share((w) => w.orders.confirmed, (w) => w.orders.confirmed + w.orders.cancelled)),
    line("Payment success", (w) => w.payments.success, share((w) => w.payments.captured, (w) => w.payments.captured + w.payments.declined)),
    line("Conversion", (w) => w.conversion.rate, "shoppers with something held who ordered in the same window"),
    bars("Holds granted and refused", (w) => w.holds.granted, (w) => w.holds.refused,
      `${share((w) => w.holds.refused, (w) => w.holds.granted + w.holds.refused)} refused`),
    bars("Carts abandoned", (w) => w.carts.abandoned, null, `${sum((w) => w.carts.abandoned)}`),
  ];
}

function chart({ title, says, bars, line }, windows, starts) {
  const picture = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH + FOOT}`, role: "img", "aria-label": `${title}: ${says}` });
  const step = WIDE / windows.length;
  const values = windows.map((window) => (window ? (bars ?? [line]).map((of) => of(window)) : bars ? [0] : [null]));
  const most = line ? 1 : Math.max(1, ...values.map((each) => each.reduce((all, value) => all + value, 0)));
  const top = (value) => HIGH - (value / most) * (HIGH - 14);
  picture.append(draw("line", { class: "axis", x1: 0, x2: WIDE, y1: HIGH, y2: HIGH }));
  picture.append(draw("text", { x: 0, y: 10 }, line ? "100 %" : plain(most)));
  picture.append(draw("text", { x: 0, y: HIGH + 13 }, label(starts[0])));
  picture.append(draw("text", { x: WIDE, y: HIGH + 13, "text-anchor": "end" }, label(starts.at(-1))));
  if (line) {
    const points = values.flatMap(([value], place) => (value === null ? [] : [[(place + 0.5) * step, top(value), place]]));
    picture.append(draw("polyline", { class: "line", points: points.map(([x, y]) => `${x},${y}`).join(" ") }));
    for (const [x, y, place] of points) picture.append(draw("circle", { class: "dot", cx: x, cy: y, r: 3 }, tip(starts[place], percent(values[place][0]))));
  } else {
    values.forEach((each, place) => {
      let below = 0;
      each.forEach((value, kind) => {
        if (!value) return;
        const [y, height] = [top(below + value), top(below) - top(below + value)];
        const shape = { class: kind ? "column second" : "column", x: place * step + step * 0.1, y, width: step * 0.8, height };
        picture.append(draw("rect", shape, tip(starts[place], each.map(plain).join(" and "))));
        below += value;
      });
    });
  }
  return make("section", { class: "chart" }, make("h2", {}, title), make("p", {}, says), picture);
}

const tip = (start, text) => draw("title", {}, `${label(start)}: ${text}`);
const label = (start) => new Date(start).toISOString().slice(5, 16).replace("T", " ");

async function load() {
  const by = part("by").value;
  const last = Math.floor(Date.now() / LENGTH[by]) * LENGTH[by];
  const starts = Array.from({ length: SHOWN[by] }, (_, place) => last - (SHOWN[by] - 1 - place) * LENGTH[by]);
  const query = new URLSearchParams({ by, from: new Date(starts[0]).toISOString(), limit: 100 });
  const answer = await fetch(`/v1/analytics/all?${query}`, { headers: { Authorization: `Bearer ${part("token").value.trim()}` } });
  const body = await answer.json();
  if (!answer.ok) return say(part("says"), `${body.title}. ${body.detail ?? ""}`);
  const found = new Map(body.items.map((item) => [Date.parse(item.start), item]));
  const windows = starts.map((start) => found.get(start) ?? null);
  sessionStorage.setItem(SAVED, part("token").value.trim());
  part("charts").replaceChildren(...charts(windows).map((each) => chart(each, windows, starts)));
  say(part("says"), found.size ? "" : "Nothing has happened in this time.");
  return undefined;
}

async function show() {
  try {
    if (part("token").value) await load();
    else say(part("says"), "A token is needed. In the local shop: holdfast token --role support");
  } catch {
    say(part("says"), "Out of reach. Trying again.");
  }
}

part("token").value = sessionStorage.getItem(SAVED) ?? "";
part("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  show();
});
part("by").addEventListener("change", show);
setInterval(() => document.hidden || !part("token").value || show(), AGAIN);
show();
