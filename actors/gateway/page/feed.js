// Keeps the feed open: comes back when it ends, waits longer each time that it cannot, and says how it stands.

import { ApiError, call, lines } from "./api.js";
import { setConnection, take } from "./state.js";

const SILENCE_MS = 10000;
const WAITS_MS = [500, 1000, 2000, 4000, 8000];

let wake = () => {};
let current = new AbortController();

/** Tries again at once: with another key, or because somebody asked for it. */
export function reconnect() {
  current.abort("again");
  wake();
}

export async function keepFeedOpen() {
  let failures = 0;
  for (;;) {
    try {
      const why = await readOnce(() => (failures = 0));
      if (why === "renew") continue;
      setConnection("lost", why === "draining" ? "the gateway is shutting down" : "the feed has ended");
    } catch (error) {
      if (error instanceof ApiError && error.wantsKey) {
        setConnection("denied", error.message);
        await rest(60000);
        continue;
      }
      if (current.signal.reason === "again") {
        setConnection("connecting");
        continue;
      }
      setConnection("lost", error instanceof ApiError ? error.message : "the gateway does not answer");
    }
    await rest(WAITS_MS[Math.min(failures++, WAITS_MS.length - 1)]);
  }
}

async function readOnce(onPicture) {
  current = new AbortController();
  let silence = 0;
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(() => current.abort("silent"), SILENCE_MS);
  };
  heard();
  try {
    const response = await call("v1/cluster/feed", { signal: current.signal });
    for await (const text of lines(response)) {
      heard();
      if (!text) continue;
      const piece = JSON.parse(text);
      if (piece.type === "end") return piece.reason;
      take(piece);
      if (piece.type === "picture") {
        onPicture();
        setConnection("live");
      }
    }
    return "ended";
  } finally {
    clearTimeout(silence);
  }
}

function rest(ms) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    wake = () => {
      clearTimeout(timer);
      resolve();
    };
  });
}
