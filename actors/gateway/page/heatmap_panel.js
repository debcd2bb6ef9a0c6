// The heat map with what surrounds it: views, selection by pointer and keys, what is said of a cell, the hottest experts.

import { byId, count, element, percent, plural, times } from "./format.js";
import { HeatMap } from "./heatmap.js";
import { pixels, place } from "./scale.js";
import { changed, copiesOf, state, watch } from "./state.js";
import { onTheme } from "./theme.js";

const N_HOTTEST = 6;
const KEPT_MEASURES = 500;
const stage = byId("map-stage");
const map = new HeatMap(byId("map-cells"), byId("map-marks"));

let view = "experts";
let layout = { key: "", hosts: [], copies: [], slots: [] };
let ratios = new Float32Array(0);
let means = [];
let chosen = null;
let hovered = null;
let shownHost = null;

export function startHeatMap() {
  for (const input of document.querySelectorAll('input[name="map-view"]')) {
    input.addEventListener("change", () => {
      view = input.value;
      chosen = hovered = null;
      redraw();
    });
  }
  stage.addEventListener("pointermove", (event) => hover(event));
  stage.addEventListener("pointerleave", () => {
    hovered = null;
    mark();
  });
  stage.addEventListener("click", (event) => {
    hover(event);
    chosen = hovered;
    mark();
  });
  stage.addEventListener("keydown", onKey);
  stage.addEventListener("focus", () => {
    if (stage.matches(":focus-visible")) chosen ??= hottest(1)[0] ?? null;
    mark();
  });
  const resized = new ResizeObserver(() => redraw());
  resized.observe(stage);
  resized.observe(byId("topology"));
  onTheme(() => redraw());
  watch(["about", "placement"], redraw);
  watch(["load"], update);
  watch(["host"], () => {
    shownHost = state.host ?? null;
    mark();
  });
}

/** Layers and experts that there are figures for. */
function shape() {
  const nExperts = state.about?.n_experts ?? 0;
  const nLayers = state.placement?.layers.length || (nExperts ? Math.floor((state.load?.expert_rows.length ?? 0) / nExperts) : 0);
  return { nExperts, nLayers };
}

function redraw() {
  const { nExperts, nLayers } = shape();
  const empty = !state.about ? "Waiting for the first figures" : nExperts === 0 ? "This model is dense: it has no experts." : !nLayers ? "No generation is live yet." : "";
  const note = byId("map-empty");
  note.hidden = !empty;
  note.textContent = empty;
  map.cells.hidden = map.marks.hidden = Boolean(empty);
  if (empty) return;
  layOut(nExperts, nLayers);
  update();
}

function layOut(nExperts, nLayers) {
  const layers = state.placement?.layers ?? [];
  const hosts = layers[0]?.length ?? 0;
  const input = document.querySelector('input[name="map-view"][value="hosts"]');
  input.disabled = !hosts;
  if (!hosts && view === "hosts") {
    view = "experts";
    document.querySelector('input[name="map-view"][value="experts"]').checked = true;
  }
  layout = { nExperts, nLayers, copies: hosts ? copiesOf(state.placement, nExperts) : [], columns: nExperts, groups: [] };
  if (view === "hosts") {
    const widths = Array.from({ length: hosts }, (_, host) => Math.max(...layers.map((layer) => layer[host].length)));
    let from = 0;
    for (const [host, width] of widths.entries()) {
      layout.groups.push({ label: `host ${host}`, host, from, to: from + width });
      from += width;
    }
    layout.columns = from;
  }
  const height = map.layOut(layout.columns, nLayers, layout.groups, stage.clientWidth, wantedHeight());
  stage.style.height = `${Math.ceil(height) + 2}px`;
  stage.setAttribute("aria-rowcount", nLayers);
  stage.setAttribute("aria-colcount", layout.columns);
  const noun = view === "hosts" ? plural(layout.columns, "slot") : plural(nExperts, "expert");
  byId("map-sub").textContent = `rows routed within ${state.about.window_s} s, over an expert's mean; ${plural(nLayers, "MoE layer")} × ${noun}`;
}

