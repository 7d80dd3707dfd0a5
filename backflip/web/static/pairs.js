// The pairs that come next: fetched ahead and made ready, so that a vote never waits for the network.

import { get } from "./api.js";
import { clipOf } from "./clips.js";
import { fragmentOf, turnsOf } from "./text.js";

const KEEP = 6;
const FEWEST = 5;
const ASK_AGAIN_S = 3;
const LONGEST_IDLE_S = 8;
const LONGEST_WAIT_S = 20;

export const idOf = (pair) => pair.pair;

function ready(pair) {
  pair.nodes = { prompt: turnsOf(pair.prompt), left: fragmentOf(pair.left.text), right: fragmentOf(pair.right.text) };
  if (pair.left.clip && pair.right.clip) {
    pair.clips = { left: clipOf(pair.left, "The left clip"), right: clipOf(pair.right, "The right clip") };
  }
  return pair;
}

export class Pairs {
  // `held()` names the pairs that must not be offered again; `arrived(told)` hears of every answer of the server.
  constructor({ held, arrived, failed }) {
    Object.assign(this, { held, arrived, failed });
    this.queue = [];
    this.asking = false;
    this.wait_s = ASK_AGAIN_S;
    this.idle_s = ASK_AGAIN_S;
  }

  take() {
    const pair = this.queue.shift() ?? null;
    // A moment later: by then what was taken is on the page, and what was there is in the outbox.
    queueMicrotask(() => this.queue.length < FEWEST && this.refill());
    return pair;
  }

  giveBack(pair) {
    this.queue.unshift(ready({ ...pair }));
  }

  // What can be kept as JSON.
  static plain({ nodes, clips, ...pair }) {
    return pair;
  }

  async refill() {
    if (this.asking || this.queue.length >= KEEP) return;
    this.asking = true;
    clearTimeout(this.timer);
    let again_s = 0;
    try {
      const after = [...new Set([...this.held(), ...this.queue.map(idOf)])].join(",");
      const told = await get(`/api/pairs?count=${KEEP - this.queue.length}&after=${encodeURIComponent(after)}`);
      const known = new Set([...this.held(), ...this.queue.map(idOf)]); // a vote may have come meanwhile
      const fresh = told.pairs.filter((pair) => !known.has(pair.pair));
      this.queue.push(...fresh.map(ready));
      this.wait_s = ASK_AGAIN_S;
      again_s = fresh.length ? 0 : this.idle_s * (0.75 + Math.random() / 2);
      this.idle_s = fresh.length ? ASK_AGAIN_S : Math.min(LONGEST_IDLE_S, 1.3 * this.idle_s);
      this.arrived(told);
    } catch (error) {
      this.failed(error);
      again_s = Math.max(error.wait_s ?? 0, this.wait_s * (0.75 + Math.random() / 2));
      this.wait_s = Math.min(LONGEST_WAIT_S, 2 * this.wait_s);
    } finally {
      this.asking = false;
    }
    if (again_s) this.timer = setTimeout(() => this.refill(), 1000 * again_s);
    else if (this.queue.length < FEWEST) this.refill();
  }
}
