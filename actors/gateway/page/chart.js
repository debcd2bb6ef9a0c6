// A chart over time on a canvas: stacked areas or lines, dashed lines for events, a cross hair for pointer and keys.

import { fitted } from "./canvas.js";
import { colour } from "./theme.js";

const EDGE = { left: 54, right: 10, top: 8, bottom: 20 };
const FONT = "11px system-ui, sans-serif";

export class TimeChart {
  /**
   * `span_s` is how far back it reaches; `text` renders a value with its unit; `describe` the words for the whole.
   */
  constructor(canvas, { span_s, text, describe }) {
    Object.assign(this, { canvas, span_s, text, describe });
    this.data = { times: [], series: [], stacked: false, events: [] };
    this.cursor = null;
    canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    canvas.addEventListener("pointerleave", () => this.point(null));
    canvas.addEventListener("keydown", (event) => this.onKey(event));
    canvas.addEventListener("blur", () => this.point(null));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** `times` in seconds; `series`: {name, colour, values} with null for none; `events`: {time, tone}. */
  show(data) {
    this.data = data;
    this.draw();
    this.canvas.setAttribute("aria-label", this.describe(data, this.cursor));
  }

  point(x) {
    if (x === null) this.cursor = null;
    else this.cursor = this.nearest(this.now - this.span_s + ((x - EDGE.left) / this.width) * this.span_s);
    this.draw();
  }

  onKey(event) {
    const last = this.data.times.length - 1;
    const at = this.cursor ?? last;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last, Escape: null }[event.key];
    if (to === undefined || last < 0) return;
    this.cursor = to === null ? null : Math.max(0, Math.min(last, to));
    this.draw();
    this.canvas.setAttribute("aria-label", this.describe(this.data, this.cursor));
    event.preventDefault();
  }

  nearest(time) {
    const { times } = this.data;
    let best = null;
    times.forEach((t, i) => {
      if (best === null || Math.abs(t - time) < Math.abs(times[best] - time)) best = i;
    });
    return best;
  }

  get width() {
    return this.canvas.clientWidth - EDGE.left - EDGE.right;
  }

  get height() {
    return this.canvas.clientHeight - EDGE.top - EDGE.bottom;
  }

  draw() {
    const { canvas, data } = this;
    const context = fitted(canvas);
    if (!context) return;
    context.font = FONT;
    this.now = data.times.at(-1) ?? Date.now() / 1000;
    this.top = niceCeiling(this.largest());
    this.frame(context);
    context.save();
    context.beginPath();
    context.rect(EDGE.left, 0, this.width, canvas.clientHeight);
    context.clip();
    this.drawEvents(context);
    this.drawSeries(context);
    context.restore();
    if (this.cursor !== null && this.cursor < data.times.length) this.drawCursor(context);
    else if (!data.series.some((one) => one.values.some((value) => value !== null))) this.note(context, "no figures yet");
  }

  x = (time) => EDGE.left + ((time - this.now + this.span_s) / this.span_s) * this.width;
  y = (value) => EDGE.top + this.height * (1 - Math.min(value, this.top) / this.top);

  largest() {
    const { times, series, stacked } = this.data;
    let most = 0;
    times.forEach((time, i) => {
      if (time < this.now - this.span_s) return;
      const values = series.filter((one) => !one.line || !stacked).map((one) => one.values[i] ?? 0);
      const lines = series.map((one) => one.values[i] ?? 0);
      most = Math.max(most, ...lines, stacked ? values.reduce((a, b) => a + b, 0) : 0);
    });
    return most;
  }

