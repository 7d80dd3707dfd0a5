// The rating page: one key a vote, the next pair at once, everything kept until the server has it.

import { uuid } from "./api.js";
import { Together } from "./clips.js";
import { openGuidelines, seen } from "./guidelines.js";
import { begin } from "./page.js";
import { idOf, Pairs } from "./pairs.js";
import { show } from "./text.js";

const KEYS = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", t: "tie", u: "skip", b: "bad" };
const WORDS = { left: "Left is better", right: "Right is better", tie: "Equal", skip: "Cannot tell", bad: "Both bad" };
const MOST_UNDONE = 5;

const $ = (id) => document.getElementById(id);
const mine = {}; // who rates, the outbox, the pairs to come
let current = null;
let shownAt = 0;
let clips = null;
let guidelines = { version: 0, text: "" };
let progress = { mine: 0, done: 0, wanted: 0 };

const past = {
  key: "",
  read: () => JSON.parse(sessionStorage.getItem(past.key) ?? "[]"),
  write(votes) {
    try {
      sessionStorage.setItem(past.key, JSON.stringify(votes.slice(-MOST_UNDONE)));
    } catch {
      sessionStorage.removeItem(past.key); // long answers: an undo is then forgotten by a reload, never a vote
    }
    $("undo").disabled = !votes.length;
  },
};

function display(pair) {
  current = pair;
  clips?.stop();
  clips = null;
  $("pair").hidden = !pair;
  $("empty").hidden = Boolean(pair);
  if (!pair) return;
  $("prompt").replaceChildren(pair.nodes.prompt);
  for (const side of ["left", "right"]) {
    $(`${side}-text`).replaceChildren(pair.nodes[side]);
    $(`${side}-text`).hidden = Boolean(pair.clips) && !pair[side].text;
    $(`${side}-text`).dir = "auto";
    $(`${side}-text`).scrollTop = 0;
    $(`${side}-clip`).hidden = !pair.clips;
    $(`${side}-clip`).replaceChildren(...(pair.clips ? [pair.clips[side].element] : []));
  }
  $("playing").hidden = !pair.clips;
  if (pair.clips) {
    clips = new Together([pair.clips.left, pair.clips.right]);
    clips.start();
  }
  $("prompt").scrollTop = 0;
  $("strength").hidden = !pair.strength;
  for (const radio of document.querySelectorAll("[name=strength]")) radio.checked = false;
  $("reason").value = "";
  shownAt = performance.now();
  requestAnimationFrame(() => {
    if (current === pair) shownAt = performance.now(); // when it is first painted
  });
}

function tellProgress() {
  const { done, wanted } = progress;
  $("progress").max = Math.max(1, wanted);
  $("progress").value = Math.min(done, wanted);
  $("progress-text").textContent = wanted
    ? `${done} of ${wanted} votes, ${progress.mine} yours`
    : `${progress.mine} votes of yours`;
}

function vote(choice) {
  if (!current) return;
  const key = uuid();
  const strength = Number(document.querySelector("[name=strength]:checked")?.value) || undefined;
  const body = {
    key, pair: current.pair, repeat: current.repeat, choice, strength, reason: $("reason").value.trim() || undefined,
    latency_s: Math.max(0, performance.now() - shownAt) / 1000, guidelines: guidelines.version,
  };
  const pair = Pairs.plain(current);
  const next = mine.pairs.take();
  display(next);
  mine.outbox.put("/api/votes", body);
  past.write([...past.read(), { key, pair }]);
  count(1);
  $("said").textContent = `${WORDS[choice]}. ${next ? `Next request: ${lastOf(next).slice(0, 200)}` : "No pair is left."}`;
}

const lastOf = (pair) => pair.prompt.at(-1)?.content ?? "";

function count(by) {
  progress = { ...progress, mine: Math.max(0, progress.mine + by), done: Math.max(0, progress.done + by) };
  tellProgress();
}

function undo() {
  const votes = past.read();
  const last = votes.pop();
  if (!last) return;
  mine.outbox.put(`/api/votes/${last.key}/retract`, { key: uuid() });
  if (current) mine.pairs.giveBack(Pairs.plain(current));
  mine.pairs.giveBack(last.pair);
  display(mine.pairs.queue.shift());
  past.write(votes);
  count(-1);
  $("said").textContent = "Undone. The pair is here again.";
}

