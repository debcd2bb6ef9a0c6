// Who is there, tier by tier, with what each does; who is joining, and who has just been lost.

import { byId, count, element, percent, plural, times } from "./format.js";
import { changed, state, watch } from "./state.js";

const MANY = 12;
const MOST_LINKS = 200;
const TIERS = [
  { role: "gateways", title: "Gateways", one: "gateway", kind: "gateway" },
  { role: "routers", title: "Routers", one: "router", kind: "router" },
  { role: "hosts", title: "Expert hosts", one: "host", kind: "experts", target: "experts", note: "load over the mean" },
];

export function startTopology() {
  watch(["topology", "load", "figures", "events", "host", "about"], show);
  new ResizeObserver(drawLinks).observe(byId("topology"));
}

function show() {
  const { topology } = state;
  if (!topology || !state.load) return;
  const root = byId("topology");
  byId("topology-sub").textContent = subtitle(topology);
  for (const tier of TIERS) {
    let section = root.querySelector(`[data-tier="${tier.role}"]`);
    const nodes = nodesOf(tier, topology);
    if (!section) {
      section = element("div", { class: "tier", "data-tier": tier.role }, element("h3"), element("div", { class: "nodes" }));
      root.append(section);
    }
    section.hidden = !nodes.length && tier.role === "hosts" && !topology.targets?.experts;
    const wanted = topology.targets?.[tier.target ?? tier.role];
    const here = topology[tier.role].length;
    const size = wanted === undefined || wanted === here ? here : `${here} of ${wanted} wanted`;
    section.firstChild.textContent = `${tier.title} · ${size}${tier.note && here ? ` · ${tier.note}` : ""}`;
    fill(section.lastChild, nodes);
  }
  drawLinks();
}

function subtitle(topology) {
  const size = [plural(topology.gateways.length, "gateway"), plural(topology.routers.length, "router")];
  size.push(topology.hosts.length ? plural(topology.hosts.length, "expert host") : "experts in the routers");
  return size.join(", ");
}

function nodesOf(tier, topology) {
  const live = topology[tier.role].map((member, index) => describe(tier, member, index, topology));
  const joining = topology.joining
    .filter((member) => member.kind === tier.kind)
    .map((member) => ({ member, state: "joining", name: `a ${tier.one}`, fact: "joining", lines: loading() }));
  const ghosts = state.ghosts
    .filter((ghost) => ghost.role === tier.role && ghost.until > performance.now())
    .map((ghost) => {
      const how = wasLost(ghost) ? "lost" : "left";
      return { member: ghost.member, state: how, name: `${tier.one} ${ghost.index}`, fact: how, lines: [] };
    });
  return [...live, ...joining, ...ghosts];
}

/** Whether a recovery followed the last generation that it was in: reasons may name who noticed, and not who was lost. */
function wasLost({ generation }) {
  const next = state.events.find((event) => event.outcome !== "rolled back" && event.generation > generation);
  return next?.kind === "recovery";
}

function loading() {
  const { loaded_bytes: loaded, total_bytes: total } = state.load;
  return total > loaded ? [{ label: "weights", value: percent(loaded / total), share: loaded / total }] : [];
}

function describe(tier, member, index, topology) {
  const { load } = state;
  const node = { member, state: "live", name: `${tier.one} ${index}`, fact: "", lines: [], busy: false };
  if (tier.role === "gateways") {
    node.fact = `${load.outstanding_by_gateway[member.incarnation] ?? 0} open`;
    node.busy = load.outstanding_by_gateway[member.incarnation] > 0;
    if (member.incarnation === state.about?.gateway) node.lines.push({ label: "this page comes from here" });
  } else if (tier.role === "routers") {
    const speed = state.figures.at(-1)?.router_tokens_per_s[member.incarnation] ?? 0;
    node.fact = `${count(speed)} tok/s`;
    node.busy = speed > 0;
    const [used, all] = [load.cache_blocks_used[index] ?? 0, load.cache_blocks[index] ?? 0];
    node.lines.push({ label: `${load.running[index] ?? 0} running, ${load.queued[index] ?? 0} queued` });
    if (all) node.lines.push({ label: "KV cache", value: percent(used / all), share: used / all });
  } else {
    const n = topology.hosts.length;
    const rows = hostRows(index, n);
    const mean = load.host_rows.reduce((a, b) => a + b, 0) / n;
    node.fact = mean ? times(rows / mean) : "idle";
    node.busy = state.figures.length > 0 && Object.values(state.figures.at(-1).router_tokens_per_s).some((speed) => speed > 0);
    node.lines.push({ label: mean ? `${count(rows)} rows` : "no rows", share: mean ? rows / mean / 2 : 0, middle: true, over: mean && rows / mean > 1.2 });
    node.host = index;
  }
  return node;
}

