// The chat page: answers stream in, each takes a thumb, "again" puts a second one beside the first.

import { posting, reach, uuid } from "./api.js";
import { begin } from "./page.js";
import { make, show } from "./text.js";

const THUMB = "M5 9v8H2V9zM5 9l4-7c1.6 0 2.5 1.2 2 3l-.8 3H16c1.2 0 2 1 1.7 2.2l-1.3 5.2c-.3 1-1 1.6-2 1.6H5z";
const NEAR_PX = 80;

const $ = (id) => document.getElementById(id);
let outbox = null;
let messages = []; // the talk so far, as the server takes it
let busy = null; // an AbortController while an answer streams
let last = null; // the newest reply: { row, answers: [{ sample, text, card, acts }] }

function thumb(up) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", THUMB);
  if (!up) path.setAttribute("transform", "rotate(180 10 10)");
  svg.append(path);
  return make("button", { type: "button", class: "quiet", "aria-pressed": "false", "aria-label": up ? "Good answer" : "Bad answer" }, svg);
}

// Keep the end in sight for those who are there, and leave others where they read.
function following(change) {
  const near = document.documentElement.scrollHeight - innerHeight - scrollY < NEAR_PX;
  change();
  if (near) scrollTo(0, document.documentElement.scrollHeight);
}

// Call `hear(event)` for each event of the stream.
async function stream(body, hear) {
  const response = await reach("/api/chat", { ...(await posting(body)), signal: busy.signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
      if (data.trim()) hear(JSON.parse(data));
    }
  }
}

async function answer(again) {
  const card = make("article", { class: "card", "aria-label": again ? "The second answer" : "The answer" });
  const text = make("div", { class: "text", dir: "auto", role: "region", tabindex: "0", "aria-label": "An answer" });
  const acts = make("div", { class: "acts" });
  card.append(text, acts);
  following(() => {
    if (again) last.row.append(card);
    else $("talk").append((last = { row: make("div", { class: "reply" }, card), answers: [] }).row);
    last.row.classList.toggle("both", again);
  });
  const one = { text: "", sample: null, card, acts };
  let done = null;
  lock(true);
  try {
    await stream({ messages, again: again ? last.answers[0].sample : null }, (event) => {
      if (event.error) throw new Error(event.error);
      if (event.done) done = event;
      one.text = event.done ? event.text : one.text + event.text; // the end brings the whole
      following(() => show(text, one.text));
    });
    if (!done) throw new Error("The answer broke off.");
    one.sample = done.sample;
    last.answers.push(one);
    following(() => finish(one, done.pair));
  } catch (error) {
    following(() => {
      card.remove();
      if (!last.answers.length) last.row.remove();
      last.row.classList.remove("both");
    });
    tellFailure(error, again);
  } finally {
    lock(false);
  }
}

function tellFailure(error, again) {
  const said = busy.signal.aborted ? "Stopped." : error.message;
  $("status").classList.add("waits");
  show($("status"), said);
  if (again) {
    messages.push({ role: "assistant", content: last.answers[0].text });
    offerAgain(last.answers[0]);
    return;
  }
  const asked = messages.pop(); // it may be changed and asked again
  document.querySelector(".said:last-of-type")?.remove();
  if (!$("message").value) $("message").value = asked.content;
}

function lock(on) {
  busy = on ? new AbortController() : null;
  $("talk").setAttribute("aria-busy", on); // an answer is read out once it is whole
  for (const button of document.querySelectorAll("#ask button, .again")) button.disabled = on;
}

function finish(one, pair) {
  const thumbs = [thumb(true), thumb(false)];
  thumbs.forEach((button, i) => {
    button.addEventListener("click", () => {
      outbox.put("/api/thumbs", { key: uuid(), sample: one.sample, up: i === 0 });
      thumbs.forEach((each) => each.setAttribute("aria-pressed", each === button));
    });
  });
  one.acts.append(...thumbs);
  for (const old of document.querySelectorAll(".again")) old.remove();
  if (pair) {
    askWhich(pair);
    return;
  }
  messages.push({ role: "assistant", content: one.text });
  offerAgain(one);
}

function offerAgain(one) {
  const again = make("button", { type: "button", class: "quiet again", text: "Again" });
  again.addEventListener("click", () => {
    again.remove();
    messages.pop();
    answer(true);
  });
  one.acts.append(again);
}

function askWhich(pair) {
  const began = performance.now();
  const row = last.row;
  const answers = last.answers;
  const group = make("div", { class: "better", role: "group", "aria-label": "Which answer is better?" });
  const choices = make("div", { class: "choices" });
  for (const [choice, name] of [["left", "First is better"], ["tie", "Equal"], ["right", "Second is better"]]) {
    const button = make("button", { type: "button", text: name, "data-choice": choice });
    button.addEventListener("click", () => {
      outbox.put("/api/votes", { key: uuid(), pair, repeat: 0, choice, latency_s: (performance.now() - began) / 1000, guidelines: 0 });
      following(() => keep(answers, choice === "right" ? 1 : 0, group));
    });
    choices.append(button);
  }
  group.append(make("p", { class: "label", text: "Which answer is better? The talk goes on from it." }), choices);
  row.append(group);
  messages.push({ role: "assistant", content: answers[0].text }); // until it is decided
}

function keep(answers, which, group) {
  if (messages.at(-1)?.role === "assistant") messages.at(-1).content = answers[which].text;
  answers.forEach((one, i) => one.card.classList.toggle(i === which ? "chosen" : "left-behind", true));
  group.remove();
  $("message").focus();
}

function ask(event) {
  event?.preventDefault();
  const content = $("message").value.trim();
  if (!content || busy) return;
  $("message").value = "";
  $("opening").hidden = true;
  for (const open of document.querySelectorAll(".better")) open.remove(); // not decided: the first answer stands
  messages.push({ role: "user", content });
  following(() => $("talk").append(make("p", { class: "said turn", dir: "auto", text: content })));
  answer(false);
}

function anew() {
  messages = [];
  last = null;
  $("talk").replaceChildren($("opening"));
  $("opening").hidden = false;
  $("message").focus();
}

begin((who, box) => {
  outbox = box;
  $("ask").addEventListener("submit", ask);
  $("message").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) ask(event);
  });
  $("anew").addEventListener("click", anew);
  $("message").disabled = false;
  $("message").focus();
});
