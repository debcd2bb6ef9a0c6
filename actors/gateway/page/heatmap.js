// Draws a grid of cells in one go: a pixel a cell, scaled up. Marks that do not change with load lie on a canvas above.

import { isLight, pixels, place } from "./scale.js";
import { colour } from "./theme.js";

const GUTTER = { left: 34, top: 20 };
const MOST_CELL = { width: 72, height: 40 };
/** From this on, in device pixels, all cells get the same whole number of them. */
const WHOLE_CELL = 8;
const FONT = "system-ui, sans-serif";

export class HeatMap {
  /** `cells` and `marks` are canvases, the second above the first. */
  constructor(cells, marks) {
    this.cells = cells;
    this.marks = marks;
    this.pixel = document.createElement("canvas");
    this.grid = { columns: 0, rows: 0, groups: [], cell: { width: 0, height: 0 }, scale: 1 };
    this.most = 1;
  }

  /** Makes room. `groups` are {label, from, to} over the columns; sizes in CSS pixels. Gives the height taken. */
  layOut(columns, rows, groups, width, height) {
    const scale = devicePixelRatio || 1;
    const cell = {
      width: cellSize((width - GUTTER.left) * scale, columns, MOST_CELL.width * scale),
      height: cellSize((height - GUTTER.top) * scale, rows, MOST_CELL.height * scale),
    };
    this.grid = { columns, rows, groups, cell, scale };
    this.pixel.width = columns;
    this.pixel.height = rows;
    this.image = new ImageData(columns, rows);
    this.words = new Uint32Array(this.image.data.buffer);
    size(this.cells, columns * cell.width, rows * cell.height, scale);
    this.cells.style.left = `${GUTTER.left}px`;
    this.cells.style.top = `${GUTTER.top}px`;
    size(this.marks, columns * cell.width + GUTTER.left * scale, rows * cell.height + GUTTER.top * scale, scale);
    return GUTTER.top + (rows * cell.height) / scale;
  }

