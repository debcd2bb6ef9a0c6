// The heat map's colours: viridis, whose lightness rises evenly, so that it reads in grey and with any colour sight.
// On a light ground it runs the other way, so that little load looks like little.

import { isDark } from "./theme.js";

const STOPS = [
  [68, 1, 84], [72, 36, 117], [65, 68, 135], [53, 95, 141], [42, 120, 142],
  [33, 145, 140], [34, 168, 132], [68, 191, 112], [122, 209, 81], [189, 223, 38], [253, 231, 37],
];
const N = 256;
const tables = new Map();

/** 256 colours as 32-bit pixels, least load first. */
export function pixels() {
  const dark = isDark();
  if (!tables.has(dark)) tables.set(dark, table(dark));
  return tables.get(dark);
}

/** Where a load of `ratio` times the mean stands on the scale that ends at `most`: 0 to 255. */
export const place = (ratio, most) => Math.min(N - 1, Math.round(Math.sqrt(ratio / most) * (N - 1)));

/** Whether dark text reads better on this colour. */
export const isLight = (index) => (isDark() ? index > 140 : index < 110);

function table(dark) {
  const made = new Uint32Array(N);
  const bytes = new Uint8ClampedArray(made.buffer);
  for (let i = 0; i < N; i += 1) {
    const at = ((dark ? i : N - 1 - i) / (N - 1)) * (STOPS.length - 1);
    const low = Math.min(STOPS.length - 2, Math.floor(at));
    for (let c = 0; c < 3; c += 1) {
      bytes[4 * i + c] = STOPS[low][c] + (STOPS[low + 1][c] - STOPS[low][c]) * (at - low);
    }
    bytes[4 * i + 3] = 255;
  }
  return made;
}
