// The key figures with their small curves, and the two charts.

import { fitted } from "./canvas.js";
import { TimeChart } from "./chart.js";
import { byId, count, digits, element, milliseconds, msText, percent, times } from "./format.js";
import { state, watch } from "./state.js";
import { toneOf } from "./events_panel.js";
import { colour, onTheme, series } from "./theme.js";

const SPAN_S = 300;
const SPARK_S = 60;
const tiles = new Map();

export function startFigures() {
  const speed = new TimeChart(byId("speed"), {
    span_s: SPAN_S,
    text: count,
    describe: (data, at) => describe("Tokens per second", data, at, count),
  });
  const gap = new TimeChart(byId("gap"), {
    span_s: SPAN_S,
    text: msText,
    describe: (data, at) => describe("Gap between tokens", data, at, msText),
  });
  for (const [id, title] of [
    ["computed", "Tokens computed"],
    ["delivered", "Tokens delivered"],
    ["gap", "Gap between tokens"],
    ["requests", "Requests"],
    ["cache", "KV cache"],
    ["balance", "Busiest host"],
  ]) {
    const tile = {
      value: element("span"),
      unit: element("span", { class: "unit" }),
      sub: element("p", { class: "sub" }),
      spark: element("canvas", { "aria-hidden": "true" }),
      history: [],
    };
    byId("tiles").append(
      element("div", { class: "tile" }, element("h2", {}, title), element("p", { class: "value" }, tile.value, tile.unit), tile.sub, tile.spark),
    );
    tiles.set(id, tile);
  }
  const showCharts = () => {
    drawCharts(speed, gap);
    drawTiles();
  };
  watch(["figures", "events"], showCharts);
  watch(["load", "topology"], drawTiles);
  onTheme(showCharts);
}

const totalSpeed = (figure) => Object.values(figure.router_tokens_per_s).reduce((a, b) => a + b, 0);

function drawCharts(speed, gap) {
  const figures = state.figures;
  const instants = figures.map((figure) => figure.unix_s);
  const routers = state.topology?.routers ?? [];
  const names = [...new Set(figures.flatMap((figure) => Object.keys(figure.router_tokens_per_s)))];
  const order = (name) => {
    const index = routers.findIndex((router) => router.incarnation === name);
    return index < 0 ? routers.length : index;
  };
  names.sort((a, b) => order(a) - order(b));
  const areas = names.map((name, i) => ({
    name: order(name) < routers.length ? `router ${order(name)}` : "a router that is gone",
    colour: order(name) < routers.length ? series(i) : colour("ink-faint"),
    values: figures.map((figure) => figure.router_tokens_per_s[name] ?? null),
  }));
  const delivered = { name: "delivered", colour: colour("ink"), line: true, values: figures.map((figure) => figure.tokens) };
  const events = state.events.filter((event) => event.outcome !== "under way").map((event) => ({ time: event.unix_s, tone: toneOf(event) }));
  speed.show({ times: instants, series: [...areas, delivered], stacked: true, events });
  const p50 = { name: "median", colour: series(0), values: figures.map((figure) => figure.gap_p50_ms) };
  const p99 = { name: "99 %", colour: series(1), values: figures.map((figure) => figure.gap_p99_ms) };
  gap.show({ times: instants, series: [p99, p50], stacked: false, events });
  keys("speed-keys", [...areas.filter((area) => !area.name.startsWith("a router")), { ...delivered, name: "delivered by this gateway" }]);
  keys("gap-keys", [p50, p99]);
}

function keys(id, list) {
  byId(id).replaceChildren(
    ...list.map(({ name, colour: ink }) => {
      const swatch = element("i");
      swatch.style.background = ink;
      return element("span", {}, swatch, name);
    }),
  );
}

function drawTiles() {
  const { load, figures, topology } = state;
  const recent = figures.slice(-SPARK_S);
  const last = figures.at(-1);
  if (last) {
    set("computed", count(totalSpeed(last)), "tok/s", "by all routers, prompts and answers", recent.map(totalSpeed));
    set("delivered", count(last.tokens), "tok/s", `through this gateway, ${count(last.open)} open`, recent.map((figure) => figure.tokens));
    const withGaps = [...recent].reverse().find((figure) => figure.gap_p50_ms !== null);
    const shown = withGaps && last.unix_s - withGaps.unix_s < 5 ? withGaps : null;
    const [value, unit] = milliseconds(shown?.gap_p50_ms);
    set("gap", value, unit && `${unit} median`, shown ? `99 %: ${msText(shown.gap_p99_ms)}, longest ${msText(shown.gap_max_ms)}` : "no stream runs here", recent.map((figure) => figure.gap_p50_ms));
  }
  if (!load || !topology) return;
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const n = topology.routers.length;
  const [running, queued] = [sum(load.running.slice(0, n)), sum(load.queued.slice(0, n))];
  set("requests", count(running), "running", `${count(queued)} queued, ${count(load.outstanding)} open at gateways`, remember("requests", running));
  const [used, all] = [sum(load.cache_blocks_used.slice(0, n)), sum(load.cache_blocks.slice(0, n))];
  set("cache", all ? percent(used / all) : "–", "used", all ? `${count(used)} of ${count(all)} blocks` : "no figures yet", remember("cache", used));
  if (!topology.hosts.length) set("balance", "–", "", "experts live in the routers", []);
  else set("balance", load.imbalance ? times(load.imbalance) : "–", load.imbalance ? "mean" : "", load.imbalance ? balanceWords(load.imbalance) : "nothing was routed", remember("balance", load.imbalance));
}

const balanceWords = (ratio) => (ratio < 1.1 ? "hosts have even load" : `${digits((1 - 1 / ratio) * 100)} % of the others' time is spent waiting`);

function remember(id, value) {
  const { history } = tiles.get(id);
  history.push(value);
  if (history.length > SPARK_S) history.shift();
  return history;
}

function set(id, value, unit, sub, values) {
  const tile = tiles.get(id);
  tile.value.textContent = value;
  tile.unit.textContent = unit;
  tile.sub.textContent = sub;
  tile.sub.title = sub;
  spark(tile.spark, values);
}

function spark(canvas, values) {
  const context = fitted(canvas);
  if (!context) return;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const most = Math.max(...values.map((value) => value ?? 0), 1e-9);
  context.strokeStyle = context.fillStyle = colour("accent");
  context.lineWidth = 1.25;
  const x = (i) => width - ((values.length - 1 - i) / (SPARK_S - 1)) * width;
  const y = (value) => height - 1 - ((value ?? 0) / most) * (height - 4);
  context.beginPath();
  values.forEach((value, i) => context.lineTo(x(i), y(value)));
  context.stroke();
  if (!values.length) return;
  context.lineTo(x(values.length - 1), height);
  context.lineTo(x(0), height);
  context.globalAlpha = 0.13;
  context.fill();
}

function describe(what, data, at, text) {
  const i = at ?? data.times.length - 1;
  if (i < 0) return `${what}: no figures yet`;
  const when = at === null ? "now" : `${Math.round(data.times.at(-1) - data.times[i])} seconds ago`;
  const parts = data.series.map((one) => `${one.name} ${one.values[i] === null ? "none" : text(one.values[i])}`);
  return `${what}, ${when}: ${parts.join(", ")}. Arrow keys move through time.`;
}
