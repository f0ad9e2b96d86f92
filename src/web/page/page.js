// The page: asks the daemon every second, shows what it said.

import { COLUMNS, ROWS, drawGrid, drawStrip, noteChanges, totals } from "./map.js";
import {
  bytes, count, duration, hostRates, micros, perSecond, quantile, share, vmRates,
} from "./numbers.js";

const EVERY_MS = 1000;
// Strips are asked for one after the other, so many a second: a map costs the
// daemon some work, and a host may have a thousand VMs.
const STRIPS_A_TURN = 6;
const STRIP_CELLS = 160;

const $ = (id) => document.getElementById(id);
const text = (id, value) => {
  const element = $(id);
  if (element.textContent !== value) element.textContent = value;
};

let before = null; // the reading before: { stats, at, vms: their rates }
let sort = { key: "name", down: false };
let chosen = vmOfLink();
let shown = null; // the chosen VM's map: { name, map, changed }
const rows = new Map(); // VM → { row, cells, canvas, strip }

// The VM that the address names; null where it names none, or is no address.
function vmOfLink() {
  try {
    return decodeURIComponent(location.hash.replace(/^#(vm=)?/, "")) || null;
  } catch {
    return null;
  }
}

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store", credentials: "omit" });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

const pathOfMap = (name, cells) => `v1/vms/${encodeURIComponent(name)}/map?cells=${cells}`;

// ---- the host ----

function showHost(stats, host, vms) {
  text("version", stats.version);
  const connected = stats.vms.filter((vm) => vm.connected).length;
  text("vms-connected", `${connected}`);
  text("vms-all", `of ${stats.vms.length}`);
  const plural = stats.roots.length === 1 ? "" : "s";
  text("vms-note", `connected, on ${stats.roots.length} root${plural}`);
  text("iops", count(host.iops));
  const busiest = vms.reduce((most, vm) => (vm.iops > (most?.iops ?? 0) ? vm : most), null);
  text("busiest", busiest ? `most by ${busiest.name}` : "all idle");
  text("read", bytes(host.read));
  text("read-note", "by all VMs");
  text("written", bytes(host.written));
  text("written-note", `leaves grow ${perSecond(vms.reduce((sum, vm) => sum + vm.growth, 0))}`);
  text("cache-used", bytes(stats.cache.used_bytes));
  $("cache-meter").style.width = `${(100 * stats.cache.used_bytes) / stats.cache.size_bytes}%`;
  text("cache-note", `of ${bytes(stats.cache.size_bytes)}; ${count(host.fills)} filled/s, ${count(host.evictions)} evicted/s`);
  const asked = host.hits + host.misses;
  text("hit-ratio", asked > 0 ? share(host.hits, asked) : share(stats.cache.hits, stats.cache.hits + stats.cache.misses));
  text("hits-note", asked > 0 ? "of lookups, now" : "of lookups, ever");
  showReactors(host.reactors);
  showRooms(stats.file_systems);
}

function showReactors(reactors) {
  const list = $("reactors");
  while (list.children.length > reactors.length) list.lastChild.remove();
  while (list.children.length < reactors.length) {
    const row = document.createElement("div");
    row.className = "reactor";
    const [name, bar, value] = ["span", "div", "b"].map((tag) => document.createElement(tag));
    name.textContent = list.children.length;
    bar.className = "bar";
    for (const kind of ["busy", "polling"]) {
      const part = document.createElement("i");
      part.className = kind;
      bar.append(part);
    }
    row.append(name, bar, value);
    list.append(row);
  }
  for (const [i, reactor] of reactors.entries()) {
    const [, bar, value] = list.children[i].children;
    bar.children[0].style.width = `${100 * reactor.busy}%`;
    bar.children[1].style.width = `${100 * reactor.polling}%`;
    value.textContent = `${Math.round(100 * reactor.busy)} %`;
  }
}

function showFailed(stats) {
  const roots = stats.failed_roots.map((one) => `root ${one.name} is not served: ${one.reason}`);
  const vms = stats.failed_vms.map((one) => `VM ${one.name} is not served: ${one.reason}`);
  const failing = stats.failing.map((one) => `${one.part} ${one.name}: ${one.problem}`);
  const lines = [...roots, ...vms, ...failing];
  $("failed").hidden = lines.length === 0;
  showLines($("failed-rows"), lines);
}

function showLines(list, lines) {
  while (list.children.length > lines.length) list.lastChild.remove();
  while (list.children.length < lines.length) list.append(document.createElement("li"));
  lines.forEach((line, i) => {
    if (list.children[i].textContent !== line) list.children[i].textContent = line;
  });
}

function showRooms(disks) {
  const room = (disk) => {
    if (disk.silent_seconds !== null) return `no answer for ${disk.silent_seconds} s`;
    if (disk.free_bytes === null) return "not known";
    return `${bytes(disk.free_bytes)} of ${bytes(disk.size_bytes)}`;
  };
  const list = $("rooms");
  showLines(list, disks.map((disk) => `${disk.path}: ${room(disk)}`));
  disks.forEach((disk, i) => list.children[i].classList.toggle("silent", disk.silent_seconds !== null));
}

// ---- the list ----

const COLUMNS_OF_LIST = ["name", "root", "iops", "read", "written", "p50", "p99", "hits", "leaf", "growth"];

const visible = new Set();
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const name = entry.target.dataset.vm;
    if (entry.isIntersecting) visible.add(name);
    else visible.delete(name);
  }
});

