// Draws a disk: cells that are filled by what their sectors are.

const KINDS = ["leaf", "cached", "uncached", "zero"];

let colours = null;
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  colours = null;
});

function colour(name) {
  if (!colours) {
    const style = getComputedStyle(document.documentElement);
    colours = Object.fromEntries(
      [...KINDS, "flash"].map((kind) => [kind, style.getPropertyValue(`--${kind}`).trim()]),
    );
  }
  return colours[name];
}

export const totals = (map) =>
  Object.fromEntries(KINDS.map((kind) => [kind, 512 * map[kind].reduce((sum, n) => sum + n, 0)]));

// Fits the canvas's pixels to the screen's; its width in both kinds.
function fit(canvas, height) {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const tall = Math.max(1, Math.round(height * ratio));
  if (canvas.width !== width || canvas.height !== tall) {
    canvas.width = width;
    canvas.height = tall;
  }
  return { width, height: tall, ratio };
}

// A kind that is there at all is to be seen: it gets at least this share.
const LEAST = 0.18;

// The shares of a cell, by kind, from the bottom up.
function shares(map, cell) {
  const whole = KINDS.reduce((sum, kind) => sum + map[kind][cell], 0);
  if (whole === 0) return [0, 0, 0, 1];
  const raw = KINDS.map((kind) => map[kind][cell] / whole);
  if (raw[0] > 0 && raw[0] < LEAST) {
    const rest = (1 - LEAST) / (1 - raw[0]);
    return raw.map((part, kind) => (kind === 0 ? LEAST : part * rest));
  }
  return raw;
}

function fill(context, map, cell, x, y, width, height) {
  let bottom = y + height;
  for (const [kind, part] of shares(map, cell).entries()) {
    if (part <= 0) continue;
    const tall = part * height;
    context.fillStyle = colour(KINDS[kind]);
    context.fillRect(x, bottom - tall, width, tall);
    bottom -= tall;
  }
}

// One row of cells: a VM in the list.
export function drawStrip(canvas, map) {
  const { width, height } = fit(canvas, 14);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  const cells = map.leaf.length;
  for (let cell = 0; cell < cells; cell += 1) {
    const x = Math.floor((cell * width) / cells);
    fill(context, map, cell, x, 0, Math.floor(((cell + 1) * width) / cells) - x, height);
  }
}

export const COLUMNS = 96;
export const ROWS = 16;

// The large map, row by row. `changed` says when each cell last changed, in ms;
// those that did so lately are lit up.
export function drawGrid(canvas, map, changed, now) {
  const size = canvas.clientWidth / COLUMNS;
  const { width, height, ratio } = fit(canvas, size * ROWS);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  const gap = Math.max(1, Math.round(ratio));
  const at = (i, n, whole) => Math.round((i * whole) / n);
  for (let cell = 0; cell < map.leaf.length; cell += 1) {
    const [row, column] = [Math.floor(cell / COLUMNS), cell % COLUMNS];
    const [x, y] = [at(column, COLUMNS, width), at(row, ROWS, height)];
    const wide = at(column + 1, COLUMNS, width) - x - gap;
    const tall = at(row + 1, ROWS, height) - y - gap;
    fill(context, map, cell, x, y, wide, tall);
    const age = now - changed[cell];
    if (age < 1500) {
      context.globalAlpha = 0.45 * (1 - age / 1500);
      context.fillStyle = colour("flash");
      context.fillRect(x, y, wide, tall);
      context.globalAlpha = 1;
    }
  }
}

// Notes which cells differ from the map before.
export function noteChanges(changed, before, after, now) {
  if (!before || before.leaf.length !== after.leaf.length) {
    return new Array(after.leaf.length).fill(-Infinity);
  }
  return changed.map((when, cell) =>
    KINDS.some((kind) => before[kind][cell] !== after[kind][cell]) ? now : when,
  );
}
