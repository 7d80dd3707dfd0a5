// The progress page: asks every few seconds, draws only what has changed, shows the answers behind a point.

import { get } from "./api.js";
import { make, show, turnsOf } from "./text.js";

const POLL_MS = 3000;
const DASH = "–";
const STATES = { waiting: "Waiting for people", running: "Running", paused: "Paused", done: "Finished" };

const $ = (id) => document.getElementById(id);
let told = null;
let drawn = "";

const tone = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const known = (value) => typeof value === "number" && Number.isFinite(value);
const number = (value, digits = 2) => (known(value) ? value.toFixed(digits).replace("-", "−") : DASH);
const percent = (value) => (known(value) ? `${Math.round(100 * value)}%` : DASH);

// Where a point stands on the axis of rounds: steps of round 2 lie between 1 and 2, what is measured after it at 2.
function placesOf(curves) {
  const last = new Map();
  for (const p of curves) if (p.step === "optimise") last.set(p.round, Math.max(last.get(p.round) ?? 1, p.tick));
  return (p) => (p.step === "optimise" ? p.round - 1 + (0.92 * p.tick) / last.get(p.round) : p.round);
}

function layout(more = {}) {
  const axis = { gridcolor: tone("grid"), zeroline: false, linecolor: tone("rule"), tickfont: { color: tone("muted"), size: 11 }, fixedrange: true };
  return {
    height: 240, margin: { l: 44, r: 14, t: 10, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: tone("ink") }, showlegend: false, dragmode: false, hovermode: "closest",
    hoverlabel: { bgcolor: tone("surface"), bordercolor: tone("rule"), font: { color: tone("ink"), size: 12 } },
    xaxis: { ...axis, showgrid: false, showline: true, ticks: "outside", dtick: 1, title: { text: "round", standoff: 6, font: { size: 12, color: tone("muted") } }, ...more.xaxis },
    yaxis: { ...axis, nticks: 6, ...more.yaxis },
    shapes: more.shapes ?? [],
  };
}

function traces(points, name, colour, symbol) {
  const at = placesOf(told.curves);
  const steps = points.filter((p) => p.step === "optimise" && known(p[name]));
  const whole = points.filter((p) => p.step !== "optimise" && known(p[name]));
  const bound = (p, end) => (known(p[`${name}_${end}`]) ? Math.abs(p[`${name}_${end}`] - p[name]) : 0);
  const of = (list) => ({ type: "scatter", x: list.map(at), y: list.map((p) => p[name]), customdata: list.map(({ round, step, tick }) => [round, step, tick]) });
  const hover = `round %{customdata[0]}, %{customdata[1]} %{customdata[2]}: %{y:.3g}<extra></extra>`;
  return [
    { ...of(steps), mode: "markers", marker: { color: tone(colour), size: 5, opacity: 0.5 }, hovertemplate: hover },
    {
      ...of(whole), mode: "lines+markers", line: { color: tone(colour), width: 2 }, hovertemplate: hover,
      marker: { color: tone(colour), size: 10, symbol, line: { color: tone("surface"), width: 1 } },
      error_y: { type: "data", symmetric: false, array: whole.map((p) => bound(p, "high")), arrayminus: whole.map((p) => bound(p, "low")), color: tone(colour), thickness: 1.5, width: 4 },
    },
  ];
}

function draw(id, data, frame, nothing) {
  const place = $(id);
  if (!data.some((trace) => trace.x.length)) {
    if (window.Plotly) Plotly.purge(place);
    place.replaceChildren(make("p", { class: "empty small", text: nothing }));
    return;
  }
  place.querySelector(":scope > .empty")?.remove();
  Plotly.react(place, data, frame, { displayModeBar: false, responsive: true });
  if (!place.dataset.clicks) {
    place.dataset.clicks = "yes";
    place.on("plotly_click", ({ points: [point] }) => point.customdata && behind(...point.customdata));
  }
}

function drawAll() {
  const { curves, votes } = told;
  const measured = curves.filter((p) => p.step !== "final");
  const across = { range: [0, Math.max(1, ...curves.map((p) => p.round)) + 0.08] };
  const gold = measured.some((p) => known(p.gold));
  $("score-title").textContent = gold ? "Score climbed, and true utility (sd)" : "Score of the reward model (sd)";
  const entry = (name, mark, text) => make("li", { class: name }, make("span", { class: mark, "aria-hidden": "true" }), text);
  $("score-key").replaceChildren(entry("proxy", "diamond", "score"), ...(gold ? [entry("truth", "square", "true utility (simulated raters)")] : []));
  const score = [...traces(measured, "proxy", "proxy", "diamond"), ...(gold ? traces(measured, "gold", "truth", "square") : [])];
  draw("score", score, layout({ xaxis: across }), "Nothing is measured yet.");
  const half = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0.5, y1: 0.5, layer: "below", line: { color: tone("before"), width: 1, dash: "dot" } }];
  draw("wins", traces(measured, "win_rate", "after", "diamond"), layout({ xaxis: across, yaxis: { range: [0, 1], tickformat: ".0%" }, shapes: half }), "Nothing is measured yet.");
  draw("kl", traces(measured, "kl", "before", "diamond"), layout({ xaxis: across, yaxis: { rangemode: "tozero" } }), "Nothing is measured yet.");
  const names = votes.map((v) => v.name || v.rater);
  const bars = { type: "bar", x: votes.map((_, i) => i), y: votes.map((v) => v.count), width: 0.5, marker: { color: tone("after") }, hovertemplate: "%{y} votes<extra></extra>" };
  const ticks = { title: undefined, dtick: undefined, tickmode: "array", tickvals: names.map((_, i) => i), ticktext: names.map(plain) };
  draw("voters", [bars], layout({ xaxis: ticks, yaxis: { rangemode: "tozero", tickformat: "d", dtick: votes[0]?.count < 6 ? 1 : undefined } }), "Nobody has voted yet.");
}

