// Live: what /metrics knows, as rates and percentiles of the last minutes. The ring of samples is in this page alone.
import * as api from "./api.js";
import { Figure, meter } from "./charts.js";
import { el, put, table } from "./dom.js";
import * as words from "./words.js";

const PERIOD_MS = 2_000;
const KEPT = 150;
const WINDOW_S = 60;
const STAGES = ["admission", "log", "fetch", "queue", "features", "encode", "score", "merge", "rerank", "reply"];
const GOOD = new Set(["OK", "200"]);

const ring = [];

/** The sum of a counter's rows that fit. */
function total(sample, name, fits = () => true) {
  return (sample.values[name] ?? []).reduce((sum, [labels, value]) => (fits(labels) ? sum + value : sum), 0);
}

function gauges(sample, name) {
  return sample.values[name] ?? [];
}

/** What a histogram counted between two samples: bounds, and how many are at most each. */
function between(before, after, name, fits) {
  const found = after.histograms[name];
  if (!found) return null;
  const sum = (sample) => {
    const rows = (sample?.histograms[name]?.rows ?? []).filter(([labels]) => fits(labels));
    return found.bounds.concat(Infinity).map((_, at) => rows.reduce((all, [, counts]) => all + counts[at], 0));
  };
  const old = before ? sum(before) : found.bounds.concat(0).map(() => 0);
  return { bounds: found.bounds, counts: sum(after).map((count, at) => count - old[at]) };
}

/** The value that a share of what was counted is at most, as Prometheus' histogram_quantile has it. */
export function quantile(histogram, share) {
  if (!histogram) return NaN;
  const { bounds, counts } = histogram;
  const all = counts[counts.length - 1];
  if (!all) return NaN;
  const wanted = share * all;
  const at = counts.findIndex((count) => count >= wanted);
  if (at >= bounds.length) return bounds[bounds.length - 1];
  const low = at ? bounds[at - 1] : 0, below = at ? counts[at - 1] : 0;
  return low + ((bounds[at] - low) * (wanted - below)) / Math.max(1e-9, counts[at] - below);
}

const isRank = (labels) => labels.verb === "rank";
const isGood = (labels) => GOOD.has(labels.code);

/** Figures between two samples of `seconds`. */
export function figures(before, after) {
  const seconds = after.at_s - before.at_s;
  const per = (name, fits) => (total(after, name, fits) - total(before, name, fits)) / seconds;
  const ranks = between(before, after, "mfalcon_request_seconds", isRank);
  const lookups = per("mfalcon_state_lookups");
  const all = per("mfalcon_requests");
  const good = per("mfalcon_requests", isGood);
  return {
    requests: all,
    good: per("mfalcon_requests", (labels) => isRank(labels) && isGood(labels)),
    failed: all - good,
    p50: 1e3 * quantile(ranks, 0.5),
    p99: 1e3 * quantile(ranks, 0.99),
    hits: lookups > 0 ? 1 - per("mfalcon_state_lookups", (labels) => labels.source === "none") / lookups : NaN,
    queue: 1e3 * total(after, "mfalcon_queue_seconds"),
    memory: total(after, "process_resident_memory_bytes"),
  };
}

/** Whether a counter went back: another server answers now. */
function restarted(before, after) {
  return after.at_s < before.at_s || total(after, "mfalcon_requests") < total(before, "mfalcon_requests") || total(after, "process_cpu_seconds") < total(before, "process_cpu_seconds") - 1;
}

export default class Live {
  title = "Live";

  constructor(shell) {
    this.shell = shell;
    this.charts = {
      good: new Figure("Goodput", (v) => `${words.rate(v)}/s`, "ranks answered well"),
      p50: new Figure("Median", words.ms, "time of a rank"),
      p99: new Figure("99th percentile", words.ms, "time of a rank"),
      hits: new Figure("State hits", words.percent, "ranks that found a KV state"),
      queue: new Figure("Queue", words.ms, "predicted work that waits"),
      requests: new Figure("Requests", (v) => `${words.rate(v)}/s`, "all methods"),
      failed: new Figure("Refused or failed", (v) => `${words.rate(v)}/s`, "all methods"),
      memory: new Figure("Memory", words.bytes, "of all processes"),
    };
    this.notice = el("div", { role: "status" });
    this.tables = el("div", null);
    this.summary = el("p", { class: "lead" }, "Waiting for the first figures.");
    this.element = el("div", null,
      el("div", { class: "head" }, el("h1", null, "Live"), this.summary),
      this.notice,
      el("section", { class: "figures", "aria-label": "Figures of the last five minutes" }, Object.values(this.charts).map((chart) => chart.element)),
      this.tables);
  }

