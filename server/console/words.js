// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en");

export const number = (value) => (typeof value === "string" ? value : whole.format(value));

/** Four significant digits. */
export function score(value) {
  if (value === undefined || value === null) return "–";
  if (value <= -3e38) return "none";
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 1e6) ? value.toExponential(3) : value.toFixed(size >= 100 ? 2 : 4);
}

export function signed(value) {
  if (value === 0) return "0";
  const text = score(Math.abs(value));
  return value > 0 ? `+${text}` : `−${text}`;
}

export function ms(value) {
  if (!Number.isFinite(value)) return "–";
  return `${value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : Math.round(value)} ms`;
}

export function rate(value) {
  if (!Number.isFinite(value)) return "–";
  return value >= 100 ? whole.format(Math.round(value)) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export const percent = (share) => (Number.isFinite(share) ? `${(100 * share).toFixed(share >= 0.9995 || share === 0 ? 0 : 1)}%` : "–");

export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) {
    value /= 1024;
    at += 1;
  }
  return `${at && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[at]}`;
}

const day = new Intl.DateTimeFormat("en-GB", { dateStyle: "long", timeZone: "UTC" });
const hour = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium", timeZone: "UTC" });

export const dayOf = (timeMs) => day.format(new Date(timeMs));
export const hourOf = (timeMs) => hour.format(new Date(timeMs));

/** "1 event", "2 events". */
export const counted = (num, word) => `${number(num)} ${word}${Number(num) === 1 ? "" : "s"}`;

export const TIERS = { NONE: "none", GPU: "GPU", HOST: "host memory", REDIS: "Redis" };
