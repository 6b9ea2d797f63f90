// What the server is asked. Whole numbers of 16 digits or more become texts: JavaScript's own end at 2^53.

const TOKEN = "mfalcon-token";
const LONG = /"(?:[^"\\]|\\.)*"|(?<![\d.eE+-])-?\d{16,}(?![\d.eE])/g;
const TIMEOUT_MS = 15_000;

export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const listeners = { unauthenticated: () => {} };

/** Call this when the server wants a token, or another one. */
export function onUnauthenticated(listener) {
  listeners.unauthenticated = listener;
}

// In sessionStorage, not localStorage: a reload of the tab keeps it, the next person at this machine does not have it.
export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (text) => (text ? sessionStorage.setItem(TOKEN, text) : sessionStorage.removeItem(TOKEN)),
};

/** JSON whose long whole numbers are texts with all their digits. */
export function parse(text) {
  return JSON.parse(text.replace(LONG, (found) => (found[0] === '"' ? found : `"${found}"`)));
}

/** An answer, or Refused. body: JSON as text, made by `json` where it holds ids. */
export async function ask(method, path, body) {
  const headers = { accept: "application/json" };
  if (token.get()) headers.authorization = `Bearer ${token.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response, text;
  try {
    response = await fetch(path, {
      method, headers, body, cache: "no-store", credentials: "omit", redirect: "error", signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    text = await response.text();
  } catch (error) {
    throw new Refused(0, "UNREACHABLE", error.name === "TimeoutError" ? "The server did not answer in 15 seconds." : "The server cannot be reached.");
  }
  let answer = null;
  try {
    answer = parse(text);
  } catch {
    if (response.ok) throw new Refused(response.status, "INTERNAL", "The server's answer is no JSON.");
  }
  if (response.ok) return answer;
  const told = answer?.error ?? {};
  if (response.status === 401) listeners.unauthenticated(told.message ?? "");
  throw new Refused(response.status, told.code ?? String(response.status), told.message ?? response.statusText);
}

/** What became of it, in a sentence for people. */
export function explain(error) {
  if (!(error instanceof Refused)) throw error;
  if (error.status === 401) return `The server wants a valid token: ${error.message}`;
  if (error.status === 403) return `Your token does not allow this: ${error.message}`;
  return error.status ? `${error.code}: ${error.message}` : error.message;
}

const ID = /^-?\d{1,19}$/;
const LEAST = -(2n ** 63n), MOST = 2n ** 63n - 1n;

/** Item ids of a text, as texts. Throws a sentence about the first that is none. */
export function itemIds(text) {
  const words = text.split(/[\s,;]+/).filter(Boolean);
  for (const word of words) {
    if (!ID.test(word) || BigInt(word) < LEAST || BigInt(word) > MOST) throw new Error(`“${word.slice(0, 40)}” is no item id: it must be a whole number from −2⁶³ to 2⁶³ − 1.`);
  }
  return words.map((word) => String(BigInt(word)));
}

/** JSON of fields, of which some hold numbers as texts already. */
export function json(fields, raw = {}) {
  const parts = Object.entries(fields).map(([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`);
  for (const [name, value] of Object.entries(raw)) parts.push(`${JSON.stringify(name)}:${value}`);
  return `{${parts.join(",")}}`;
}

export const list = (ids) => `[${ids.join(",")}]`;

const user = (userId) => `/v1/users/${encodeURIComponent(userId)}`;

export const info = () => ask("GET", "/console/api/info");
export const live = () => ask("GET", "/console/api/live");
export const models = async () => (await ask("GET", "/v1/models")).models;

/** Ranks: {user_id, model, request_time_ms, recompute}, and ids as texts. took_ms: as this page saw it. */
export async function rank(fields, ids) {
  const began = performance.now();
  const answer = await ask("POST", "/v1/rank", json(fields, { candidates: list(ids) }));
  return { ...answer, took_ms: performance.now() - began };
}

/** Titles by id of those that have one, and a sample of [id, title]. */
export const items = (model, ids, sample = 0, seed = 0) =>
  ask("POST", "/console/api/items", json({ model, sample, seed }, { item_ids: list(ids) }));

const titles = new Map();

/** Remembers the titles of these ids, and returns what tells one. */
export async function titlesOf(model, ids) {
  const known = titles.get(model) ?? titles.set(model, new Map()).get(model);
  const wanted = [...new Set(ids)].filter((id) => !known.has(id));
  if (wanted.length) for (const [id, title] of (await items(model, wanted)).items) known.set(id, title);
  return (id) => known.get(id) ?? "";
}

/** 32 hex digits by chance: an append that is sent twice is written once. */
const someId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export function append(userId, event) {
  const told = `{"item_id":${event.item_id},"actions":${event.actions},"value":${event.value},"time_ms":${event.time_ms}}`;
  return ask("POST", `${user(userId)}/events`, json({ append_id: someId() }, { events: `[${told}]` }));
}

export const history = (userId, first, limit, withStates) =>
  ask("GET", `${user(userId)}/history?first=${first}&limit=${limit}&with_states=${withStates}`);

export const deleteUser = (userId) => ask("DELETE", user(userId));