// The report's panel: it comes drawn in the light colours, each of which has a dark counterpart.
function drawPath() {
  const { panel } = told;
  $("path").hidden = !panel;
  if (!panel) return;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const inTone = (value) => {
    if (typeof value === "string") return (dark && panel.dark[value]) || value;
    if (Array.isArray(value)) return value.map(inTone);
    return value && typeof value === "object" ? Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, inTone(inner)])) : value;
  };
  if ($("stop-said").textContent !== panel.said) show($("stop-said"), panel.said);
  show($("stop-over"), panel.over && `Shaded: ${panel.over}.`);
  $("stop").hidden = !panel.said;
  $("stop").classList.toggle("here", panel.here);
  $("whole").setAttribute("aria-label", panel.alt);
  show($("whole-unit"), panel.unit);
  $("whole-key").replaceChildren(...panel.key.map(({ label, tone: name, mark }) => make("li", { class: name }, make("span", { class: mark, "aria-hidden": "true" }), label)));
  $("whole").style.height = `${panel.layout.height}px`;
  Plotly.react($("whole"), inTone(panel.data), inTone(panel.layout), { displayModeBar: false, responsive: true });
  if ($("whole").dataset.clicks) return;
  $("whole").dataset.clicks = "yes";
  $("whole").on("plotly_click", ({ points: [point] }) => {
    const [, round, tick] = /^r(\d+)(?:-s(\d+))?$/.exec(point.customdata?.[0] ?? "") ?? [];
    if (round) behind(Number(round), tick ? "optimise" : "monitor", Number(tick ?? 0));
  });
}

// Plotly reads a little markup in its labels: a rater's name must bring none.
function plain(name) {
  const short = name.length > 14 ? `${name.slice(0, 13)}…` : name;
  return short.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]).replace(/[\u0000-\u001f\u202a-\u202e\u2066-\u2069]/g, "□");
}

function strip() {
  const { rounds, votes, agreement, curves } = told;
  const all = votes.reduce((sum, v) => sum + v.count, 0);
  const last = curves.filter((p) => p.step !== "optimise").at(-1);
  const cells = [
    ["Rounds begun", String(rounds.length), rounds.length ? `last step: ${rounds.at(-1).steps.at(-1) ?? "none yet"}` : ""],
    ["Votes", String(all), votes.length === 1 ? "by 1 rater" : `by ${votes.length} raters`],
    ["Raters agree", percent(agreement?.value), agreement ? `${percent(agreement.low)} to ${percent(agreement.high)}, ${agreement.pairs} pairs` : "no pair has two votes yet"],
    ["Wins", percent(last?.win_rate), "against the untouched model"],
    ["KL", number(last?.kl), "nats from the untouched model"],
  ];
  $("strip").replaceChildren(...cells.map(([name, value, note]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value }), make("dd", { class: "note", text: note }))));
}

function table() {
  $("rows").replaceChildren(...told.curves.map((p) => {
    const button = make("button", { type: "button", class: "quiet", text: "answers", "aria-label": `Answers of round ${p.round}, ${p.step} ${p.tick}` });
    button.addEventListener("click", () => behind(p.round, p.step, p.tick));
    const cell = (text) => make("td", { class: "n", text });
    return make("tr", {}, make("th", { scope: "row", text: String(p.round) }), make("td", { text: p.step === "optimise" ? `step ${p.tick}` : p.step }),
      cell(number(p.proxy)), cell(number(p.kl)), cell(percent(p.win_rate)), make("td", { class: "n" }, button));
  }));
}

async function behind(round, step, tick) {
  const title = step === "optimise" ? `Round ${round}, step ${tick}` : `Round ${round}, ${step} prompts`;
  $("behind").hidden = false;
  show($("behind-title"), `Answers behind ${title}`);
  let found = [];
  try {
    ({ samples: found } = await get(`/api/samples?${new URLSearchParams({ round, step, tick })}`));
  } catch (error) {
    $("samples").replaceChildren(make("p", { class: "how", text: error.message }));
  }
  const none = make("p", { class: "how", text: "No answers are kept for this point." });
  if (found.length) {
    $("samples").replaceChildren(...found.map((s) => {
      const prompt = make("div", { class: "turns" });
      prompt.append(turnsOf(s.prompt));
      const text = make("div", { class: "text", dir: "auto", tabindex: "0", role: "region", "aria-label": "An answer", text: s.text });
      return make("article", { class: "answered" }, prompt, make("p", { class: "small", text: s.policy }), text);
    }));
  } else if (!$("samples").querySelector(".how")) $("samples").replaceChildren(none);
  $("behind").focus({ preventScroll: true });
  $("behind").scrollIntoView({ block: "start" });
}

async function poll() {
  try {
    if (!document.hidden || !told) told = await get("/api/progress");
    const text = JSON.stringify(told);
    const state = told.waits_for || `${STATES[told.state] ?? told.state}.`;
    if ($("state").textContent !== state) show($("state"), state);
    if (text !== drawn) {
      drawn = text;
      strip();
      table();
      drawPath();
      drawAll();
    }
  } catch (error) {
    if (error.status === undefined) throw error;
    show($("state"), error.status === 401 ? "You are signed out." : `${error.message} Trying again …`);
    if (error.status === 401) return;
  }
  setTimeout(poll, POLL_MS);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => told && (drawPath(), drawAll()));
poll();
