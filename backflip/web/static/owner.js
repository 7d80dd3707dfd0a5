// The owner's page: links, raters, guidelines, export. What an owner does here is done at once or told at once.

import { get, me, post } from "./api.js";
import { make, show } from "./text.js";

const POLL_MS = 5000;
const DASH = "–";

const $ = (id) => document.getElementById(id);
const percent = (value) => (value === null || value === undefined ? DASH : `${Math.round(100 * value)}%`);
const when = (at) => (at ? new Date(1000 * at).toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" }) : DASH);
let drawn = "";

function say(text, bad = false) {
  show($("status"), text);
  $("status").classList.toggle("waits", bad);
}

// Do something, then read the lists anew; a failure is told in the status line.
async function act(work, done = "") {
  try {
    await work();
    if (done) say(done);
  } catch (error) {
    if (error.status === undefined) throw error;
    say(error.message, true);
  }
  await read();
}

function sure(title, text, yes) {
  show($("sure-title"), title);
  show($("sure-text"), text);
  show($("sure-yes"), yes);
  $("sure").returnValue = "no";
  $("sure").showModal();
  return new Promise((resolve) => {
    $("sure").addEventListener("close", () => resolve($("sure").returnValue === "yes"), { once: true });
  });
}

function button(text, label, work) {
  const made = make("button", { type: "button", class: "quiet", text, "aria-label": label });
  made.addEventListener("click", work);
  return made;
}

async function revoke(rater) {
  if (!(await sure(`Revoke ${rater.name}?`, "They are signed out at once and cannot vote any more. Their votes stay.", "Revoke"))) return;
  await act(() => post(`/api/owner/raters/${encodeURIComponent(rater.rater)}/revoke`, {}), "Revoked.");
}

async function forget(rater) {
  const text = `All ${rater.votes} votes, what they wrote and their name are deleted for good. What was fitted with them stays as it is.`;
  if (!(await sure(`Forget ${rater.name}?`, text, "Delete for good"))) return;
  await act(() => post(`/api/owner/raters/${encodeURIComponent(rater.rater)}/forget`, {}), "Forgotten.");
}

function row(rater) {
  const cell = (text) => make("td", { class: "n", text });
  const acts = make("td", { class: "n" });
  if (!rater.revoked) acts.append(button("Revoke", `Revoke ${rater.name}`, () => revoke(rater)));
  acts.append(button("Forget", `Forget ${rater.name}`, () => forget(rater)));
  const note = rater.revoked ? " (revoked)" : rater.role === "owner" ? " (owner)" : "";
  const agrees = rater.agreement_pairs ? `${percent(rater.agreement)} of ${rater.agreement_pairs}` : DASH;
  return make("tr", { class: rater.revoked ? "gone" : "" },
    make("th", { scope: "row", text: rater.name + note }), cell(String(rater.votes)), cell(agrees),
    cell(rater.median_s === null ? DASH : `${rater.median_s.toFixed(1)} s`), cell(percent(rater.left_share)), make("td", { text: when(rater.last_at) }), acts);
}

function open(invite) {
  const line = make("li", { text: `${invite.name}, ${invite.role}, made ${when(invite.at)} ` });
  line.append(button("Revoke the link", `Revoke the link for ${invite.name}`, () => act(() => post(`/api/owner/invites/${encodeURIComponent(invite.invite)}/revoke`, {}), "The link is void.")));
  return line;
}

async function read() {
  try {
    const told = await get("/api/owner/raters");
    const text = JSON.stringify(told);
    if (text === drawn) return;
    drawn = text;
    $("raters").replaceChildren(...told.raters.map(row));
    $("invites").replaceChildren(...(told.invites ?? []).filter((one) => !one.used_at && !one.revoked_at).map(open));
  } catch (error) {
    if (error.status === undefined) throw error;
    say(error.message, true);
  }
}

async function guidelines({ fill }) {
  const { versions } = await get("/api/owner/guidelines");
  const [newest, ...earlier] = versions;
  $("guide-version").textContent = newest ? `(version ${newest.version}, ${when(newest.at)})` : "(none yet)";
  if (fill) $("guide-text").value = newest?.text ?? "";
  $("versions").replaceChildren(...earlier.map(({ version, text, at }) =>
    make("li", {}, make("p", { class: "small", text: `Version ${version}, ${when(at)}` }), make("div", { class: "text", text }))));
}

async function invite(event) {
  event.preventDefault();
  await act(async () => {
    const { link } = await post("/api/owner/invites", { name: $("invite-name").value.trim(), role: $("invite-role").value });
    $("link").value = new URL(link, location.origin).href;
    $("link-row").hidden = false;
    $("invite-name").value = "";
    $("link").focus();
    $("link").select();
  }, "The link is ready.");
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("link").value);
    say("Copied.");
  } catch {
    $("link").select();
    say("Press Ctrl C to copy it.");
  }
}

async function save(event) {
  event.preventDefault();
  await act(async () => {
    await post("/api/owner/guidelines", { text: $("guide-text").value });
    await guidelines({ fill: false });
  }, "Saved. Raters see the new version with their next pairs, and each vote knows which it was given under.");
}

async function poll() {
  if (!document.hidden) await read();
  setTimeout(poll, POLL_MS);
}

$("invite").addEventListener("submit", invite);
$("copy").addEventListener("click", copy);
$("guide").addEventListener("submit", save);
me().then(() => guidelines({ fill: true })).catch((error) => say(error.message, true));
poll();