/** As tall as the topology beside it, within reason. */
function wantedHeight() {
  const beside = byId("topology");
  const isBeside = beside.getBoundingClientRect().left > stage.getBoundingClientRect().right;
  return isBeside ? Math.max(380, Math.min(900, beside.clientHeight - 110)) : 380;
}

/** What stands in a cell; null for an empty slot. */
function cellAt({ row, column }) {
  if (view === "experts") return { layer: row, expert: column };
  const group = layout.groups.find(({ from, to }) => column >= from && column < to);
  const expert = state.placement.layers[row][group.host][column - group.from];
  return expert === undefined ? null : { layer: row, expert, host: group.host, slot: column - group.from };
}

const rowsOf = (layer, expert) => state.load?.expert_rows[layer * layout.nExperts + expert] ?? 0;
const ratioOf = (layer, expert) => (means[layer] ? rowsOf(layer, expert) / means[layer] : 0);
const copiesIn = (layer, expert) => layout.copies[layer]?.[expert] ?? [];

function update() {
  const { nExperts, nLayers } = shape();
  if (!nLayers || !state.about) return;
  if (layout.nLayers !== nLayers) layOut(nExperts, nLayers);
  performance.mark("map-update-begin");
  const rows = state.load?.expert_rows ?? [];
  means = Array.from({ length: nLayers }, (_, layer) => {
    let sum = 0;
    for (let e = layer * nExperts; e < (layer + 1) * nExperts; e += 1) sum += rows[e] ?? 0;
    return sum / nExperts;
  });
  if (ratios.length !== layout.columns * nLayers) ratios = new Float32Array(layout.columns * nLayers);
  if (view === "experts") {
    for (let i = 0; i < ratios.length; i += 1) ratios[i] = means[Math.floor(i / nExperts)] ? (rows[i] ?? 0) / means[Math.floor(i / nExperts)] : 0;
  } else {
    ratios.fill(-1);
    for (let layer = 0; layer < nLayers; layer += 1) {
      for (const { host, from } of layout.groups) {
        state.placement.layers[layer][host].forEach((expert, slot) => {
          ratios[layer * layout.columns + from + slot] = ratioOf(layer, expert) / Math.max(1, copiesIn(layer, expert).length);
        });
      }
    }
  }
  map.draw(ratios);
  drawLegend();
  mark();
  showHottest();
  performance.measure("map-update", "map-update-begin");
  performance.clearMarks("map-update-begin");
  if (performance.getEntriesByName("map-update").length > KEPT_MEASURES) performance.clearMeasures();
}

function mark() {
  if (!layout.nLayers || map.marks.hidden) return;
  const { nLayers, columns } = layout;
  const copies = layout.copies.length ? new Uint8Array(nLayers * columns) : null;
  const dimmed = shownHost !== null && layout.copies.length ? new Uint8Array(nLayers * columns) : null;
  for (let row = 0; row < nLayers && copies; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const cell = cellAt({ row, column });
      if (!cell) continue;
      const held = copiesIn(cell.layer, cell.expert);
      copies[row * columns + column] = held.length;
      if (dimmed) dimmed[row * columns + column] = !(cell.host === undefined ? held.some(({ host }) => host === shownHost) : cell.host === shownHost);
    }
  }
  map.mark({ copies, dimmed, chosen: hovered ?? chosen });
  say();
}

