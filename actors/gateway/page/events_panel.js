// What happened, newest first. Told by the coordinator, so it is all there after a reload of the page.

import { ago, byId, clock, element, plural, seconds } from "./format.js";
import { state, watch } from "./state.js";

const GLYPHS = { start: "▶", scale: "⇅", rebalance: "⇄", recovery: "✚", reload: "⟳" };
const UNDER_WAY = {
  start: "Starting",
  scale: "Scaling",
  rebalance: "Rebalancing",
  recovery: "Recovering from a loss",
  reload: "Loading other weights",
};

let said = null;

export function startEvents() {
  watch(["events"], show);
  setInterval(refreshTimes, 1000);
}

export function toneOf(event) {
  if (event.outcome === "rolled back") return "warn";
  if (event.kind === "recovery") return "bad";
  return event.outcome === "under way" ? "info" : "good";
}

/** What an event is called. */
export function titleOf(event) {
  if (event.outcome === "under way") return UNDER_WAY[event.kind] ?? event.kind;
  if (event.outcome === "rolled back") {
    return { scale: "Scaling", rebalance: "Rebalance", recovery: "Recovery", reload: "Reload", start: "Start" }[event.kind] + " given up";
  }
  const size = [
    plural(event.routers, "router"),
    event.experts ? plural(event.experts, "host") : "",
  ].filter(Boolean).join(", ");
  switch (event.kind) {
    case "start": return `Started: ${size}`;
    case "scale": return event.reason.startsWith("experts move on") ? `Experts moved on: ${size}` : `Scaled: ${size}`;
    case "recovery": return `Lost and recovered: ${size}`;
    case "rebalance": return "Rebalanced";
    case "reload": return "Other weights";
  }
  return event.kind;
}

function show() {
  const events = [...state.events].reverse();
  const list = byId("events");
  list.replaceChildren(
    ...(events.length ? events.map(item) : [element("li", { class: "empty" }, "Nothing has happened yet.")]),
  );
  const newest = events[0];
  const words = newest ? `${titleOf(newest)}. ${newest.reason}` : "";
  if (said !== null && words !== said) byId("events-said").textContent = words;
  said = words;
}

function item(event) {
  const running = event.outcome === "under way";
  const placed = event.copies_placed ? `, ${plural(event.copies_placed, "copy", "copies")} of experts placed` : "";
  const generation = event.generation && !running ? `generation ${event.generation}${placed}` : "";
  return element(
    "li",
    { class: "event", "data-kind": event.kind, "data-tone": toneOf(event), "data-outcome": event.outcome },
    element("span", { class: "glyph", "aria-hidden": "true" }, running ? element("i", { class: "spin" }) : event.outcome === "rolled back" ? "↩" : (GLYPHS[event.kind] ?? "•")),
    element("span", { class: "what" }, titleOf(event)),
    element("span", { class: "took", "data-since": running ? event.unix_s : null }, running ? "" : seconds(event.seconds)),
    element("span", { class: "why" }, [sentence(event.reason), generation].filter(Boolean).join(" · ")),
    element("time", { class: "when", datetime: new Date(event.unix_s * 1000).toISOString(), "data-unix": event.unix_s, title: clock(event.unix_s) }, `${clock(event.unix_s)}`),
  );
}

/** Incarnations are shortened: 32 characters say no more than 8 to a person. */
export const sentence = (reason) => reason.replaceAll(/\b([0-9a-f]{6})[0-9a-f]{10,}\b/g, "$1…");

function refreshTimes() {
  for (const time of document.querySelectorAll("#events time")) {
    const unixS = Number(time.dataset.unix);
    time.textContent = Date.now() / 1000 - unixS < 3600 ? ago(unixS) : clock(unixS);
  }
  for (const took of document.querySelectorAll("#events [data-since]")) {
    took.textContent = seconds(Math.max(0, Date.now() / 1000 - Number(took.dataset.since)));
  }
}
