// Charts of a few hundred points, and bars: SVG that we draw ourselves, each with its numbers as a table.
import { el, put, shape, table } from "./dom.js";

const WIDTH = 260, HEIGHT = 56;

/** One figure: its name, its present value, its last minutes. */
export class Figure {
  constructor(name, format, note) {
    this.name = name;
    this.format = format;
    this.now = el("p", { class: "value" }, "–");
    this.chart = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "spark", "aria-hidden": "true" });
    this.most = el("p", { class: "most" });
    this.rows = el("div", null);
    const details = el("details", { class: "numbers", ontoggle: () => this.tell() }, el("summary", null, "Numbers", el("span", { class: "unseen" }, ` of ${name}`)), this.rows);
    this.details = details;
    this.points = [];
    this.element = el("section", { class: "figure" }, el("h2", null, name), this.now, el("p", { class: "note" }, note), this.chart, this.most, details);
  }

  /** points: [[ago in seconds, value]], oldest first; NaN where there is none. */
  show(points, now) {
    this.points = points;
    put(this.now, this.format(now));
    const known = points.filter(([, value]) => Number.isFinite(value));
    const most = Math.max(0, ...known.map(([, value]) => value));
    put(this.most, known.length ? `highest ${this.format(most)}` : "no data yet");
    put(this.chart, ...lines(points, most));
    this.tell();
  }

  tell() {
    if (!this.details.open) return;
    const rows = this.points.slice(-20).reverse().map(([ago, value]) => [`${Math.round(ago)} s ago`, this.format(value)]);
    put(this.rows, table(`${this.name}, the newest 20 samples`, [{ name: "When" }, { name: this.name, number: true }], rows));
  }
}

function lines(points, most) {
  const longest = Math.max(60, points.length ? points[0][0] : 0);
  const place = ([ago, value]) => [WIDTH * (1 - ago / longest), HEIGHT - 3 - (HEIGHT - 8) * (most ? value / most : 0)];
  const parts = [];
  let part = [];
  for (const point of points) {
    if (Number.isFinite(point[1])) part.push(place(point));
    else if (part.length) parts.push(part), (part = []);
  }
  if (part.length) parts.push(part);
  const text = (run) => run.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join(" L");
  return [
    shape("line", { x1: 0, x2: WIDTH, y1: HEIGHT - 2.5, y2: HEIGHT - 2.5, class: "ground" }),
    ...parts.flatMap((run) => [
      shape("path", { d: `M${text(run)} L${run[run.length - 1][0].toFixed(1)} ${HEIGHT - 2.5} L${run[0][0].toFixed(1)} ${HEIGHT - 2.5} Z`, class: "area" }),
      shape("path", { d: `M${text(run)}`, class: "line", "vector-effect": "non-scaling-stroke" }),
    ]),
  ];
}

/** A share from 0 to 1 as a bar beside its number; it says nothing that the number does not. */
export function meter(share) {
  const part = Number.isFinite(share) ? Math.max(0, Math.min(1, share)) : 0;
  return shape("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", class: "meter", "aria-hidden": "true" },
    shape("rect", { width: 100, height: 8, class: "groove" }), shape("rect", { width: 100 * part, height: 8, class: "filled" }));
}

/** Parts of a whole, [name, milliseconds], as one bar with its legend; `most`: what the whole width is. */
export function stack(parts, most, format) {
  const whole = most || parts.reduce((sum, [, value]) => sum + value, 0) || 1;
  let x = 0;
  const rects = parts.map(([name, value], at) => {
    const width = (100 * value) / whole;
    const rect = shape("rect", { x, width: Math.max(0, width - (width > 0.6 ? 0.25 : 0)), height: 12, class: `stage-${name.replace(/\W.*/, "").toLowerCase()}` },
      shape("title", null, `${name}: ${format(value)}`));
    x += width;
    return rect;
  });
  return el("div", { class: "stack" },
    shape("svg", { viewBox: "0 0 100 12", preserveAspectRatio: "none", "aria-hidden": "true" }, shape("rect", { width: 100, height: 12, class: "groove" }), rects),
    el("dl", null, parts.map(([name, value]) => el("div", null,
      el("dt", { class: `key-${name.replace(/\W.*/, "").toLowerCase()}` }, name), el("dd", null, format(value))))));
}
