// User: the history as a timeline, the KV states that are kept of it, and the end of both.
import * as api from "./api.js";
import { el, put, table } from "./dom.js";
import { UserField, forget, remember } from "./people.js";
import * as words from "./words.js";

const PAGE = 50;

/** Names of the actions in a bitmask. */
export function actionNames(mask, actions) {
  const names = actions.filter((_, bit) => Math.floor(mask / 2 ** bit) % 2 === 1);
  const known = 2 ** actions.length - 1;
  return mask > known ? [...names, `others (${mask})`] : names;
}

export default class User {
  title = "User";

  constructor(shell) {
    this.shell = shell;
    this.user = new UserField("user-user", () => shell.users);
    this.notice = el("div", { role: "alert" });
    this.told = el("p", { class: "unseen", role: "status" });
    this.results = el("div", null);
    this.submit = el("button", { type: "submit", class: "main" }, "Show");
    this.element = el("div", null,
      el("div", { class: "head" }, el("h1", null, "User"), el("p", { class: "lead" }, "What the server keeps of a user: every event, and the KV states that were made of them.")),
      el("form", { class: "panel form", onsubmit: (event) => {
        event.preventDefault();
        this.open(this.user.value);
      } }, this.user.element, el("div", { class: "actions" }, this.submit)),
      this.notice, this.told, this.results);
  }

  start() {
    this.user.show();
    if (!this.user.value && this.shell.users.length) this.user.input.value = this.shell.users[0];
  }

  stop() {}

  async guarded(work) {
    this.submit.disabled = true;
    put(this.notice);
    try {
      await work();
    } catch (error) {
      put(this.notice, el("p", { class: "notice" }, error instanceof api.Refused ? api.explain(error) : error.message));
      this.shell.lost(error);
    } finally {
      this.submit.disabled = false;
    }
  }

  open(userId) {
    return this.guarded(async () => {
      if (!userId) throw new Error("There is no user: type an id.");
      put(this.results);
      // A page after the last event tells how many there are; the newest are wanted first.
      const known = await api.history(userId, "18446744073709551615", 1, true);
      remember(userId);
      this.user.show();
      this.userId = userId;
      this.days = el("ol", { class: "timeline" });
      this.more = el("p", null);
      this.lastDay = "";
      this.told.textContent = `${words.counted(known.history_len, "event")}.`;
      put(this.results, this.summary(known), this.states(known), el("section", { class: "panel" }, el("h2", null, "Timeline"),
        el("p", { class: "note" }, "The newest first; times in UTC."), this.days, this.more), this.danger());
      await this.older(known.history_len, known.base);
    });
  }

  summary(page) {
    return el("section", { class: "panel" }, el("h2", null, "History"),
      el("p", null, el("strong", { class: "big" }, words.counted(page.history_len, "event")), page.base ? ` of which the first ${words.number(page.base)} are kept no more` : null),
      page.stale ? el("p", { class: "notice" }, "The event log could not be asked: this is the last history that was verified.") : null,
      el("p", { class: "note" }, "Version ", el("code", null, page.version)));
  }

  states(page) {
    const rows = page.states.map((state) => {
      const stop = Number(state.first_event) + Number(state.num_events);
      const missing = Number(page.history_len) - stop;
      const fresh = !state.fits ? ["never used again", "bad", "made of another history, or of a window that moved on"]
        : missing > 0 ? ["behind", "", `without the newest ${words.counted(missing, "event")}, which are encoded on demand`] : ["fresh", "good", "of every event of the window"];
      return [state.model, words.TIERS[state.tier] ?? state.tier, `${words.number(state.first_event)} to ${words.number(Math.max(stop - 1, 0))}`, words.number(state.num_tokens), words.bytes(Number(state.num_bytes)),
        el("span", null, el("span", { class: `badge ${fresh[1]}` }, fresh[0]), el("span", { class: "note" }, ` ${fresh[2]}`))];
    });
    return el("section", { class: "panel" }, el("h2", null, "KV states"), rows.length
      ? table("KV states of this user", [{ name: "Model", heads: true }, { name: "Tier" }, { name: "Events" }, { name: "Tokens", number: true }, { name: "Bytes", number: true }, { name: "Freshness" }], rows)
      : el("p", { class: "empty" }, "None is kept now. The next rank makes one."));
  }

  async older(stop, base) {
    const first = Math.max(base, stop - PAGE);
    const page = stop > first ? await api.history(this.userId, first, stop - first, false) : { events: [] };
    const events = page.events.map((event) => ({ ...event, item_id: String(event.item_id) })).reverse();
    const title = await api.titlesOf("", events.map((event) => event.item_id)).catch(() => () => "");
    const actions = this.shell.models.reduce((longest, model) => (model.actions.length > longest.length ? model.actions : longest), []);
    for (const event of events) {
      const day = words.dayOf(event.time_ms);
      if (day !== this.lastDay) {
        this.lastDay = day;
        this.days.append(el("li", { class: "day" }, el("h3", null, day)));
      }
      const names = actionNames(event.actions, actions);
      this.days.append(el("li", null, el("time", { datetime: new Date(event.time_ms).toISOString() }, words.hourOf(event.time_ms)),
        el("span", { class: "item" }, el("span", { class: "title" }, title(event.item_id) || `Item ${event.item_id}`), el("span", { class: "note" }, `id ${event.item_id}`)),
        el("span", { class: "what" }, names.length ? names.join(", ") : "no action", event.value ? ` · ${event.value}` : "")));
    }
    put(this.more, first > base
      ? el("button", { type: "button", onclick: () => this.guarded(() => this.older(first, base)) }, `Show older: ${words.number(first - base)} are left`)
      : el("span", { class: "note" }, events.length || stop ? "This is the oldest event that is kept." : "There are no events."));
  }

  danger() {
    const wanted = this.userId;
    const typed = el("input", { type: "text", id: "delete-id", autocomplete: "off", spellcheck: "false", autocapitalize: "off" });
    const go = el("button", { type: "submit", class: "danger", disabled: true }, "Delete this user");
    typed.addEventListener("input", () => (go.disabled = typed.value !== wanted));
    const said = el("div", { role: "alert" });
    const dialog = el("dialog", { "aria-labelledby": "delete-title" }, el("form", { onsubmit: async (event) => {
      event.preventDefault();
      if (typed.value !== wanted) return;
      go.disabled = true;
      try {
        await api.deleteUser(wanted);
        forget(wanted);
        dialog.close();
        this.user.show();
        put(this.results, el("section", { class: "panel", tabindex: -1 }, el("h2", null, "Deleted"), el("p", null, `The history of “${wanted}” and every KV state of it are deleted.`)));
        this.results.firstElementChild.focus();
      } catch (error) {
        put(said, el("p", { class: "notice" }, api.explain(error)));
        go.disabled = false;
      }
    } }, el("h2", { id: "delete-title" }, "Delete this user?"), el("p", null, "The history and every KV state are deleted, here and in Redis. Nobody can bring them back."),
      el("label", { for: "delete-id" }, "Type the user id to confirm: ", el("code", null, wanted)), typed, said,
      el("div", { class: "actions" }, el("button", { type: "button", onclick: () => dialog.close() }, "Keep it"), go)));
    return el("section", { class: "panel" }, el("h2", null, "Delete"), el("p", null, "Deletes the history and every KV state, in all tiers, by all models."),
      el("button", { type: "button", class: "danger", onclick: () => {
        typed.value = "";
        go.disabled = true;
        put(said);
        dialog.showModal();
        typed.focus();
      } }, "Delete …"), dialog);
  }
}