  /** Draws every cell. `ratios` are loads over the mean, row after row; negative ones are empty places. */
  draw(ratios) {
    performance.mark("map-begin");
    const { columns, rows, cell } = this.grid;
    let most = 1;
    for (const ratio of ratios) if (ratio > most) most = ratio;
    this.most = most;
    const table = pixels();
    for (let i = 0; i < ratios.length; i += 1) this.words[i] = ratios[i] < 0 ? 0 : table[place(ratios[i], most)];
    this.pixel.getContext("2d").putImageData(this.image, 0, 0);
    const context = this.cells.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, this.cells.width, this.cells.height);
    context.drawImage(this.pixel, 0, 0, columns, rows, 0, 0, columns * cell.width, rows * cell.height);
    if (this.hasText) this.write(context, ratios);
    performance.measure("map-redraw", "map-begin");
    performance.clearMarks("map-begin");
  }

  get hasText() {
    const { cell, scale } = this.grid;
    return cell.width >= 34 * scale && cell.height >= 17 * scale;
  }

  /** Draws labels, lines between cells, copies, what is dimmed and what is chosen. */
  mark({ copies, dimmed, chosen }) {
    const { columns, rows, groups, cell, scale } = this.grid;
    const context = this.marks.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.marks.width, this.marks.height);
    context.translate(GUTTER.left * scale, GUTTER.top * scale);
    this.label(context);
    if (dimmed) this.dim(context, dimmed);
    context.fillStyle = colour("panel");
    if (cell.width >= 8 * scale) for (let x = 1; x < columns; x += 1) context.fillRect(x * cell.width - scale, 0, scale, rows * cell.height);
    if (cell.height >= 8 * scale) for (let y = 1; y < rows; y += 1) context.fillRect(0, y * cell.height - scale, columns * cell.width, scale);
    for (const group of groups.slice(1)) context.fillRect(group.from * cell.width - 2 * scale, 0, 3 * scale, rows * cell.height);
    if (copies) this.dot(context, copies);
    if (chosen) {
      const [x, y] = [chosen.column * cell.width, chosen.row * cell.height];
      context.lineWidth = 2 * scale;
      context.strokeStyle = colour("panel");
      context.strokeRect(x - 2 * scale, y - 2 * scale, cell.width + 4 * scale, cell.height + 4 * scale);
      context.strokeStyle = colour("ink");
      context.strokeRect(x - scale, y - scale, cell.width + 2 * scale, cell.height + 2 * scale);
    }
  }

  /** The cell below a point of the stage, in CSS pixels; null beside the cells. */
  at(x, y) {
    const { columns, rows, cell, scale } = this.grid;
    const column = Math.floor(((x - GUTTER.left) * scale) / cell.width);
    const row = Math.floor(((y - GUTTER.top) * scale) / cell.height);
    return column >= 0 && row >= 0 && column < columns && row < rows ? { column, row } : null;
  }

  write(context, ratios) {
    const { columns, cell, scale } = this.grid;
    context.font = `${11 * scale}px ${FONT}`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let i = 0; i < ratios.length; i += 1) {
      if (ratios[i] < 0) continue;
      context.fillStyle = isLight(place(ratios[i], this.most)) ? "#10141a" : "#f3f5f8";
      const [x, y] = [(i % columns) * cell.width, Math.floor(i / columns) * cell.height];
      context.fillText(ratios[i].toFixed(2), x + cell.width / 2, y + cell.height / 2 + scale);
    }
  }

  label(context) {
    const { columns, rows, groups, cell, scale } = this.grid;
    context.fillStyle = colour("ink-faint");
    context.font = `${11 * scale}px ${FONT}`;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const everyRow = step((16 * scale) / cell.height);
    for (let y = 0; y < rows; y += everyRow) context.fillText(`L${y}`, -8 * scale, (y + 0.5) * cell.height);
    context.textBaseline = "alphabetic";
    context.textAlign = "center";
    if (groups.length) {
      for (const { label, from, to } of groups) {
        const width = (to - from) * cell.width;
        if (width > 12 * scale) context.fillText(label, from * cell.width + width / 2, -7 * scale, width);
      }
      return;
    }
    const everyColumn = step((30 * scale) / cell.width);
    for (let x = 0; x < columns; x += everyColumn) context.fillText(String(x), (x + 0.5) * cell.width, -7 * scale);
  }

  dim(context, dimmed) {
    const { columns, cell } = this.grid;
    context.globalAlpha = 0.82;
    context.fillStyle = colour("panel");
    dimmed.forEach((is, i) => {
      if (is) context.fillRect((i % columns) * cell.width, Math.floor(i / columns) * cell.height, cell.width, cell.height);
    });
    context.globalAlpha = 1;
  }

  dot(context, copies) {
    const { columns, cell, scale } = this.grid;
    const large = cell.width >= 14 * scale && cell.height >= 10 * scale;
    const small = Math.max(1.5, Math.min(cell.width, cell.height, 6 * scale) * 0.62);
    copies.forEach((n, i) => {
      if (n < 2) return;
      const [x, y] = [(i % columns) * cell.width, Math.floor(i / columns) * cell.height];
      context.fillStyle = colour("copy");
      if (!large) {
        context.fillRect(x + (cell.width - small) / 2, y + (cell.height - small) / 2, small, small);
        return;
      }
      context.lineWidth = 2 * scale;
      context.strokeStyle = colour("panel");
      for (let k = 0; k < n; k += 1) {
        context.beginPath();
        context.arc(x + cell.width - (6 + 7 * k) * scale, y + 6 * scale, 2.6 * scale, 0, 7);
        context.stroke();
        context.fill();
      }
    });
  }
}

function cellSize(room, n, most) {
  const even = Math.max(1, Math.min(most, room / n));
  return even >= WHOLE_CELL ? Math.floor(even) : even;
}

function size(canvas, width, height, scale) {
  canvas.width = Math.round(width);
  canvas.height = Math.round(height);
  canvas.style.width = `${canvas.width / scale}px`;
  canvas.style.height = `${canvas.height / scale}px`;
}

/** The next of 1, 2, 4, 8, ... or of 5, 10, 50, ... that is at least `least`. */
function step(least) {
  return [1, 2, 4, 8, 16, 32, 64, 128, 256].find((n) => n >= least) ?? 512;
}