  start() {
    this.running = true;
    this.turn();
  }

  stop() {
    this.running = false;
    clearTimeout(this.timer);
  }

  async turn() {
    try {
      if (!document.hidden || !ring.length) this.take(await api.live());
      put(this.notice);
    } catch (error) {
      const text = `No new figures: ${api.explain(error)}`;
      if (this.notice.textContent !== text) put(this.notice, el("p", { class: "notice" }, text));  // said once, not each time
      this.shell.lost(error);
    }
    if (this.running) this.timer = setTimeout(() => this.turn(), PERIOD_MS);
  }

  take(sample) {
    this.shell.tell(sample.status);
    const last = ring[ring.length - 1];
    if (last && last.at_s === sample.at_s) return;
    if (last && restarted(last, sample)) ring.length = 0;
    ring.push(sample);
    if (ring.length > KEPT) ring.shift();
    this.show();
  }

  show() {
    const newest = ring[ring.length - 1];
    const oldest = [...ring].reverse().find((sample) => newest.at_s - sample.at_s >= WINDOW_S) ?? ring[0];
    const points = ring.slice(1).map((sample, at) => [newest.at_s - sample.at_s, figures(ring[at], sample)]);
    const now = ring.length > 1 ? figures(oldest, newest) : {};
    const seconds = Math.round(newest.at_s - oldest.at_s);
    put(this.summary, ring.length > 1
      ? `Rates and percentiles of the last ${words.counted(seconds, "second")}, sampled every ${PERIOD_MS / 1000} s from what /metrics shows.`
      : "One sample so far; rates need two.");
    for (const [name, chart] of Object.entries(this.charts)) {
      chart.show(points.map(([ago, of]) => [ago, of[name]]), name === "queue" ? 1e3 * total(newest, "mfalcon_queue_seconds") : now[name] ?? NaN);
    }
    // A table that a person reads in must not lose its place each time: it is replaced when nobody is in it.
    if (!this.tables.contains(document.activeElement)) put(this.tables, this.stages(oldest, newest), this.tiers(oldest, newest), this.models(newest), this.health(oldest, newest));
  }

  stages(before, after) {
    const past = ring.length > 1 ? before : null;
    const rows = STAGES.map((stage) => {
      const of = between(past, after, "mfalcon_stage_seconds", (labels) => labels.stage === stage);
      return [stage, of, 1e3 * quantile(of, 0.5), 1e3 * quantile(of, 0.95), 1e3 * quantile(of, 0.99)];
    }).filter(([, of]) => of && of.counts[of.counts.length - 1] > 0);
    const most = Math.max(...rows.map((row) => row[4]), 1e-9);
    return panel("Where the time of a rank goes", rows.length
      ? table("Time of answered ranks by stage", [{ name: "Stage", heads: true }, { name: "Ranks", number: true }, { name: "Median", number: true }, { name: "95th", number: true }, { name: "99th", number: true }, { name: "99th as a bar", hidden: true }],
        rows.map(([stage, of, ...at]) => [stage, words.number(of.counts[of.counts.length - 1]), ...at.map(words.ms), meter(at[2] / most)]))
      : el("p", { class: "empty" }, "No rank was answered in this time."));
  }

  tiers(before, after) {
    const sources = ["gpu", "host", "redis", "none"];
    const counts = sources.map((source) => {
      const fits = (labels) => labels.source === source;
      return total(after, "mfalcon_state_lookups", fits) - (ring.length > 1 ? total(before, "mfalcon_state_lookups", fits) : 0);
    });
    const all = counts.reduce((sum, count) => sum + count, 0);
    const names = { gpu: "GPU memory", host: "Host memory", redis: "Redis", none: "None: encoded from the history" };
    return panel("Where KV states were found", all
      ? table("Ranks by the tier in which their KV state was found", [{ name: "Tier", heads: true }, { name: "Ranks", number: true }, { name: "Share", number: true }, { name: "Share as a bar", hidden: true }],
        sources.map((source, at) => [names[source], words.number(counts[at]), words.percent(counts[at] / all), meter(counts[at] / all)]))
      : el("p", { class: "empty" }, "No rank looked for a KV state in this time."));
  }

