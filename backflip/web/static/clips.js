// Two short clips on one clock: muted, looping, begun together. A clip is a video, or poses that are drawn.

import { get } from "./api.js";

const APART_S = 0.08;
const CHECK_MS = 250;

export const urlOf = (sample) => `/api/clips/${sample.split("/").map(encodeURIComponent).join("/")}`;

// Begin to load a clip; it is shown when its element is put on the page.
export function clipOf({ sample, clip }, name) {
  return clip === "application/json" ? posesOf(urlOf(sample), name) : videoOf(urlOf(sample), name);
}

function videoOf(url, name) {
  const video = document.createElement("video");
  Object.assign(video, { muted: true, playsInline: true, preload: "auto", src: url });
  video.setAttribute("aria-label", name);
  const ready = new Promise((resolve, reject) => {
    video.addEventListener("canplay", resolve, { once: true });
    video.addEventListener("error", () => reject(new Error("This clip cannot be shown.")), { once: true });
  });
  return {
    element: video,
    ready,
    now: () => video.currentTime,
    seek: (t) => (video.currentTime = t),
    play: () => video.play().catch(() => {}),
    pause: () => video.pause(),
    over: () => video.ended,
  };
}

// {"fps": 20, "edges": [[0, 1], ...], "frames": [[[x, y], ...], ...]}: joints and the bones between them, y upwards.
function posesOf(url, name) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: 640, height: 480 });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", name);
  let poses = null;
  let began = 0;
  let stood = 0;
  let going = false;
  const length = () => (poses ? poses.frames.length / poses.fps : Infinity);
  const now = () => Math.min(length(), going ? (performance.now() - began) / 1000 : stood);
  const paint = () => {
    if (poses) draw(canvas, poses, Math.min(poses.frames.length - 1, Math.floor(now() * poses.fps)));
    if (going && canvas.isConnected) requestAnimationFrame(paint);
  };
  const seek = (t) => {
    stood = t;
    began = performance.now() - 1000 * t;
    paint();
  };
  return {
    element: canvas,
    ready: get(url).then((told) => {
      poses = told;
      poses.box = boxOf(told.frames);
    }),
    now,
    seek,
    play: () => {
      seek(stood);
      going = true;
      requestAnimationFrame(paint);
    },
    pause: () => {
      stood = now();
      going = false;
    },
    over: () => now() >= length(),
  };
}

function boxOf(frames) {
  const xs = frames.flat().map(([x]) => x);
  const ys = frames.flat().map(([, y]) => y);
  const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
  const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
  return { left: least(xs), right: most(xs), low: least(ys), high: most(ys) };
}

function draw(canvas, { frames, edges, box }, frame) {
  const pen = canvas.getContext("2d");
  const scale = 0.86 * Math.min(canvas.width / (box.right - box.left || 1), canvas.height / (box.high - box.low || 1));
  const x = (joint) => canvas.width / 2 + scale * (joint[0] - (box.left + box.right) / 2);
  const y = (joint) => canvas.height / 2 - scale * (joint[1] - (box.low + box.high) / 2);
  const ink = getComputedStyle(canvas).color;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  Object.assign(pen, { strokeStyle: ink, fillStyle: ink, lineWidth: 6, lineCap: "round" });
  for (const [from, to] of edges) {
    pen.beginPath();
    pen.moveTo(x(frames[frame][from]), y(frames[frame][from]));
    pen.lineTo(x(frames[frame][to]), y(frames[frame][to]));
    pen.stroke();
  }
  for (const joint of frames[frame]) {
    pen.beginPath();
    pen.arc(x(joint), y(joint), 6, 0, 2 * Math.PI);
    pen.fill();
  }
}

// Plays clips side by side; the longer one decides when all begin again.
export class Together {
  constructor(clips) {
    this.clips = clips;
    this.going = false;
    this.stopped = false;
  }

  async start() {
    const all = await Promise.allSettled(this.clips.map((clip) => clip.ready));
    this.clips.forEach((clip, i) => {
      if (all[i].status === "rejected") clip.element.replaceWith("This clip cannot be shown.");
    });
    this.clips = this.clips.filter((_, i) => all[i].status === "fulfilled");
    if (this.stopped || !this.clips.length) return;
    for (const clip of this.clips) clip.seek(0);
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) this.play();
    this.timer = setInterval(() => this.check(), CHECK_MS);
  }

  check() {
    if (!this.going) return;
    if (this.clips.every((clip) => clip.over())) {
      for (const clip of this.clips) clip.seek(0);
      this.play();
      return;
    }
    const [first, ...others] = this.clips.filter((clip) => !clip.over());
    for (const clip of others) {
      if (Math.abs(clip.now() - first.now()) > APART_S) clip.seek(first.now());
    }
  }

  play() {
    this.going = true;
    for (const clip of this.clips) clip.play();
  }

  toggle() {
    if (!this.going) return this.play();
    this.going = false;
    for (const clip of this.clips) clip.pause();
  }

  stop() {
    this.stopped = true;
    this.going = false;
    clearInterval(this.timer);
    for (const clip of this.clips) clip.pause();
  }
}
