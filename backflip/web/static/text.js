// Text of a model on the page. It is hostile: it becomes text nodes only, and what one cannot see gets a visible sign.

const SIGNS = new Map([
  [0x00ad, "SHY"], [0x061c, "ALM"], [0x180e, "MVS"], [0x200b, "ZWSP"], [0x200e, "LRM"], [0x200f, "RLM"],
  [0x2028, "LSEP"], [0x2029, "PSEP"], [0x202a, "LRE"], [0x202b, "RLE"], [0x202c, "PDF"], [0x202d, "LRO"],
  [0x202e, "RLO"], [0x2060, "WJ"], [0x2066, "LRI"], [0x2067, "RLI"], [0x2068, "FSI"], [0x2069, "PDI"], [0xfeff, "BOM"],
]);
// Control characters but tab and line feed; marks that steer direction or take no room; halves of characters; tags.
const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\u{e0000}-\u{e007f}]/gu;
const MOST_SIGNS = 2000;

function sign(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  if (code >= 0xd800 && code <= 0xdfff) return "\ufffd";
  return SIGNS.get(code) ?? `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
}

// The text as a fragment; the same unseen character in a row gets one sign with a count.
export function fragmentOf(text) {
  const whole = String(text).replace(/\r\n/g, "\n");
  const out = document.createDocumentFragment();
  let at = 0;
  let signs = 0;
  let pending = "";
  UNSEEN.lastIndex = 0;
  for (let match = UNSEEN.exec(whole); match; match = UNSEEN.exec(whole)) {
    pending += whole.slice(at, match.index);
    at = match.index + match[0].length;
    let count = 1;
    while (whole.startsWith(match[0], at)) {
      at += match[0].length;
      count += 1;
    }
    UNSEEN.lastIndex = at;
    const shown = sign(match[0]) + (count > 1 ? `×${count}` : "");
    if (++signs > MOST_SIGNS) {
      pending += "\u25a1";
      continue;
    }
    if (pending) out.append(pending);
    pending = "";
    const span = document.createElement("span");
    span.className = "sign";
    span.title = "A character that cannot be seen";
    span.textContent = shown;
    out.append(span);
  }
  pending += whole.slice(at);
  if (pending) out.append(pending);
  return out;
}

export function show(element, text) {
  element.replaceChildren(fragmentOf(text));
}

// A conversation up to where an answer begins, the last turn largest.
export function turnsOf(messages) {
  const out = document.createDocumentFragment();
  messages.forEach(({ role, content }, i) => {
    const turn = document.createElement("p");
    turn.className = i < messages.length - 1 ? "turn before" : "turn";
    turn.dir = "auto";
    if (messages.length > 1) {
      const who = document.createElement("span");
      who.className = "who";
      who.textContent = { user: "asked", assistant: "answered", system: "told beforehand" }[role] ?? String(role);
      turn.append(who);
    }
    turn.append(fragmentOf(content));
    out.append(turn);
  });
  return out;
}

export function make(tag, { text, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  if (text !== undefined) element.append(fragmentOf(text));
  element.append(...children);
  return element;
}
