// The ranking page: all answers to one request, put in order by number keys, clicks or dragging.

import { get, uuid } from "./api.js";
import { begin } from "./page.js";
import { make, show, turnsOf } from "./text.js";

const AGAIN_MS = 3000;

const $ = (id) => document.getElementById(id);
let outbox = null;
let queue = [];
let current = null;
let shownAt = 0;
let order = []; // [{ n: place of the answer on the page from 0, equal: whether it is equal to the one before }]
let equal = false;

const placed = (n) => order.findIndex((one) => one.n === n);

// The order as places, each a list of samples that are equal.
function places() {
  const out = [];
  for (const { n, equal: same } of order) {
    if (same && out.length) out.at(-1).push(current.answers[n].sample);
    else out.push([current.answers[n].sample]);
  }
  return out;
}

function tell() {
  let place = 0;
  const of = new Map(order.map(({ n, equal: same }, i) => [n, same ? place : (place = i + 1)]));
  current.answers.forEach((_, n) => {
    const card = $(`answer-${n}`);
    card.classList.toggle("placed", of.has(n));
    card.querySelector(".place").textContent = of.has(n) ? (of.get(n) === 1 ? "best" : `place ${of.get(n)}`) : "";
    card.querySelector("button").setAttribute("aria-pressed", of.has(n));
  });
  const chips = order.map(({ n, equal: same }, i) => {
    const button = make("button", { type: "button", text: String(n + 1), "data-at": i, "aria-label": `Answer ${n + 1}, place ${of.get(n)}. Left and right arrow move it.` });
    return make("li", {}, ...(i ? [make("span", { text: same ? "=" : "›", "aria-hidden": "true" })] : []), button);
  });
  $("order").replaceChildren(...chips);
  equal = equal && order.length > 0;
  $("equal").setAttribute("aria-pressed", equal);
  $("equal").disabled = !order.length || order.length === current.answers.length;
  $("back").disabled = !order.length;
  $("send").disabled = order.length < current.answers.length;
}

function put(n) {
  if (!current || n < 0 || n >= current.answers.length || placed(n) >= 0) return;
  order.push({ n, equal: equal && order.length > 0 });
  equal = false;
  const left = current.answers.map((_, i) => i).filter((i) => placed(i) < 0);
  if (left.length === 1) order.push({ n: left[0], equal: false }); // the last one is where it must be
  tell();
}

function move(from, to) {
  if (to < 0 || to >= order.length || from === to) return;
  const [one] = order.splice(from, 1);
  order.splice(to, 0, { ...one, equal: false });
  order[0].equal = false;
  tell();
}

function back() {
  order.pop();
  tell();
}

function turnEqual() {
  if (order.length) equal = !equal;
  tell();
}

function send() {
  if (!current || order.length < current.answers.length) return;
  outbox.put("/api/rankings", {
    key: uuid(), ranking: current.ranking, order: places(), latency_s: Math.max(0, performance.now() - shownAt) / 1000,
  });
  display(queue.shift() ?? null);
  fetchNext();
}

function display(ranking) {
  current = ranking;
  $("ranking").hidden = !ranking;
  $("empty").hidden = Boolean(ranking);
  if (!ranking) return;
  order = [];
  equal = false;
  $("prompt").replaceChildren(turnsOf(ranking.prompt));
  $("answers").replaceChildren(...ranking.answers.map((answer, n) => {
    const button = make("button", { type: "button", text: `Answer ${n + 1}`, "aria-keyshortcuts": String(n + 1), "aria-pressed": "false" });
    const head = make("div", { class: "head" }, button, make("span", { class: "place" }));
    const text = make("div", { class: "text", dir: "auto", text: answer.text, tabindex: "0", role: "region", "aria-label": `Answer ${n + 1}` });
    const card = make("article", { class: "card", id: `answer-${n}`, "aria-label": `Answer ${n + 1}` }, head, text);
    card.addEventListener("click", () => getSelection().isCollapsed && put(n));
    return make("li", {}, card);
  }));
  tell();
  scrollTo(0, 0);
  requestAnimationFrame(() => (shownAt = performance.now()));
}

async function fetchNext() {
  let wait = false;
  try {
    const sent = outbox.entries().map((entry) => entry.body.ranking).filter(Boolean);
    const held = [...[...queue, ...(current ? [current] : [])].map((one) => one.ranking), ...sent];
    const told = await get(`/api/rankings?count=2&after=${encodeURIComponent(held.join(","))}`);
    queue.push(...told.rankings.filter((one) => !held.includes(one.ranking)));
    if (!current) {
      if (queue.length) display(queue.shift());
      else show($("empty"), told.waiting || "There is nothing to rank now. This page goes on by itself when there is.");
    }
    $("empty").hidden = Boolean(current);
    wait = !current;
  } catch (error) {
    wait = error.status !== 401;
    if (!current) {
      $("empty").hidden = false;
      show($("empty"), `${error.message} Trying again …`);
    }
  }
  if (wait) setTimeout(fetchNext, AGAIN_MS);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !current) return;
  const at = Number(event.target.dataset?.at ?? -1);
  if (at >= 0 && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    const to = at + (event.key === "ArrowLeft" ? -1 : 1);
    move(at, to);
    document.querySelector(`[data-at="${Math.max(0, Math.min(to, order.length - 1))}"]`)?.focus();
  } else if (/^[1-9]$/.test(event.key)) put(Number(event.key) - 1);
  else if (event.key === "t" || event.key === "=") turnEqual();
  else if (event.key === "Backspace" || event.key === "z") back();
  else if (event.key === "Enter" && !event.target.closest("button")) send();
  else return;
  event.preventDefault();
}

// Dragging by pointer, so that it works with a finger too.
function drag(event) {
  const chip = event.target.closest("[data-at]");
  if (!chip) return;
  let from = Number(chip.dataset.at);
  chip.parentNode.classList.add("dragged");
  const over = (moved) => {
    const target = document.elementFromPoint(moved.clientX, moved.clientY)?.closest("[data-at]");
    if (!target || Number(target.dataset.at) === from) return;
    const to = Number(target.dataset.at);
    move(from, to);
    from = to;
    document.querySelector(`[data-at="${to}"]`).parentNode.classList.add("dragged");
  };
  const end = () => {
    removeEventListener("pointermove", over);
    for (const one of document.querySelectorAll(".dragged")) one.classList.remove("dragged");
  };
  addEventListener("pointermove", over);
  addEventListener("pointerup", end, { once: true });
  addEventListener("pointercancel", end, { once: true });
  event.preventDefault();
}

begin((who, box) => {
  outbox = box;
  document.addEventListener("keydown", onKey);
  $("order").addEventListener("pointerdown", drag);
  $("equal").addEventListener("click", turnEqual);
  $("back").addEventListener("click", back);
  $("send").addEventListener("click", send);
  fetchNext();
});
