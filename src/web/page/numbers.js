// From two readings of /v1/stats to rates, shares and text.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(value) {
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

export const perSecond = (value) => `${bytes(value)}/s`;

export function count(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(2)} M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(1)} k`;
  return value >= 10 || value === 0 ? Math.round(value).toString() : value.toFixed(1);
}

export function micros(value) {
  if (value === null) return "–";
  if (value >= 1e6) return `${(value / 1e6).toFixed(2)} s`;
  if (value >= 1e3) return `${(value / 1e3).toFixed(value >= 1e4 ? 0 : 1)} ms`;
  return `${value.toFixed(value >= 10 ? 0 : 1)} µs`;
}

export function share(part, whole) {
  if (whole <= 0) return "–";
  const percent = (100 * part) / whole;
  return `${percent.toFixed(percent > 0 && percent < 10 ? 1 : percent > 99 && percent < 100 ? 2 : 0)} %`;
}

export function duration(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = Math.max(0, units.findIndex(([, size]) => seconds >= size));
  const parts = units.slice(first, first + 2).map(([name, size], i) => {
    const whole = i === 0 ? seconds / size : (seconds % units[first][1]) / size;
    return `${Math.floor(whole)} ${name}`;
  });
  return parts.join(" ");
}

// A counter that went back was begun anew.
const grown = (before, after) => (after >= before ? after - before : after);

// The latency that a share of the counted requests did not exceed, in µs: as
// histogram_quantile, evenly spread within a bucket.
export function quantile(counts, wanted) {
  const total = counts.reduce((sum, n) => sum + n, 0);
  if (total === 0) return null;
  let before = 0;
  for (const [bucket, n] of counts.entries()) {
    if (n > 0 && before + n >= wanted * total) {
      if (bucket === counts.length - 1) break;
      const upper = 2 ** bucket;
      const lower = bucket === 0 ? 0 : upper / 2;
      return lower + ((upper - lower) * Math.max(0, wanted * total - before)) / n;
    }
    before += n;
  }
  return 2 ** (counts.length - 2);
}

const operation = (vm, name) => vm.operations.find((o) => o.operation === name);
const readBytes = (vm) => 512 * Object.values(vm.read_sectors).reduce((sum, n) => sum + n, 0);
const requests = (vm) => vm.operations.reduce((sum, o) => sum + o.requests, 0);

// What a VM did between two readings; `before` may be undefined.
export function vmRates(before, after, seconds) {
  // Attached, or first seen, just now: no rate yet.
  if (!before) before = after;
  const rate = (value) => grown(value(before), value(after)) / seconds;
  const latencies = (name) => {
    const [was, is] = [operation(before, name), operation(after, name)];
    const anew = is.requests < was.requests;
    return is.latency_counts.map((n, i) => (anew ? n : n - was.latency_counts[i]));
  };
  const read = latencies("read");
  const written = latencies("write");
  const all = read.map((n, i) => n + written[i]);
  const hits = grown(before.cache_hits, after.cache_hits);
  const misses = grown(before.cache_misses, after.cache_misses);
  const leaf = (vm) => (vm.leaf ? vm.leaf.held_bytes : 0);
  return {
    name: after.name,
    root: after.root,
    iops: rate(requests),
    read: rate(readBytes),
    written: rate((vm) => 512 * vm.written_sectors),
    p50: quantile(all, 0.5),
    p99: quantile(all, 0.99),
    hits: hits + misses > 0 ? hits / (hits + misses) : null,
    leaf: leaf(after),
    growth: Math.max(0, leaf(after) - leaf(before)) / seconds,
  };
}

// The host's sums.
export function hostRates(before, after, seconds, vms) {
  const sum = (value) => vms.reduce((total, vm) => total + value(vm), 0);
  const hits = grown(before.cache.hits, after.cache.hits);
  const misses = grown(before.cache.misses, after.cache.misses);
  return {
    iops: sum((vm) => vm.iops),
    read: sum((vm) => vm.read),
    written: sum((vm) => vm.written),
    hits,
    misses,
    fills: grown(before.cache.fills, after.cache.fills) / seconds,
    evictions: grown(before.cache.evictions, after.cache.evictions) / seconds,
    reactors: after.reactors.map((reactor, i) => {
      const was = before.reactors[i] ?? reactor;
      const busy = Math.min(1, grown(was.busy_ns, reactor.busy_ns) / 1e9 / seconds);
      const cpu = Math.min(1, grown(was.cpu_ns, reactor.cpu_ns) / 1e9 / seconds);
      return { busy, polling: Math.max(0, cpu - busy) };
    }),
  };
}
