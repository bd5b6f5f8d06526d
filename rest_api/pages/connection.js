/**
 * Keeps one WebSocket to the shop open: renews the session, reconnects, and tests whether the connection is alive.
 *
 * The session is an HttpOnly cookie that `POST /v1/guests` sets or renews; no script ever holds a token. Browsers do not
 * report to a page why a socket was refused, so after a socket that never opened the session is renewed first. They do
 * not report dead connections either, so a quiet connection is probed with a small request.
 */

import { SUBPROTOCOL } from "./client.js";

// All in milliseconds.
const FIRST_WAIT = 500;
const MAX_WAIT = 30_000;
const BUSY_WAIT = 5_000;
const STABLE_AFTER = 5_000; // a connection that was open for so long resets the count of failures
const PROBE_AFTER = 25_000; // without a frame
const TIMEOUT = 8_000; // for the response to a probe, for a socket to open, for a guest request

// Close codes.
const BUSY = new Set([1013, 4410, 4429]);
const FINAL = new Set([1003, 1007, 1009, 4400, 4403]);

/**
 * Decide what to do after a close: `{wait, guest}`, or null not to reconnect automatically. `wait` is in milliseconds;
 * `guest` says whether to renew the session first. `failures` counts consecutive failures; `chance` is in [0, 1).
 */
export function afterClose(code, reason, failures, chance) {
  if (FINAL.has(code)) return null;
  if (code === 4401) return { wait: chance * backoff(failures), guest: true };
  if (!BUSY.has(code)) return { wait: chance * backoff(failures), guest: false };
  const match = /retry_after=(\d+(?:\.\d+)?)/.exec(reason);
  return { wait: match ? 1000 * Number(match[1]) : BUSY_WAIT + chance * BUSY_WAIT, guest: false };
}

function backoff(failures) {
  return Math.min(MAX_WAIT, FIRST_WAIT * 2 ** failures);
}

export class Connection {
  state = "connecting"; // "connecting", "open", "waiting" until `retryAt`, "stopped"
  retryAt = null; // milliseconds of performance.now()
  #client;
  #onChange;
  #socket = null;
  #renewSession = true; // before the next socket
  #attempt = 0; // identifies the current attempt, so that late responses of earlier ones are ignored
  #failures = 0;
  #deadline = null; // when the current step times out
  #welcomedAt = null;
  #lastFrameAt = 0;
  #probing = false;

  /** `onChange()` is called after every change that may affect the display. */
  constructor(client, onChange) {
    this.#client = client;
    this.#onChange = onChange;
  }

  /** Connect now, without waiting any longer. */
  async connect() {
    const attempt = ++this.#attempt;
    this.#drop();
    this.state = "connecting";
    this.retryAt = null;
    this.#onChange();
    if (this.#renewSession) {
      const wait = await renewSession();
      if (attempt !== this.#attempt) return;
      if (wait !== null) return this.#retry(wait || Math.random() * backoff(this.#failures));
      this.#renewSession = false;
    }
    this.#deadline = performance.now() + TIMEOUT;
    this.#open();
  }

  /** Send the client's queued frames. */
  flush() {
    for (const frame of this.#client.takeFrames()) this.#socket?.send(JSON.stringify(frame));
  }

  /** Reconnect, time out or probe, whichever is due. Call this regularly. */
  tick(now) {
    this.#client.tick(now);
    if (this.state === "waiting" && now >= this.retryAt) this.connect();
    else if (this.#deadline !== null && now >= this.#deadline) this.#handleClose(1006, "");
    else if (this.state === "open" && now - this.#lastFrameAt >= PROBE_AFTER) this.check(now);
  }

  /** Test the connection soon, after a hint that it may have been lost or restored. */
  check(now) {
    if (this.state === "waiting") this.connect();
    if (this.state !== "open" || this.#probing) return;
    this.#probing = true;
    this.#deadline = now + TIMEOUT;
    this.#client.probe();
    this.flush();
  }

  #open() {
    const socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/v1/stream`, SUBPROTOCOL);
    this.#socket = socket;
    socket.onmessage = ({ data }) => socket === this.#socket && this.#receive(JSON.parse(data));
    socket.onclose = ({ code, reason }) => socket === this.#socket && this.#handleClose(code, reason);
  }

  #receive(frame) {
    const now = performance.now();
    this.#lastFrameAt = now;
    this.#deadline = null;
    this.#probing = false;
    if (frame.type === "welcome") {
      this.state = "open";
      this.#welcomedAt = now;
    }
    this.#client.receive(frame, now);
    this.flush();
    this.#onChange();
  }

  #handleClose(code, reason) {
    const welcomed = this.#welcomedAt;
    this.#drop();
    if (welcomed === null) this.#renewSession = true; // perhaps refused because the cookie is missing or invalid
    else if (performance.now() - welcomed >= STABLE_AFTER) this.#failures = 0;
    const next = afterClose(code, reason, this.#failures, Math.random());
    if (next) {
      this.#renewSession ||= next.guest;
      return this.#retry(next.wait);
    }
    this.state = "stopped";
    this.#onChange();
  }

  #retry(wait) {
    this.#failures += 1;
    this.#deadline = null;
    this.state = "waiting";
    this.retryAt = performance.now() + wait;
    this.#onChange();
  }

  #drop() {
    const socket = this.#socket;
    this.#socket = this.#deadline = this.#welcomedAt = null;
    this.#probing = false;
    this.#client.handleDisconnect();
    socket?.close();
  }
}

/**
 * Get or renew the session cookie. Return null on success, else the milliseconds to wait (0 if the server named none).
 * Pages that open at the same time take turns, so that they become one guest and not two.
 */
async function renewSession() {
  const post = () => fetch("/v1/guests", { method: "POST", signal: AbortSignal.timeout(TIMEOUT) });
  try {
    const response = await (navigator.locks ? navigator.locks.request("holdfast.guest", post) : post());
    // 403: the cookie is an account's, which needs no renewal here.
    return response.ok || response.status === 403 ? null : 1000 * (Number(response.headers.get("Retry-After")) || 0);
  } catch {
    return 0;
  }
}
