// What the page knows. Whoever shows a part of it is called once a frame, however often it has changed.

const KEPT_FIGURES = 300;
const GHOST_MS = 8000;

export const state = {
  connection: { phase: "connecting", detail: "" },
  about: null,
  topology: null,
  placement: null,
  load: null,
  events: [],
  figures: [],
  /** Members that are gone since a moment: {member, role, how, until}. */
  ghosts: [],
};

const watchers = new Map();
const dirty = new Set();
let frame = 0;

/** Calls `show` in the next frame after any of these parts has changed. */
export function watch(parts, show) {
  for (const part of parts) {
    if (!watchers.has(part)) watchers.set(part, new Set());
    watchers.get(part).add(show);
  }
}

export function changed(...parts) {
  for (const part of parts) dirty.add(part);
  frame ||= requestAnimationFrame(show);
}

function show() {
  frame = 0;
  const due = new Set();
  for (const part of dirty) for (const watcher of watchers.get(part) ?? []) due.add(watcher);
  dirty.clear();
  for (const watcher of due) watcher(state);
}

export function setConnection(phase, detail = "") {
  state.connection = { phase, detail };
  changed("connection");
}

/** Takes a piece of the feed. */
export function take(piece) {
  switch (piece.type) {
    case "picture":
      state.about = piece;
      for (const kind of ["topology", "placement", "events", "load"]) {
        if (piece[kind]) take({ type: kind, ...piece[kind] });
      }
      if (piece.history.length || !state.figures.length) state.figures = merged(state.figures, piece.history);
      changed("about", "figures");
      break;
    case "topology":
      rememberLost(state.topology, piece);
      state.topology = piece;
      changed("topology");
      break;
    case "placement":
      // A coordinator that has just been restarted knows of none: what was seen last stays.
      if (piece.layers.length || !state.placement || state.topology?.state === "running") state.placement = piece;
      changed("placement");
      break;
    case "load":
      state.load = piece;
      changed("load");
      break;
    case "events":
      state.events = piece.events;
      changed("events");
      break;
    case "figures":
      state.figures.push(piece);
      if (state.figures.length > KEPT_FIGURES) state.figures.shift();
      changed("figures");
      break;
  }
}

function merged(ours, theirs) {
  const first = theirs[0]?.unix_s ?? Infinity;
  return [...ours.filter((figure) => figure.unix_s < first), ...theirs].slice(-KEPT_FIGURES);
}

function rememberLost(before, after) {
  const now = performance.now();
  state.ghosts = state.ghosts.filter((ghost) => ghost.until > now);
  if (!before) return;
  const here = new Set(
    [...after.routers, ...after.hosts, ...after.gateways, ...after.joining].map((member) => member.incarnation),
  );
  state.ghosts = state.ghosts.filter((ghost) => !here.has(ghost.member.incarnation));
  const known = new Set(state.ghosts.map((ghost) => ghost.member.incarnation));
  for (const role of ["gateways", "routers", "hosts"]) {
    before[role].forEach((member, index) => {
      if (here.has(member.incarnation) || known.has(member.incarnation)) return;
      state.ghosts.push({ member, role, index, generation: before.generation, until: now + GHOST_MS });
    });
  }
  if (state.ghosts.length) setTimeout(() => changed("topology"), GHOST_MS + 50);
}

/** Copies of every expert: `[layer][expert]` to the hosts that hold it, a host once for each copy. */
export function copiesOf(placement, nExperts) {
  return placement.layers.map((hosts) => {
    const copies = Array.from({ length: nExperts }, () => []);
    hosts.forEach((experts, host) => experts.forEach((expert, slot) => copies[expert]?.push({ host, slot })));
    return copies;
  });
}
