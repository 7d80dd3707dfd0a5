// What a page gets wrong for those who listen, use only keys, or see little contrast: a list of sentences.
() => {
  const wrong = [];
  const shown = (e) => e.checkVisibility({ opacityProperty: false, visibilityProperty: true }) && e.getClientRects().length > 0;
  const told = (e) => `${e.tagName.toLowerCase()}${e.id ? `#${e.id}` : ""} "${(e.textContent || "").trim().slice(0, 30)}"`;
  const all = (selector) => [...document.querySelectorAll(selector)];
  const text = (e) => (e.textContent || "").trim();
  const named = (e) => {
    const by = (e.getAttribute("aria-labelledby") ?? "").split(/\s+/).filter(Boolean).map((id) => document.getElementById(id));
    if (by.length) return by.every((one) => one && text(one));
    if ((e.getAttribute("aria-label") ?? "").trim()) return true;
    if (e.matches("input, textarea, select, progress")) return [...(e.labels ?? [])].some(text);
    return Boolean(text(e));
  };

  if (!document.documentElement.lang) wrong.push("the page names no language");
  if (!document.title.trim()) wrong.push("the page has no title");
  for (const [selector, count] of [["main", 1], ["h1", 1]]) {
    if (all(selector).length !== count) wrong.push(`there are ${all(selector).length} <${selector}>, not ${count}`);
  }
  for (const e of all("button, a[href], input, textarea, select, progress, dialog[open], [role=img], [role=region], [role=group], [role=log], video, nav, article")) {
    if (shown(e) && !named(e)) wrong.push(`${told(e)} has no name`);
  }
  for (const e of all("[tabindex]")) if (e.tabIndex > 0) wrong.push(`${told(e)} breaks the order of tabs`);
  for (const e of all("[tabindex='0']")) if (shown(e) && !e.getAttribute("role")) wrong.push(`${told(e)} takes the focus and has no role`);
  const ids = all("[id]").map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) wrong.push(`#${id} is there twice`);
  for (const name of ["aria-labelledby", "aria-describedby", "aria-controls", "for"]) {
    for (const e of all(`[${name}]`)) {
      for (const id of e.getAttribute(name).split(/\s+/)) if (id && !document.getElementById(id)) wrong.push(`${told(e)}: ${name} names #${id}, which is not there`);
    }
  }
  let level = 0;
  for (const e of all("h1, h2, h3, h4, h5, h6")) {
    if (e.closest("[hidden], dialog:not([open])")) continue;
    const its = Number(e.tagName[1]);
    if (its > level + 1) wrong.push(`${told(e)} comes after a heading of level ${level}`);
    level = its;
  }
  if (!document.querySelector("[aria-live]") && document.querySelector("script[type=module]")) wrong.push("nothing on the page is told as it changes");

  const colour = (css) => {
    const [r, g, b, a = 1] = css.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (top, under) => ({
    r: top.r * top.a + under.r * (1 - top.a), g: top.g * top.a + under.g * (1 - top.a), b: top.b * top.a + under.b * (1 - top.a), a: 1,
  });
  const behind = (e) => {
    const layers = [];
    for (let at = e; at; at = at.parentElement) layers.push(colour(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), { r: 255, g: 255, b: 255, a: 1 });
  };
  const opacity = (e) => {
    let all = 1;
    for (let at = e; at; at = at.parentElement) all *= Number(getComputedStyle(at).opacity);
    return all;
  };
  const light = ({ r, g, b }) => {
    const [R, G, B] = [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * R + 0.7152 * G + 0.0722 * B;
  };
  const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const seen = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const e = node.parentElement;
    if (!node.data.trim() || seen.has(e) || !shown(e) || e.closest(".unseen, .skip, noscript, svg, :disabled, .left-behind, option")) continue;
    seen.add(e);
    const style = getComputedStyle(e);
    const ground = behind(e);
    const ink = colour(style.color);
    const ratio = contrast(over({ ...ink, a: ink.a * opacity(e) }, ground), ground);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) wrong.push(`${told(e)} has a contrast of ${ratio.toFixed(2)}`);
  }
  for (const e of all("button, a[href], input, select, textarea")) {
    if (!shown(e) || e.closest(".skip, p, .strength, label")) continue;
    const { width, height } = e.getBoundingClientRect();
    if (width < 24 || height < 24) wrong.push(`${told(e)} is ${Math.round(width)} by ${Math.round(height)} pixels small`);
  }
  return wrong;
}