function say() {
  const out = byId("map-said");
  const at = hovered ?? chosen;
  const cell = at && cellAt(at);
  if (!at) {
    out.replaceChildren(shownHost === null ? "Point at a cell, or use the arrow keys." : `Only what host ${shownHost} holds is lit.`);
    return;
  }
  if (!cell) {
    out.replaceChildren("an empty slot");
    return;
  }
  const { layer, expert } = cell;
  const held = copiesIn(layer, expert);
  const share = means[layer] ? rowsOf(layer, expert) / (means[layer] * layout.nExperts) : 0;
  const where = held.map(({ host, slot }) => `host ${host} slot ${slot}`).join(", ");
  out.replaceChildren(
    element("b", {}, `Layer ${layer}, expert ${expert}`),
    ` · ${times(ratioOf(layer, expert))} mean · ${count(rowsOf(layer, expert))} rows, ${percent(share)} of the layer`,
    held.length ? ` · ${held.length === 1 ? "one copy" : plural(held.length, "copy", "copies")}: ${where}` : "",
  );
  const now = byId("map-cell");
  now.textContent = out.textContent;
  now.setAttribute("aria-colindex", at.column + 1);
  byId("map-row").setAttribute("aria-rowindex", at.row + 1);
}

function drawLegend() {
  const context = byId("legend").getContext("2d");
  const image = new ImageData(256, 1);
  new Uint32Array(image.data.buffer).set(pixels());
  context.putImageData(image, 0, 0);
  byId("legend-most").textContent = times(map.most);
  byId("legend-mean").style.left = `${(place(1, map.most) / 255) * 100}%`;
}

function hottest(n) {
  const { nExperts, nLayers } = layout;
  const best = [];
  for (let layer = 0; layer < nLayers; layer += 1) {
    for (let expert = 0; expert < nExperts; expert += 1) {
      const ratio = ratioOf(layer, expert);
      if (ratio <= 0 || (best.length === n && ratio <= best[n - 1].ratio)) continue;
      best.push({ layer, expert, ratio });
      best.sort((a, b) => b.ratio - a.ratio);
      best.length = Math.min(best.length, n);
    }
  }
  return best.map(({ layer, expert, ratio }) => ({ row: layer, column: columnOf(layer, expert), expert, ratio }));
}

function columnOf(layer, expert) {
  if (view === "experts") return expert;
  const [first] = copiesIn(layer, expert);
  return first ? layout.groups[first.host].from + first.slot : 0;
}

function showHottest() {
  const group = byId("hot");
  const best = hottest(N_HOTTEST);
  while (group.children.length > best.length) group.lastChild.remove();
  best.forEach((cell, i) => {
    if (!group.children[i]) group.append(element("button", { type: "button" }));
    const button = group.children[i];
    const n = copiesIn(cell.row, cell.expert).length;
    button.replaceChildren(`L${cell.row} E${cell.expert} `, element("b", {}, times(cell.ratio)), n > 1 ? ` · ${n} copies` : "");
    button.title = "Show it in the map";
    button.onclick = () => choose(cell);
  });
  if (!best.length) group.replaceChildren(element("span", { class: "sub" }, "Nothing was routed within the window."));
}

function choose({ row, column }) {
  chosen = { row, column };
  hovered = null;
  mark();
}

function hover(event) {
  const box = stage.getBoundingClientRect();
  const cell = map.at(event.clientX - box.left, event.clientY - box.top);
  if (cell?.row === hovered?.row && cell?.column === hovered?.column) return;
  hovered = cell;
  mark();
}

function onKey(event) {
  const { row, column } = chosen ?? { row: 0, column: 0 };
  const [lastRow, lastColumn] = [layout.nLayers - 1, layout.columns - 1];
  const moves = {
    ArrowLeft: [row, column - 1],
    ArrowRight: [row, column + 1],
    ArrowUp: [row - 1, column],
    ArrowDown: [row + 1, column],
    Home: [event.ctrlKey ? 0 : row, 0],
    End: [event.ctrlKey ? lastRow : row, lastColumn],
    PageUp: [row - 8, column],
    PageDown: [row + 8, column],
  };
  const clamp = (value, last) => Math.max(0, Math.min(last, value));
  if (event.key in moves) choose({ row: clamp(moves[event.key][0], lastRow), column: clamp(moves[event.key][1], lastColumn) });
  else if (event.key === "Enter" && hottest(1).length) choose(hottest(1)[0]);
  else if (event.key === "Escape") {
    chosen = hovered = null;
    state.host = null;
    changed("host", "topology");
    mark();
  } else return;
  event.preventDefault();
}
