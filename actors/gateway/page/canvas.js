// A canvas's size: as many pixels as the screen has for it, drawn on in CSS pixels.

/** Fits the canvas's pixels to the screen and empties it; its context in CSS pixels, null while it is not shown. */
export function fitted(canvas) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width) return null;
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return context;
}
