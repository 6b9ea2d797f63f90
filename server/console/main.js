// The shell: which view is shown, how the server is, and the token.
import * as api from "./api.js";
import Compare from "./compare.js";
import Live from "./live.js";
import Rank from "./rank.js";
import User from "./user.js";
import { put } from "./dom.js";

const RETRY_MS = 2_000;
const VIEWS = { live: Live, rank: Rank, user: User, compare: Compare };
const at = (id) => document.getElementById(id);

const shell = {
  models: [],
  users: [],
  status: "",

  /** The server's state, in its own words. */
  tell(status) {
    if (status === this.status) return;
    this.status = status;
    const place = at("status");
    place.textContent = status;
    place.className = `status ${status === "ready" ? "good" : "bad"}`;
    if (status !== "ready") wait();
    else if (!this.models.length) learn();
  },

  /** What a call met may be true of the server. */
  lost(error) {
    if (!(error instanceof api.Refused)) return;
    if (error.status === 0) this.tell("unreachable");
    else if (error.status === 503 && error.code === "UNAVAILABLE") wait(0);
  },
};

let waiting;

/** Ask how the server is until it is ready. */
function wait(soon = RETRY_MS) {
  clearTimeout(waiting);
  waiting = setTimeout(learn, soon);
}

let learning = false;

async function learn() {
  if (learning) return;
  learning = true;
  try {
    const told = await api.info();
    shell.users = told.users;
    at("docs-link").hidden = !told.docs;
    const before = shell.models.map((model) => model.name + model.version).join();
    if (told.status === "ready") shell.models = await api.models().catch((error) => {
      if (error.status !== 403) throw error;
      return [];
    });
    shell.status = "";
    const became = told.status;
    shell.status = became;
    const place = at("status");
    place.textContent = became;
    place.className = `status ${became === "ready" ? "good" : "bad"}`;
    if (became !== "ready") wait();
    if (before !== shell.models.map((model) => model.name + model.version).join()) current?.start();
  } catch (error) {
    if (error.status === 401) return;
    at("status").textContent = error.status ? error.code.toLowerCase() : "unreachable";
    at("status").className = "status bad";
    shell.status = "unreachable";
    wait();
  } finally {
    learning = false;
  }
}

function showToken(open, why) {
  at("token-panel").hidden = !open;
  at("token-button").setAttribute("aria-expanded", String(open));
  if (why) at("token-why").textContent = why;
  if (open) at("token").focus();
}

api.onUnauthenticated((message) => {
  at("status").textContent = "token needed";
  at("status").className = "status bad";
  shell.status = "token needed";
  if (at("token-panel").hidden) showToken(true, `This server wants a valid token. It said: ${message}`);
});

at("token-button").addEventListener("click", () => showToken(at("token-panel").hidden));
at("token-panel").addEventListener("submit", (event) => {
  event.preventDefault();
  api.token.set(at("token").value.trim());
  at("token").value = "";
  showToken(false);
  at("token-button").focus();
  again();
});
at("token-forget").addEventListener("click", () => {
  api.token.set("");
  at("token").value = "";
  showToken(false);
  at("token-button").focus();
  again();
});

function again() {
  shell.models = [];
  learn();
  if (current) {
    current.stop();
    current.start();
  }
}

const made = {};
let current;

function show() {
  const name = location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "live";
  for (const link of at("views").querySelectorAll("a")) {
    if (link.getAttribute("href") === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const view = (made[name] ??= new VIEWS[name](shell));
  if (view === current) return;
  const first = !current;
  current?.stop();
  current = view;
  document.title = `${view.title} · mfalcon console`;
  put(at("main"), view.element);
  if (!first) at("main").focus({ preventScroll: true });
  scrollTo(0, 0);
  view.start();
}

addEventListener("hashchange", () => {
  if (location.hash !== "#main") show();
});
await learn();
show();
