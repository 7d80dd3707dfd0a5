// The guidelines in their window; a version that one has not seen yet opens by itself.

import { show } from "./text.js";

const SEEN = "backflip:guidelines";

export function seen({ version }) {
  return Number(localStorage.getItem(SEEN) ?? 0) === version;
}

export function openGuidelines({ version, text }) {
  const dialog = document.getElementById("guidelines");
  show(document.getElementById("guidelines-text"), text || "The owner of this run has written no guidelines yet.");
  try {
    localStorage.setItem(SEEN, String(version));
  } catch {
    // kept by no browser: it opens once more after a reload
  }
  if (!dialog.open) dialog.showModal();
}
