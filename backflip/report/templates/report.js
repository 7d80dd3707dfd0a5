"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figure-data");
  const swap = new Map(Object.entries(read("tone-swap")));
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

  // Figures come in the light colours; the dark theme swaps each for its counterpart.
  const inDark = (value) => {
    if (typeof value === "string") return swap.get(value) ?? value;
    if (Array.isArray(value)) return value.map(inDark);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, inDark(inner)]));
  };

  const draw = (dark = isDark()) => {
    button.textContent = dark ? "Light" : "Dark";
    for (const [id, figure] of Object.entries(figures)) {
      const place = document.getElementById(`figure-${id}`);
      const { data, layout } = dark ? inDark(figure) : structuredClone(figure);
      if (place) Plotly.react(place, data, layout, { displayModeBar: false, responsive: true });
    }
    const panel = document.getElementById("figure-panel");
    if (panel && !panel.dataset.clicks) {
      panel.dataset.clicks = "yes";
      panel.on("plotly_click", ({ points: [point] }) => openBehind(point.customdata?.[0]));
    }
  };

  // The answers behind a point lie in the page: choosing it opens and focuses them.
  const openBehind = (key) => {
    const found = key && document.getElementById(`behind-${key}`);
    if (!found) return;
    document.getElementById("behind").open = found.open = true;
    const summary = found.querySelector("summary");
    summary.scrollIntoView({ block: "center" });
    summary.focus({ preventScroll: true });
  };

  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    draw();
  });
  system.addEventListener("change", () => draw());
  addEventListener("beforeprint", () => draw(false));
  addEventListener("afterprint", () => draw());
  draw();
})();