function makeRow(name) {
  const row = document.createElement("tr");
  row.dataset.vm = name;
  row.tabIndex = 0;
  const cells = COLUMNS_OF_LIST.map((column) => {
    const cell = row.insertCell();
    if (column === "name" || column === "root") cell.className = "text";
    return cell;
  });
  const last = row.insertCell();
  last.className = "map";
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `the disk of ${name}`);
  last.append(canvas);
  row.addEventListener("click", () => choose(name));
  row.addEventListener("keydown", (event) => {
    if (event.key === "Enter") choose(name);
  });
  observer.observe(row);
  return { row, cells, canvas, strip: null };
}

function showList(stats, vms) {
  const wanted = $("filter").value.trim().toLowerCase();
  const matching = vms.filter(
    (vm) => vm.name.toLowerCase().includes(wanted) || vm.root.toLowerCase().includes(wanted),
  );
  const sign = sort.down ? -1 : 1;
  matching.sort((a, b) => {
    const [x, y] = [a[sort.key] ?? -1, b[sort.key] ?? -1];
    const order = typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
    return sign * order || a.name.localeCompare(b.name, undefined, { numeric: true });
  });
  const byName = new Map(stats.vms.map((vm) => [vm.name, vm]));
  for (const [name, entry] of rows) {
    if (!byName.has(name)) {
      observer.unobserve(entry.row);
      visible.delete(name);
      entry.row.remove();
      rows.delete(name);
    }
  }
  const body = $("rows");
  const there = new Set();
  matching.forEach((rates, place) => {
    if (!rows.has(rates.name)) rows.set(rates.name, makeRow(rates.name));
    const { row, cells } = rows.get(rates.name);
    there.add(row);
    const vm = byName.get(rates.name);
    const values = [
      rates.name,
      rates.root,
      count(rates.iops),
      perSecond(rates.read),
      perSecond(rates.written),
      micros(rates.p50),
      micros(rates.p99),
      rates.hits === null ? "–" : share(rates.hits, 1),
      vm.leaf ? bytes(rates.leaf) : "none",
      rates.growth > 0 ? `+${perSecond(rates.growth)}` : "–",
    ];
    values.forEach((value, i) => {
      if (cells[i].textContent !== value) cells[i].textContent = value;
    });
    row.className = [
      vm.connected ? "" : "away",
      vm.failing || vm.leaf?.failed ? "failed" : "",
      rates.name === chosen ? "chosen" : "",
    ].join(" ");
    if (body.children[place] !== row) body.insertBefore(row, body.children[place] ?? null);
  });
  for (const row of [...body.children]) if (!there.has(row)) row.remove();
  text("list-note", matching.length === vms.length ? "" : `${matching.length} of ${vms.length} VMs`);
}

let turn = 0;
async function showStrips() {
  const names = [...visible].filter((name) => rows.has(name)).sort();
  for (let i = 0; i < Math.min(STRIPS_A_TURN, names.length); i += 1) {
    const name = names[turn++ % names.length];
    try {
      const entry = rows.get(name);
      if (!entry) continue;
      entry.strip = await ask(pathOfMap(name, STRIP_CELLS));
      drawStrip(entry.canvas, entry.strip);
    } catch {
      // Detached meanwhile; the next reading of the stats says so.
    }
  }
}

// ---- the chosen VM ----

function choose(name) {
  chosen = name;
  shown = null;
  history.replaceState(null, "", `#vm=${encodeURIComponent(name)}`);
  for (const [other, { row }] of rows) row.classList.toggle("chosen", other === name);
  const vm = before?.stats.vms.find((one) => one.name === name);
  if (vm) {
    showFacts(vm);
    // A failure shows in the next turn.
    showMap().catch(() => {});
  }
}

function who(client) {
  if (!client) return "";
  const pid = client.pid === null ? "" : `, pid ${client.pid}`;
  return `: ${client.command ?? "a process"}${pid}`;
}

function showFacts(vm) {
  text("detail-name", vm.name);
  const leaf = vm.leaf ? `leaf holds ${bytes(vm.leaf.held_bytes)}, occupies ${bytes(vm.leaf.allocated_bytes)}` : "no leaf";
  const state = vm.leaf?.failed ? "its leaf FAILED a sync and takes no writes" : vm.connected ? `connected${who(vm.client)}` : "not connected";
  text("detail-note", `${bytes(vm.size)} on root ${vm.root} · ${leaf} · ${state} · reactor ${vm.reactor}`);
  const from = vm.read_sectors;
  const whole = from.leaf + from.cache + from.root + from.zero;
  for (const kind of ["leaf", "cache", "root", "zero"]) {
    $(`from-${kind}`).style.width = whole > 0 ? `${(100 * from[kind]) / whole}%` : "0";
  }
  text("from-note", whole === 0 ? "nothing read yet" :
    `leaf ${share(from.leaf, whole)}, cache ${share(from.cache, whole)}, root ${share(from.root, whole)}, zeros ${share(from.zero, whole)} of ${bytes(512 * whole)}`);
  for (const [name, id] of [["read", "latency-read"], ["write", "latency-write"]]) {
    const operation = vm.operations.find((o) => o.operation === name);
    showHistogram(id, operation.latency_counts);
  }
}