function hostRows(host, n) {
  let sum = 0;
  for (let i = host; i < state.load.host_rows.length; i += n) sum += state.load.host_rows[i];
  return sum;
}

/** Nodes keep their elements from one look to the next, so that focus stays where it is. */
function fill(parent, nodes) {
  parent.classList.toggle("many", nodes.length > MANY);
  const old = new Map([...parent.children].map((child) => [child.dataset.member, child]));
  nodes.forEach((node, place) => {
    const { incarnation } = node.member;
    const name = node.host === undefined ? "DIV" : "BUTTON";
    let card = old.get(incarnation);
    if (!card || card.nodeName !== name) {
      card?.remove();
      card = element(name.toLowerCase(), { class: "node", "data-member": incarnation, type: name === "BUTTON" ? "button" : null });
    }
    old.delete(incarnation);
    draw(card, node);
    if (parent.children[place] !== card) parent.insertBefore(card, parent.children[place] ?? null);
  });
  for (const card of old.values()) card.remove();
}

function draw(card, node) {
  const { member } = node;
  card.dataset.state = node.state;
  card.dataset.busy = Boolean(node.busy);
  card.title = `${member.replica || member.incarnation}\nprocess ${member.pid} on node ${member.node}, ${member.device}`;
  if (node.host !== undefined) {
    card.setAttribute("aria-pressed", state.host === node.host);
    card.setAttribute("aria-label", `${node.name}, ${node.fact}; show what it holds in the map`);
    card.onclick = () => {
      state.host = state.host === node.host ? null : node.host;
      changed("host");
    };
  }
  card.replaceChildren(
    element("span", { class: "top" }, element("span", {}, node.name), element("span", {}, node.fact)),
    element("span", { class: "who" }, `pid ${member.pid} · ${member.node.slice(0, 8)} · ${member.device}`),
    ...node.lines.flatMap(line),
  );
}

function line({ label, value, share, middle, over }) {
  const parts = [element("span", { class: "legend-line" }, element("span", {}, label), value ? element("span", {}, value) : null)];
  if (share !== undefined) {
    const bar = element("i");
    bar.style.width = `${Math.min(100, share * 100)}%`;
    parts.push(element("span", { class: over ? "meter over" : "meter" }, bar, middle ? element("b") : null));
  }
  return parts;
}

function drawLinks() {
  const root = byId("topology");
  const svg = byId("links");
  const origin = root.getBoundingClientRect();
  const tiers = TIERS.map(({ role }) => [...root.querySelectorAll(`[data-tier="${role}"] .node:not([data-state="lost"]):not([data-state="left"])`)]);
  const paths = [];
  for (const [above, below] of [[tiers[0], tiers[1]], [tiers[1], tiers[2]]]) {
    if (above.length * below.length > MOST_LINKS) continue;
    for (const from of above) {
      for (const to of below) {
        const [a, b] = [from.getBoundingClientRect(), to.getBoundingClientRect()];
        if (b.top - a.bottom > 90) continue;
        const [x1, y1, x2, y2] = [a.left + a.width / 2 - origin.left, a.bottom - origin.top, b.left + b.width / 2 - origin.left, b.top - origin.top];
        const bend = (y2 - y1) / 2;
        paths.push({ d: `M${x1} ${y1} C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}`, busy: to.dataset.busy === "true" && from.dataset.busy === "true" });
      }
    }
  }
  while (svg.children.length > paths.length) svg.lastChild.remove();
  paths.forEach(({ d, busy }, i) => {
    const path = svg.children[i] ?? svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "path"));
    path.setAttribute("d", d);
    path.classList.toggle("busy", busy);
  });
}
