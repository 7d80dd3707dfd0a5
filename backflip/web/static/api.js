// The server: JSON in and out, the token against forged requests, errors with their one sentence.

const PATIENCE_MS = 20_000;

export class Refused extends Error {
  // `status` 0: the server was not reached.
  constructor(status, sentence, wait_s = 0) {
    super(sentence);
    this.status = status;
    this.wait_s = wait_s;
  }

  // Whether the same request may succeed later.
  get passing() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

let known;

export function me() {
  known ??= get("/api/me").catch((error) => {
    known = undefined;
    throw error;
  });
  return known;
}

export async function reach(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", redirect: "error", ...options });
  } catch {
    throw new Refused(0, "The server cannot be reached.");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  const sentence = typeof told.error === "string" ? told.error : `The server answered ${response.status}.`;
  throw new Refused(response.status, sentence, Number(response.headers.get("retry-after")) || 0);
}

async function json(path, options) {
  const response = await reach(path, { signal: AbortSignal.timeout(PATIENCE_MS), ...options });
  try {
    return await response.json();
  } catch {
    throw new Refused(0, "The server's answer broke off.");
  }
}

export function get(path) {
  return json(path, { cache: "no-store" });
}

export async function posting(body) {
  const { csrf } = await me();
  const headers = { "content-type": "application/json", "x-csrf-token": csrf };
  return { method: "POST", headers, body: JSON.stringify(body) };
}

export async function post(path, body) {
  try {
    return await json(path, await posting(body));
  } catch (error) {
    if (error.status !== 403) throw error;
    known = undefined; // the token may be an old one: ask once for the new one
    return json(path, await posting(body));
  }
}

export function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const b = crypto.getRandomValues(new Uint8Array(16));
  b[6] = (b[6] & 0x0f) | 0x40;
  b[8] = (b[8] & 0x3f) | 0x80;
  const hex = Array.from(b, (x) => x.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
