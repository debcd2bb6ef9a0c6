// Starts the page: every panel watches the state, the feed fills it.

import { startControls } from "./controls_panel.js";
import { startEvents } from "./events_panel.js";
import { keepFeedOpen, reconnect } from "./feed.js";
import { startFigures } from "./figures_panel.js";
import { byId } from "./format.js";
import { startHeatMap } from "./heatmap_panel.js";
import { askForKey, startKeyDialog } from "./key_dialog.js";
import { startPrompt } from "./prompt_panel.js";
import { state, watch } from "./state.js";
import { startTheme } from "./theme.js";
import { startTopology } from "./topology_panel.js";
import { sentence } from "./events_panel.js";

const TONES = { running: "good", forming: "warn", waiting: "warn", draining: "warn" };
const PHASES = { connecting: "connecting", live: "live", lost: "no connection, trying again", denied: "no access" };

startTheme(byId("theme"));
startKeyDialog();
startFigures();
startHeatMap();
startTopology();
startEvents();
startPrompt();
startControls();
watch(["about", "topology"], showBar);
watch(["connection", "topology"], showBanner);
keepFeedOpen();

function showBar({ about, topology }) {
  if (!about || !topology) return;
  byId("model").textContent = about.model;
  byId("model").title = about.architecture;
  document.title = `${about.model} · expertmesh`;
  const pill = byId("state");
  pill.textContent = topology.state;
  pill.dataset.tone = TONES[topology.state] ?? "bad";
  byId("generation").textContent = topology.generation ? `generation ${topology.generation}` : "no generation";
  const versions = topology.weights.map(({ version }) => version);
  byId("weights").textContent = versions.length > 1 ? `weights ${versions.join(" and ")}` : "";
}

function showBanner({ connection, topology }) {
  const status = byId("connection");
  status.dataset.phase = connection.phase;
  status.textContent = PHASES[connection.phase];
  const banner = byId("banner");
  const action = byId("banner-action");
  const { text, tone, act } = banners(connection, topology) ?? {};
  banner.hidden = !text;
  banner.dataset.tone = tone ?? "";
  if (byId("banner-text").textContent !== (text ?? "")) byId("banner-text").textContent = text ?? "";
  action.hidden = !act;
  if (act) {
    action.textContent = act.label;
    action.onclick = act.do;
  }
}

function banners(connection, topology) {
  switch (connection.phase) {
    case "denied":
      return { text: connection.detail, tone: "bad", act: { label: "Enter a key", do: () => askForKey() } };
    case "lost":
      return { text: `${capital(connection.detail)}. What is shown is what was seen last.`, tone: "bad", act: { label: "Try now", do: reconnect } };
  }
  if (topology?.stale) return { text: "The coordinator does not answer. Requests go on; figures and changes wait for it." };
  if (topology && topology.state !== "running") return { text: sentence(`The cluster is ${topology.state}: ${topology.reason || "no reason is given"}.`) };
  if (topology?.reason) return { text: capital(sentence(topology.reason)) };
  return null;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
