// How every page begins: who is there, and the outbox of their judgements. It tries until the server answers.

import { me } from "./api.js";
import { Outbox, telling } from "./outbox.js";
import { show } from "./text.js";

const AGAIN_MS = 3000;

export async function begin(start) {
  const place = document.getElementById("empty") ?? document.getElementById("status");
  for (;;) {
    try {
      const who = await me();
      if (place.id === "empty") place.hidden = true;
      const outbox = new Outbox(who.rater, telling(document.getElementById("status")));
      outbox.send();
      return start(who, outbox);
    } catch (error) {
      if (error.status === undefined) throw error;
      place.hidden = false;
      show(place, error.status === 401 ? "You are signed out. Open a link of yours to come back." : `${error.message} Trying again …`);
      if (error.status === 401) return undefined;
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}
