// Scale, rebalance, reload: what will happen is said before, what happens while it does, and why it was refused.

import { ApiError, postJson } from "./api.js";
import { byId, element, plural, seconds, times } from "./format.js";
import { sentence, titleOf } from "./events_panel.js";
import { askForKey } from "./key_dialog.js";
import { state, watch } from "./state.js";

const SHOWN_MS = 12000;
const SETTLED_MS = 60000;
const NAMES = {
  routers: { one: "router", many: "routers", list: "routers" },
  experts: { one: "expert host", many: "expert hosts", list: "hosts" },
};
/** Steps that were asked for and not yet applied. */
const steps = { routers: 0, experts: 0 };
/** What was asked for here and is not yet done: {title, since, done}. */
let asked = null;
let outcome = null;

export function startControls() {
  for (const control of document.querySelectorAll("[data-deployment]")) {
    const { deployment } = control.dataset;
    for (const button of control.querySelectorAll("[data-step]")) {
      button.addEventListener("click", () => {
        steps[deployment] += Number(button.dataset.step);
        show();
      });
    }
    control.querySelector("[data-apply]").addEventListener("click", () => scale(deployment));
  }
  byId("rebalance").addEventListener("click", rebalance);
  byId("reload-form").addEventListener("submit", (event) => {
    event.preventDefault();
    reload(byId("reload-path").value.trim());
  });
  watch(["topology", "load", "events", "about"], show);
  setInterval(showProgress, 500);
}

const here = (deployment) => state.topology?.[NAMES[deployment].list].length ?? 0;
const target = (deployment) => state.topology?.targets?.[deployment] ?? here(deployment);

function show() {
  if (!state.topology) return;
  for (const deployment of ["routers", "experts"]) {
    const [now, wanted] = [here(deployment), target(deployment)];
    if (wanted + steps[deployment] < 0) steps[deployment] = -wanted;
    const next = wanted + steps[deployment];
    const control = document.querySelector(`[data-deployment="${deployment}"]`);
    byId(`${deployment}-wanted`).textContent = next;
    byId(`${deployment}-now`).textContent = now === wanted ? `${plural(now, "is", "are").replace(/^(\d+) (\w+)/, "$1 $2")} serving` : `${now} serving, ${wanted} wanted`;
    control.querySelector("[data-apply]").disabled = next === wanted;
    control.querySelector('[data-step="-1"]').disabled = next <= 0;
  }
  const ratio = state.load?.imbalance ?? 0;
  byId("balance-now").textContent = ratio ? `the busiest host has ${times(ratio)} the mean load` : "nothing was routed within the window";
  byId("rebalance").disabled = !state.topology.hosts.length;
  byId("weights-now").textContent = state.topology.weights.map(({ version, path }) => `version ${version}${path ? ` (${path})` : ", as configured"}`).join(" and ") || "–";
  showProgress();
}

async function scale(deployment) {
  const { one, many } = NAMES[deployment];
  const [from, to] = [target(deployment), target(deployment) + steps[deployment]];
  const name = (n) => plural(n, one, many);
  const why = to > from
    ? [`Serve starts ${name(to - from)} and loads the weights there, beside what serves.`, "The change happens between two steps. Requests go on."]
    : deployment === "experts"
      ? [`The experts of ${name(from - to)} move to those that stay; then Serve stops what is left over.`, "It is refused if the rest cannot hold the model. Requests go on."]
      : [`The requests of ${name(from - to)} move to the others, which compute the prompts again.`, "Requests go on; those that move wait a little, once."];
  if (!(await confirmed(`${from} → ${name(to)}?`, why, `Scale to ${to}`))) return;
  steps[deployment] = 0;
  const done = () => here(deployment) === to && !state.events.some((event) => event.outcome === "under way");
  await change(`Scaling to ${name(to)}`, "v1/cluster/scale", { deployment, replicas: to }, done);
}

async function rebalance() {
  const ratio = state.load?.imbalance ?? 0;
  const list = [
    ratio ? `The busiest host has ${times(ratio)} the mean load.` : "Nothing was routed within the window, so there may be nothing to go by.",
    "Experts are moved and copied between hosts, beside what serves. Requests go on.",
  ];
  if (!(await confirmed("Rebalance the experts?", list, "Rebalance"))) return;
  const before = state.topology.generation;
  const done = () => state.topology.generation > before && !state.events.some((event) => event.outcome === "under way");
  const answer = await change("Rebalancing", "v1/cluster/rebalance", {}, done);
  if (answer && !answer.begun) finish("good", "The placement is already as good as it gets: nothing is moved.");
}

async function reload(path) {
  const list = [
    `Routers and hosts load ${path} beside the weights that are served.`,
    "New requests begin with it; those that run finish with the old weights.",
    "It is refused, or rolled back, when the checkpoint does not fit or memory is short.",
  ];
  if (!(await confirmed("Serve other weights?", list, "Reload"))) return;
  const answer = await change("Loading other weights", "v1/cluster/reload", { path }, () => false);
  if (answer && asked) asked.done = () => state.topology.weights.length === 1 && state.topology.weights[0].version >= answer.version;
}

async function change(title, path, body, done) {
  outcome = null;
  asked = { title, since: Date.now(), done };
  showProgress();
  try {
    return await postJson(path, body);
  } catch (error) {
    if (error instanceof ApiError && error.wantsKey) {
      asked = null;
      showProgress();
      askForKey(error.message, () => change(title, path, body, done));
    } else finish("bad", error instanceof ApiError ? `Refused: ${error.message}` : "The gateway does not answer.");
    return null;
  }
}

function finish(tone, text) {
  asked = null;
  outcome = { tone, text, until: Date.now() + SHOWN_MS };
  showProgress();
}

function showProgress() {
  const box = byId("progress");
  const running = state.events.find((event) => event.outcome === "under way");
  if (asked) follow();
  if (outcome && outcome.until < Date.now()) outcome = null;
  if (outcome) {
    box.hidden = false;
    box.dataset.tone = outcome.tone;
    box.textContent = outcome.text;
    return;
  }
  box.dataset.tone = "";
  box.hidden = !asked && !running;
  if (box.hidden) return;
  const title = running ? titleOf(running) : asked.title;
  const since = running ? running.unix_s * 1000 : asked.since;
  const words = `${title}, ${seconds(Math.max(0, Date.now() - since) / 1000)}${running ? `: ${sentence(running.reason)}` : ""}`;
  if (box.firstChild?.className !== "spin") box.replaceChildren(element("i", { class: "spin", "aria-hidden": "true" }), element("span"));
  box.lastChild.textContent = words;
}

function follow() {
  const rolledBack = state.events.findLast((event) => event.outcome === "rolled back");
  if (rolledBack && rolledBack.unix_s * 1000 > asked.since) finish("bad", `Given up: ${sentence(rolledBack.reason)}`);
  else if (asked.done()) finish("good", `${asked.title}: done in ${seconds((Date.now() - asked.since) / 1000)}, generation ${state.topology.generation}.`);
  else if (Date.now() - asked.since > SETTLED_MS && !state.events.some((event) => event.outcome === "under way")) {
    finish("bad", state.topology.reason ? `Not done: ${sentence(state.topology.reason)}` : "Not done within a minute; the events tell what goes on.");
  }
}

function confirmed(title, list, yes) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = title;
  byId("confirm-list").replaceChildren(...list.map((text) => element("li", {}, text)));
  byId("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
