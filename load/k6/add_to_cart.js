// k6 script: shoppers of a running Holdfast shop, who open a WebSocket, add and remove, and time the outcomes.
//
//     eval "$(.venv/bin/holdfast env)"
//     k6 run -e HOLDFAST_HTTP_URL=$HOLDFAST_HTTP_URL -e SHOPPERS=50 -e RATE=50 -e SECONDS=10 load/k6/add_to_cart.js
// RATE is changes per second over all shoppers. Each frame has an intended send time, from which its latency counts.

import http from 'k6/http';
import { check } from 'k6';
import { WebSocket } from 'k6/websockets';
import { Counter, Trend } from 'k6/metrics';

const URL = __ENV.HOLDFAST_HTTP_URL;
if (!URL) {
  throw new Error('HOLDFAST_HTTP_URL is not set: run `eval "$(holdfast env)"`, then pass -e HOLDFAST_HTTP_URL=$HOLDFAST_HTTP_URL');
}
const SHOPPERS = Number(__ENV.SHOPPERS || 20);
const RATE = Number(__ENV.RATE || 20);
const SECONDS = Number(__ENV.SECONDS || 10);
const ANSWER_SECONDS = 10;
const LINES = 3;

const latency = new Trend('holdfast_outcome_ms', true);
const outcomes = new Counter('holdfast_outcomes');
const lost = new Counter('holdfast_lost');

export const options = {
  scenarios: {
    shoppers: {
      executor: 'per-vu-iterations',
      vus: SHOPPERS,
      iterations: 1,
      maxDuration: `${SECONDS + 3 * ANSWER_SECONDS}s`,
    },
  },
  thresholds: { holdfast_lost: ['count==0'], checks: ['rate==1'] },
  summaryTrendStats: ['p(50)', 'p(90)', 'p(99)', 'max', 'count'],
};

export function setup() {
  const page = http.get(`${URL}/v1/products?limit=100&available_min=1`).json();
  const products = page.items.map((item) => item.code);
  if (!products.length) throw new Error('no product has units available');
  return { products };
}

export default function ({ products }) {
  const guest = http.post(`${URL}/v1/guests`);
  check(guest, { 'a guest is created': (answer) => answer.status === 201 });
  const socket = new WebSocket(`${URL.replace(/^http/, 'ws')}/v1/stream`, 'holdfast.v1', {
    headers: { Authorization: `Bearer ${guest.json('token')}` },
  });
  const due = new Map(); // request id -> intended send time
  const cart = [];
  const between = (1000 * SHOPPERS) / RATE;
  let begun = 0;
  let said = 0;

  function say() {
    const now = Date.now();
    // Send every frame that is due, also if this timer fired late.
    for (; begun + said * between <= now && said * between < SECONDS * 1000; said += 1) {
      const id = `k6-${__VU}-${begun}-${said}`;
      due.set(id, begun + said * between);
      if (cart.length < LINES) {
        cart.push(products[Math.floor(Math.random() * products.length)]);
        socket.send(JSON.stringify({ id, type: 'add', product: cart[cart.length - 1], quantity: 1 }));
      } else {
        socket.send(JSON.stringify({ id, type: 'remove', product: cart.shift() }));
      }
    }
    if (said * between < SECONDS * 1000) {
      setTimeout(say, Math.max(1, begun + said * between - Date.now()));
    } else {
      setTimeout(leave, 50);
    }
  }

  function leave() {
    if (due.size && Date.now() < begun + (SECONDS + ANSWER_SECONDS) * 1000) {
      setTimeout(leave, 50);
      return;
    }
    lost.add(due.size);
    due.clear();
    socket.send(JSON.stringify({ id: `k6-${__VU}-${begun}-clear`, type: 'clear' }));
    setTimeout(() => socket.close(), 500);
  }

  socket.addEventListener('message', (message) => {
    const frame = JSON.parse(message.data);
    if (frame.type === 'cart' && !begun) {
      begun = Date.now() + Math.random() * between; // so that shoppers do not all send at once
      setTimeout(say, Math.max(1, begun - Date.now()));
    }
    if (['held', 'refused', 'removed', 'error'].includes(frame.type) && due.has(frame.id)) {
      latency.add(Date.now() - due.get(frame.id));
      outcomes.add(1, { outcome: frame.type });
      due.delete(frame.id);
    }
  });
  socket.addEventListener('error', (event) => check(event, { 'the connection stays open': () => false }));
  socket.addEventListener('close', () => lost.add(due.size));
}