function showHistogram(id, counts) {
  const list = $(id);
  while (list.children.length < counts.length) list.append(document.createElement("i"));
  const most = Math.max(1, ...counts);
  counts.forEach((n, i) => {
    const bar = list.children[i];
    // The root of it: a few slow requests are what one looks for.
    bar.style.height = n > 0 ? `${Math.max(4, 100 * Math.sqrt(n / most))}%` : "0";
    const bound = i === counts.length - 1 ? `over ${micros(2 ** (i - 1))}` : `up to ${micros(2 ** i)}`;
    bar.title = `${bound}: ${n}`;
  });
  const [p50, p99] = [quantile(counts, 0.5), quantile(counts, 0.99)];
  text(`${id}-note`, p50 === null ? "none yet" : `p50 ${micros(p50)}, p99 ${micros(p99)} since attached`);
}

async function showMap() {
  const name = chosen;
  const map = await ask(pathOfMap(name, COLUMNS * ROWS));
  if (name !== chosen) return;
  const now = performance.now();
  const same = shown?.name === name ? shown : null;
  shown = { name, map, changed: noteChanges(same?.changed, same?.map, map, now) };
  const sums = totals(map);
  const about = map.sampled ? "about " : "";
  for (const kind of ["leaf", "cached", "uncached", "zero"]) {
    text(`legend-${kind}`, about + bytes(sums[kind]));
  }
  $("map").setAttribute("aria-label",
    `disk of ${name}: leaf ${bytes(sums.leaf)}, cached ${bytes(sums.cached)}, uncached ${bytes(sums.uncached)}, zero ${bytes(sums.zero)}`);
  // For whoever wants the number rather than the picture.
  $("map").dataset.leafBytes = sums.leaf;
  draw();
}

let drawing = false;
function draw() {
  if (drawing || !shown) return;
  drawing = true;
  requestAnimationFrame((now) => {
    drawing = false;
    if (!shown) return;
    drawGrid($("map"), shown.map, shown.changed, now);
    // While a light fades.
    if (shown.changed.some((when) => now - when < 1500)) draw();
  });
}

// ---- the turn ----

async function look() {
  const stats = await ask("v1/stats");
  const at = performance.now();
  const last = before ?? { stats, at: at - EVERY_MS };
  const seconds = Math.max(0.05, (at - last.at) / 1000);
  const was = new Map(last.stats.vms.map((vm) => [vm.name, vm]));
  const vms = stats.vms.map((vm) => vmRates(was.get(vm.name), vm, seconds));
  before = { stats, at, vms };
  text("state", `up ${duration(stats.uptime_seconds)}`);
  $("state").className = "live";
  showHost(stats, hostRates(last.stats, stats, seconds, vms), vms);
  showFailed(stats);
  if (!stats.vms.some((vm) => vm.name === chosen)) {
    const first = [...vms].sort((a, b) => b.iops - a.iops || a.name.localeCompare(b.name, undefined, { numeric: true }))[0];
    chosen = first?.name ?? null;
    shown = null;
  }
  showList(stats, vms);
  const vm = stats.vms.find((one) => one.name === chosen);
  $("detail").hidden = !vm;
  if (vm) {
    showFacts(vm);
    await showMap();
  }
  await showStrips();
}

async function run() {
  for (;;) {
    const begun = performance.now();
    if (!document.hidden) {
      try {
        await look();
      } catch (error) {
        $("state").className = "lost";
        text("state", `no answer, trying again (${error.message})`);
      }
    }
    await new Promise((resume) => setTimeout(resume, Math.max(100, EVERY_MS - (performance.now() - begun))));
  }
}

// Five buckets of the histogram a label.
for (const scale of document.querySelectorAll(".scale")) {
  for (const label of ["1 µs", "32 µs", "1 ms", "33 ms", "1 s"]) {
    const span = document.createElement("span");
    span.textContent = label;
    scale.append(span);
  }
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const key = button.dataset.sort;
    const numeric = key !== "name" && key !== "root";
    sort = { key, down: sort.key === key ? !sort.down : numeric };
    for (const other of document.querySelectorAll("th button")) {
      other.className = other === button ? (sort.down ? "down" : "up") : "";
    }
    if (before) showList(before.stats, before.vms);
  });
}
$("filter").addEventListener("input", () => {
  if (before) showList(before.stats, before.vms);
});
addEventListener("resize", () => {
  draw();
  for (const { canvas, strip } of rows.values()) if (strip) drawStrip(canvas, strip);
});
addEventListener("hashchange", () => {
  const name = vmOfLink();
  if (rows.has(name)) choose(name);
});

void run();