  frame(context) {
    context.fillStyle = colour("ink-faint");
    context.strokeStyle = colour("line");
    context.lineWidth = 1;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const share of [0, 0.5, 1]) {
      const y = Math.round(this.y(this.top * share)) + 0.5;
      context.beginPath();
      context.moveTo(EDGE.left, y);
      context.lineTo(EDGE.left + this.width, y);
      context.stroke();
      context.fillText(this.text(this.top * share), EDGE.left - 6, y);
    }
    context.textBaseline = "alphabetic";
    const bottom = this.canvas.clientHeight - 5;
    const everyS = this.width < 240 ? 120 : 60;
    for (let back = 0; back <= this.span_s; back += everyS) {
      context.textAlign = back === 0 ? "right" : back >= this.span_s ? "left" : "center";
      context.fillText(back ? `−${back / 60} min` : "now", this.x(this.now - back), bottom);
    }
  }

  drawEvents(context) {
    context.setLineDash([3, 3]);
    for (const { time, tone } of this.data.events) {
      if (time < this.now - this.span_s) continue;
      context.strokeStyle = colour(tone === "info" ? "accent" : tone);
      context.beginPath();
      context.moveTo(this.x(time), EDGE.top);
      context.lineTo(this.x(time), EDGE.top + this.height);
      context.stroke();
    }
    context.setLineDash([]);
  }

  drawSeries(context) {
    const { times, series, stacked } = this.data;
    const below = times.map(() => 0);
    for (const one of series) {
      const isArea = stacked && !one.line;
      const tops = one.values.map((value, i) => (value === null ? null : isArea ? below[i] + value : value));
      const runs = runsOf(times, tops);
      if (isArea) {
        context.fillStyle = one.colour;
        context.globalAlpha = 0.28;
        for (const run of runs) {
          context.beginPath();
          run.forEach((i) => context.lineTo(this.x(times[i]), this.y(tops[i])));
          [...run].reverse().forEach((i) => context.lineTo(this.x(times[i]), this.y(below[i])));
          context.fill();
        }
        context.globalAlpha = 1;
        tops.forEach((value, i) => (below[i] = value ?? below[i]));
      }
      context.strokeStyle = one.colour;
      context.lineWidth = 1.5;
      context.setLineDash(one.line && stacked ? [5, 3] : []);
      for (const run of runs) {
        context.beginPath();
        run.forEach((i) => context.lineTo(this.x(times[i]), this.y(tops[i])));
        if (run.length === 1) context.arc(this.x(times[run[0]]), this.y(tops[run[0]]), 0.7, 0, 7);
        context.stroke();
      }
      context.setLineDash([]);
    }
  }

  drawCursor(context) {
    const { times, series } = this.data;
    const i = this.cursor;
    const x = this.x(times[i]);
    context.strokeStyle = colour("ink-soft");
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x, EDGE.top);
    context.lineTo(x, EDGE.top + this.height);
    context.stroke();
    const words = [
      `−${Math.round(this.now - times[i])} s`,
      ...series.map((one) => `${one.name} ${one.values[i] === null ? "–" : this.text(one.values[i])}`),
    ];
    const width = Math.max(...words.map((word) => context.measureText(word).width)) + 16;
    const left = Math.min(x + 8, EDGE.left + this.width - width);
    context.fillStyle = colour("raised");
    context.strokeStyle = colour("line-strong");
    context.beginPath();
    context.roundRect(left, EDGE.top, width, words.length * 15 + 8, 5);
    context.fill();
    context.stroke();
    context.textAlign = "left";
    context.textBaseline = "top";
    words.forEach((word, row) => {
      context.fillStyle = colour(row ? "ink" : "ink-soft");
      context.fillText(word, left + 8, EDGE.top + 6 + 15 * row);
    });
  }

  note(context, text) {
    context.fillStyle = colour("ink-faint");
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(text, EDGE.left + this.width / 2, EDGE.top + this.height / 2);
  }
}

/** Indices of neighbouring values without a hole: of none, or of more than 3 s. */
function runsOf(times, values) {
  const runs = [];
  let run = [];
  values.forEach((value, i) => {
    if (value === null || (run.length && times[i] - times[i - 1] > 3)) {
      if (run.length) runs.push(run);
      run = [];
    }
    if (value !== null) run.push(i);
  });
  if (run.length) runs.push(run);
  return runs;
}

function niceCeiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 8, 10].find((n) => n * power >= value) * power;
}