  models(after) {
    const of = (name, model) => gauges(after, name).filter(([labels]) => labels.model === model).reduce((sum, [, value]) => sum + value, 0);
    const known = this.shell.models;
    if (!known.length) return panel("Models", el("p", { class: "empty" }, "No model is known yet: the server loads, or your token does not allow to list them."));
    return panel("Models", table("Models and ensembles that are served", [{ name: "Name", heads: true }, { name: "Version" }, { name: "Kind" }, { name: "Computed by" }, { name: "States", number: true }, { name: "Pages in use", number: true }, { name: "As a bar", hidden: true }],
      known.map((model) => {
        const pool = of("mfalcon_pool_bytes", model.name), free = of("mfalcon_pool_free_bytes", model.name);
        const share = pool ? 1 - free / pool : NaN;
        return [model.name, el("code", null, model.version || "–"), model.ensemble ? `ensemble of ${model.ensemble.members.length}` : model.architecture, model.backend || "–",
          words.bytes(of("mfalcon_host_bytes", model.name) + of("mfalcon_device_bytes", model.name)), pool ? words.percent(share) : "–", meter(share)];
      })));
  }

  health(before, after) {
    const rows = [];
    const heartbeat = total(after, "mfalcon_device_heartbeat_seconds");
    rows.push(["Device", heartbeat > 5 ? "slow" : "well", heartbeat ? `its step has taken ${words.ms(1e3 * heartbeat)} so far` : "idle at this moment"]);
    rows.push(["Queue", "", words.counted(total(after, "mfalcon_queue_jobs"), "job")]);
    for (const [labels, value] of gauges(after, "mfalcon_redis_breaker_open")) {
      rows.push([`Redis ${labels.node}`.trim(), value ? "not tried" : "well", value ? "its breaker is open: it is asked again in a while" : "its breaker is closed"]);
    }
    const redisErrors = total(after, "mfalcon_redis_errors") - total(before, "mfalcon_redis_errors");
    if (gauges(after, "mfalcon_redis_errors").length) rows.push(["Redis calls", redisErrors ? "errors" : "well", `${words.counted(redisErrors, "call")} not answered well in this time`]);
    if (gauges(after, "mfalcon_log_users").length && total(after, "mfalcon_log_users")) {
      rows.push(["Event log", "", `${words.counted(total(after, "mfalcon_log_users"), "user")}, ${words.counted(total(after, "mfalcon_log_events"), "event")}, ${words.bytes(total(after, "mfalcon_log_bytes"))}`]);
    }
    for (const [labels, memory] of gauges(after, "process_resident_memory_bytes")) {
      const front = labels.frontend ?? "";
      const same = (other) => (other.frontend ?? "") === front;
      const lag = between(ring.length > 1 ? before : null, after, "mfalcon_loop_lag_seconds", same);
      const cpu = (total(after, "process_cpu_seconds", same) - total(before, "process_cpu_seconds", same)) / Math.max(1e-9, after.at_s - before.at_s);
      const busy = ring.length > 1 ? `, ${words.percent(cpu)} of a core` : "";
      rows.push([front === "" ? "Engine's process" : `Front-end ${front}`, "", `${words.bytes(memory)} of memory, ${words.counted(total(after, "process_threads", same), "thread")}${busy}, loop late by ${words.ms(1e3 * quantile(lag, 0.99))} (99th)`]);
    }
    return panel("Health and memory", table("Health of the device, of Redis, and of the processes", [{ name: "What", heads: true }, { name: "State" }, { name: "Said of it" }],
      rows.map(([what, state, told]) => [what, state && el("span", { class: `badge ${state === "well" ? "good" : "bad"}` }, state), told])));
  }
}

function panel(title, content) {
  return el("section", { class: "panel" }, el("h2", null, title), content);
}
