// What was judged and is not yet acknowledged: kept in the browser's storage, sent in order, again and again under the
// same key until the server has it. Each entry has a storage key of its own, so that two tabs never overwrite another.

import { post } from "./api.js";

const FIRST_WAIT_S = 1;
const LONGEST_WAIT_S = 20;

export class Outbox {
  // `changed(outbox)` is called after every change.
  constructor(rater, changed) {
    this.prefix = `backflip:${rater}:`;
    this.changed = changed;
    this.failed = ""; // why the last attempt failed
    this.refused = ""; // why the server will never take the last one it refused
    this.sent = 0;
    this.wait_s = FIRST_WAIT_S;
    this.unkept = new Map(); // where the browser keeps nothing
    this.last = 0;
    this.sending = false;
    addEventListener("online", () => this.hurry());
    addEventListener("storage", () => this.changed(this));
    document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
  }

  keys() {
    const kept = Object.keys(localStorage).filter((key) => key.startsWith(this.prefix));
    return [...kept, ...this.unkept.keys()].sort();
  }

  entries() {
    return this.keys().map((key) => this.read(key)).filter(Boolean);
  }

  get size() {
    return this.keys().length;
  }

  read(key) {
    if (this.unkept.has(key)) return this.unkept.get(key);
    try {
      return JSON.parse(localStorage.getItem(key));
    } catch {
      return null;
    }
  }

  put(path, body) {
    this.last = Math.max(this.last + 1, Date.now() * 100); // ascending also within a millisecond
    const key = `${this.prefix}${String(this.last).padStart(18, "0")}:${body.key}`;
    try {
      localStorage.setItem(key, JSON.stringify({ path, body }));
    } catch {
      this.unkept.set(key, { path, body });
    }
    this.refused = "";
    this.changed(this);
    this.send();
  }

  drop(key) {
    this.unkept.delete(key);
    localStorage.removeItem(key);
  }

  hurry() {
    clearTimeout(this.timer);
    this.wait_s = FIRST_WAIT_S;
    this.send();
  }

  async send() {
    if (this.sending) return;
    this.sending = true;
    clearTimeout(this.timer);
    try {
      for (let [key] = this.keys(); key; [key] = this.keys()) {
        if (!(await this.one(key))) return;
      }
    } finally {
      this.sending = false;
    }
  }

  // Send one entry; false when it has to wait.
  async one(key) {
    const entry = this.read(key);
    try {
      if (entry) await post(entry.path, entry.body);
      this.sent += 1;
      this.drop(key);
    } catch (error) {
      if (error.passing || error.status === 401 || error.status === 403) {
        this.failed = error.passing ? "unreached" : "uninvited";
        const wait_s = Math.max(error.wait_s ?? 0, this.wait_s * (0.75 + Math.random() / 2));
        this.wait_s = Math.min(LONGEST_WAIT_S, this.wait_s * 2);
        this.timer = setTimeout(() => this.send(), 1000 * wait_s);
        this.changed(this);
        return false;
      }
      this.drop(key);
      this.refused = error.message;
    }
    this.failed = "";
    this.wait_s = FIRST_WAIT_S;
    this.changed(this);
    return true;
  }
}

// Tell the state of an outbox in one calm line. Quick sends pass unnoticed.
export function telling(place) {
  let timer;
  const say = (text, waits) => {
    if (place.textContent !== text) place.textContent = text;
    place.classList.toggle("waits", waits);
  };
  const votes = (n) => (n === 1 ? "1 vote" : `${n} votes`);
  return (outbox) => {
    clearTimeout(timer);
    const n = outbox.size;
    place.dataset.waiting = n;
    if (n && outbox.failed === "uninvited") {
      say(`You are signed out: ${votes(n)} are kept here until you come back by a link of yours.`, true);
    } else if (n && outbox.failed) {
      const kept = outbox.unkept.size ? " Do not close this page: this browser keeps nothing." : "";
      say(`${votes(n)} waiting for the connection.${kept}`, true);
    } else if (n) {
      timer = setTimeout(() => say(`Saving ${votes(outbox.size)} …`, false), 800);
    } else if (outbox.refused) {
      say(`Not taken: ${outbox.refused}`, true);
    } else if (outbox.sent) {
      say("Saved", false);
    }
  };
}
