// The demonstration page: the answer one would have wanted. A draft stays in the browser until it is sent.

import { get, uuid } from "./api.js";
import { begin } from "./page.js";
import { show, turnsOf } from "./text.js";

const AGAIN_MS = 3000;
const DRAFT = "backflip:draft:";

const $ = (id) => document.getElementById(id);
let outbox = null;
let current = null;

function display(told) {
  current = told.prompt === null ? null : told;
  show($("use"), told.use);
  $("demonstration").hidden = !current;
  $("empty").hidden = Boolean(current);
  if (!current) {
    show($("empty"), "No request wants an answer now. This page goes on by itself when one does.");
    setTimeout(next, AGAIN_MS);
    return;
  }
  $("prompt").replaceChildren(turnsOf(current.messages));
  $("answer").value = localStorage.getItem(DRAFT + current.prompt) ?? "";
  $("answer").focus();
}

async function next() {
  try {
    display(await get(`/api/demonstration?after=${encodeURIComponent(current?.prompt ?? "")}`));
  } catch (error) {
    $("empty").hidden = false;
    show($("empty"), `${error.message} Trying again …`);
    setTimeout(next, AGAIN_MS);
  }
}

function send(event) {
  event?.preventDefault();
  const text = $("answer").value;
  if (!current || !text.trim()) return;
  outbox.put("/api/demonstrations", { key: uuid(), prompt: current.prompt, text });
  localStorage.removeItem(DRAFT + current.prompt);
  $("answer").value = "";
  next();
}

begin((who, box) => {
  outbox = box;
  $("demonstration").addEventListener("submit", send);
  $("other").addEventListener("click", next);
  $("answer").addEventListener("keydown", (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && send(event));
  $("answer").addEventListener("input", () => {
    try {
      localStorage.setItem(DRAFT + current.prompt, $("answer").value);
    } catch {
      // a browser that keeps nothing: the draft lives as long as the page
    }
  });
  next();
});