function flag(which) {
  const reason = $("flag-reason").value.trim();
  for (const side of which === "both" ? ["left", "right"] : [which]) {
    mine.outbox.put("/api/flags", { key: uuid(), sample: current[side].sample, reason });
  }
  $("flag-dialog").close();
  $("said").textContent = "Flagged as harmful. Your vote is still to come.";
}

function openFlag() {
  if (!current) return;
  $("flag-reason").value = "";
  $("flag-dialog").showModal();
  document.querySelector("[data-flag]").focus();
}

function nextStrength() {
  const radios = [...document.querySelectorAll("[name=strength]")];
  if (!current?.strength) return;
  const at = radios.findIndex((radio) => radio.checked);
  for (const radio of radios) radio.checked = false;
  if (at + 1 < radios.length) radios[at + 1].checked = true;
  $("said").textContent = at + 1 < radios.length ? `Strength: ${radios[at + 1].parentNode.textContent.trim()}` : "No strength";
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const open = document.querySelector("dialog[open]");
  const field = event.target.closest?.("input, textarea, select");
  const typing = field && field.type !== "radio";
  if (typing) {
    if (!open && (key === "Escape" || key === "Enter")) field.blur();
    return;
  }
  if (open) {
    const which = { 1: "left", 2: "right", b: "both", ArrowLeft: "left", ArrowRight: "right" }[key];
    if (open.id !== "flag-dialog" || !which || event.repeat) return;
    flag(which);
  } else if (field && key.startsWith("Arrow")) {
    return; // the radios' own
  } else {
    const acts = { z: undo, g: () => openGuidelines(guidelines), h: openFlag, r: () => $("reason").focus(), s: nextStrength, p: () => clips?.toggle() };
    const act = KEYS[key] ? () => vote(KEYS[key]) : acts[key];
    if (!act || event.repeat) return;
    act();
  }
  event.preventDefault();
}

function arrived(told) {
  progress = told.progress;
  const unsent = mine.outbox.entries();
  const votes = unsent.filter((e) => e.path === "/api/votes").length - unsent.filter((e) => e.path.endsWith("/retract")).length;
  count(votes);
  if (told.guidelines && told.guidelines.version !== guidelines.version) {
    guidelines = told.guidelines;
    if (guidelines.text && !seen(guidelines)) openGuidelines(guidelines);
  }
  if (!current && mine.pairs.queue.length) display(mine.pairs.take());
  if (!current) show($("empty"), told.waiting || "No pair is left to judge. This page goes on by itself when there are new ones.");
  $("empty").hidden = Boolean(current);
}

function failed(error) {
  if (current) return;
  $("empty").hidden = false;
  show($("empty"), error.status === 401 ? "You are signed out. Open a link of yours to come back." : `${error.message} Trying again …`);
}

function listen() {
  document.addEventListener("keydown", onKey);
  for (const button of document.querySelectorAll("[data-choice]")) button.addEventListener("click", () => vote(button.dataset.choice));
  for (const button of document.querySelectorAll("[data-flag]")) button.addEventListener("click", () => flag(button.dataset.flag));
  for (const radio of document.querySelectorAll("[name=strength]")) {
    radio.addEventListener("click", (event) => event.detail && radio.blur()); // by pointer: the arrows vote again
  }
  $("undo").addEventListener("click", undo);
  $("flag").addEventListener("click", openFlag);
  $("pause").addEventListener("click", () => clips?.toggle());
  $("show-guidelines").addEventListener("click", () => openGuidelines(guidelines));
}

begin((who, outbox) => {
  past.key = `backflip:undo:${who.rater}`;
  mine.outbox = outbox;
  const pending = () => outbox.entries().map((entry) => entry.body.pair).filter(Boolean);
  mine.pairs = new Pairs({ held: () => [...(current ? [idOf(current)] : []), ...pending()], arrived, failed });
  listen();
  past.write(past.read());
  mine.pairs.refill();
});
