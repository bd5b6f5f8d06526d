/**
 * Keeps one socket to the shop open: who we are, when to try again, whether the line still carries.
 *
 * The session is an HttpOnly cookie that `POST /v1/guests` gives or renews; no script ever holds a token. The browser
 * does not tell a page why a socket was refused, nor that a line has gone silent, so: after a socket that never opened
 * we ask who we are first, and a quiet line is asked for something small now and then.
 */

import { SUBPROTOCOL } from "./client.js";

const FIRST_WAIT = 500;
const LONGEST_WAIT = 30_000;
const BUSY_WAIT = 5_000;
const STABLE = 5_000; // a line that held so long starts counting its failures anew
const QUIET = 25_000;
const PATIENCE = 8_000; // for an answer to a probe, for a socket to open, for a guest call

const BUSY = new Set([1013, 4410, 4429]);
const FINAL = new Set([1003, 1007, 1009, 4400, 4403]);

/**
 * What to do after a close: `{wait, guest}`, milliseconds and whether to ask who we are first; null: not by itself.
 * `failures` counts earlier attempts in a row; `chance` is in [0, 1).
 */
export function afterClose(code, reason, failures, chance) {
  if (FINAL.has(code)) return null;
  if (code === 4401) return { wait: chance * backoff(failures), guest: true };
  if (!BUSY.has(code)) return { wait: chance * backoff(failures), guest: false };
  const told = /retry_after=(\d+(?:\.\d+)?)/.exec(reason);
  return { wait: told ? 1000 * Number(told[1]) : BUSY_WAIT + chance * BUSY_WAIT, guest: false };
}

function backoff(failures) {
  return Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** failures);
}

export class Connection {
  state = "connecting"; // "connecting", "open", "waiting" until `retryAt`, "stopped"
  retryAt = null; // milliseconds of performance.now()
  #client;
  #changed;
  #socket = null;
  #guest = true; // ask who we are before the next socket
  #attempt = 0; // tells a late answer from the one we wait for
  #failures = 0;
  #deadline = null; // when the present step has taken too long
  #welcomedAt = null;
  #heardAt = 0;
  #probed = false;

  /** `changed()` is called after anything that the page may want to show. */
  constructor(client, changed) {
    this.#client = client;
    this.#changed = changed;
  }

  /** Connect now, whatever we were waiting for. */
  async connect() {
    const attempt = ++this.#attempt;
    this.#drop();
    this.state = "connecting";
    this.retryAt = null;
    this.#changed();
    if (this.#guest) {
      const wait = await introduce();
      if (attempt !== this.#attempt) return;
      if (wait !== null) return this.#retry(wait || Math.random() * backoff(this.#failures));
      this.#guest = false;
    }
    this.#deadline = performance.now() + PATIENCE;
    this.#open();
  }

  /** Send what the client has to say. */
  flush() {
    for (const frame of this.#client.takeFrames()) this.#socket?.send(JSON.stringify(frame));
  }

  /** Time has passed. */
  tick(now) {
    this.#client.tick(now);
    if (this.state === "waiting" && now >= this.retryAt) this.connect();
    else if (this.#deadline !== null && now >= this.#deadline) this.#lost(1006, "");
    else if (this.state === "open" && now - this.#heardAt >= QUIET) this.check(now);
  }

  /** Something hints that the line may be cut, or whole again: find out soon. */
  check(now) {
    if (this.state === "waiting") this.connect();
    if (this.state !== "open" || this.#probed) return;
    this.#probed = true;
    this.#deadline = now + PATIENCE;
    this.#client.probe();
    this.flush();
  }

  #open() {
    const socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/v1/stream`, SUBPROTOCOL);
    this.#socket = socket;
    socket.onmessage = ({ data }) => socket === this.#socket && this.#heard(JSON.parse(data));
    socket.onclose = ({ code, reason }) => socket === this.#socket && this.#lost(code, reason);
  }

  #heard(frame) {
    const now = performance.now();
    this.#heardAt = now;
    this.#deadline = null;
    this.#probed = false;
    if (frame.type === "welcome") {
      this.state = "open";
      this.#welcomedAt = now;
    }
    this.#client.receive(frame, now);
    this.flush();
    this.#changed();
  }

  #lost(code, reason) {
    const welcomed = this.#welcomedAt;
    this.#drop();
    if (welcomed === null) this.#guest = true; // perhaps refused for want of a good cookie
    else if (performance.now() - welcomed >= STABLE) this.#failures = 0;
    const next = afterClose(code, reason, this.#failures, Math.random());
    if (next) {
      this.#guest ||= next.guest;
      return this.#retry(next.wait);
    }
    this.state = "stopped";
    this.#changed();
  }

  #retry(wait) {
    this.#failures += 1;
    this.#deadline = null;
    this.state = "waiting";
    this.retryAt = performance.now() + wait;
    this.#changed();
  }

  #drop() {
    const socket = this.#socket;
    this.#socket = this.#deadline = this.#welcomedAt = null;
    this.#probed = false;
    this.#client.closed();
    socket?.close();
  }
}

/**
 * Get or renew the session cookie. Null when we have it; else for how long to wait, in milliseconds, 0 when not told.
 * Pages that open together take turns, so that they become one guest and not two.
 */
async function introduce() {
  const ask = () => fetch("/v1/guests", { method: "POST", signal: AbortSignal.timeout(PATIENCE) });
  try {
    const answer = await (navigator.locks ? navigator.locks.request("holdfast.guest", ask) : ask());
    return answer.ok ? null : 1000 * (Number(answer.headers.get("Retry-After")) || 0);
  } catch {
    return 0;
  }
}
