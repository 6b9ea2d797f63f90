// Compare: one request on two models or ensembles, side by side.
import * as api from "./api.js";
import { Candidates, modelSelect } from "./candidates.js";
import { stack } from "./charts.js";
import { el, field, put } from "./dom.js";
import { UserField, remember } from "./people.js";
import { cacheSentence, moved, places, ranking, timeParts } from "./rank.js";
import * as words from "./words.js";

const TOP = 10;

/** Spearman's correlation of two orders of the same candidates, which have no ties. */
export function rankCorrelation(left, right) {
  const num = left.length;
  if (num < 2) return 1;
  const squares = left.reduce((sum, place, at) => sum + (place - right[at]) ** 2, 0);
  return 1 - (6 * squares) / (num * (num * num - 1));
}

export default class Compare {
  title = "Compare";

  constructor(shell) {
    this.shell = shell;
    this.user = new UserField("compare-user", () => shell.users);
    this.left = modelSelect("compare-left", shell.models, "");
    this.right = modelSelect("compare-right", shell.models, "");
    this.candidates = new Candidates("compare-candidates", () => this.left.value);
    this.submit = el("button", { type: "submit", class: "main" }, "Compare");
    this.notice = el("div", { role: "alert" });
    this.told = el("p", { class: "unseen", role: "status" });
    this.results = el("div", null);
    this.element = el("div", null,
      el("div", { class: "head" }, el("h1", null, "Compare"), el("p", { class: "lead" }, "The same request to two models: what each puts where, and what it costs.")),
      el("form", { class: "panel form", onsubmit: (event) => this.asked(event) }, this.user.element, field("First", this.left), field("Second", this.right), this.candidates.element, el("div", { class: "actions" }, this.submit)),
      this.notice, this.told, this.results);
  }

  start() {
    this.user.show();
    const { models } = this.shell;
    const [left, right] = [modelSelect("compare-left", models, this.left.value || models[0]?.name), modelSelect("compare-right", models, (this.right.value !== this.left.value && this.right.value) || (models[1] ?? models[0])?.name)];
    this.left.replaceWith(left);
    this.right.replaceWith(right);
    [this.left, this.right] = [left, right];
    if (!this.user.value && this.shell.users.length) this.user.input.value = this.shell.users[0];
    if (!this.candidates.text.value && models.length) this.candidates.sample();
  }

  stop() {}

  async asked(event) {
    event.preventDefault();
    this.submit.disabled = true;
    put(this.notice);
    try {
      const ids = this.candidates.ids();
      if (!this.user.value) throw new Error("There is no user: type an id.");
      const { now_ms } = await api.info();
      const names = [this.left.value, this.right.value];
      const asks = { user_id: this.user.value, request_time_ms: now_ms };
      // One after the other: neither waits for the other on the device.
      const answers = [];
      for (const model of names) answers.push(await api.rank({ ...asks, model }, ids));
      remember(asks.user_id);
      this.user.show();
      const title = await api.titlesOf(names[0], ids).catch(() => () => "");
      this.show(names, answers, ids, title);
    } catch (error) {
      put(this.notice, el("p", { class: "notice" }, error instanceof api.Refused ? api.explain(error) : error.message));
      this.shell.lost(error);
    } finally {
      this.submit.disabled = false;
    }
  }

  show(names, [left, right], ids, title) {
    const [before, after] = [places(left.scores), places(right.scores)];
    const overlap = before.filter((place, at) => place <= TOP && after[at] <= TOP).length;
    const numTop = Math.min(TOP, ids.length);
    const longest = Math.max(left.timings.total_us, right.timings.total_us) / 1e3;
    const card = (name, answer) => el("section", { class: "panel" }, el("h2", null, name), el("p", null, el("strong", { class: "big" }, words.ms(answer.timings.total_us / 1e3)), " in the engine"),
      stack(timeParts(answer.timings), longest, words.ms), el("p", { class: "note" }, cacheSentence(answer.cache), " Version ", el("code", null, answer.model_version)));
    const same = names[0] === names[1];
    this.told.textContent = "Both have answered.";
    put(this.results,
      same ? el("p", { class: "notice" }, this.shell.models.length < 2 ? "This server serves one model, so both sides are the same. With [[models]] or [[ensembles]] in its settings there is more to compare." : "Both sides are the same model.") : null,
      el("div", { class: "two" }, card(names[0], left), card(names[1], right)),
      el("section", { class: "panel" }, el("h2", null, "How alike the two orders are"), el("dl", { class: "facts" },
        el("div", null, el("dt", null, "Rank correlation (Spearman)"), el("dd", null, rankCorrelation(before, after).toFixed(3))),
        el("div", null, el("dt", null, `Of the first ${numTop}, in both`), el("dd", null, `${overlap} of ${numTop}`)),
        el("div", null, el("dt", null, "Changed places"), el("dd", null, `${words.number(before.filter((place, at) => place !== after[at]).length)} of ${words.number(ids.length)}`)))),
      el("section", { class: "panel" }, el("h2", null, "Candidates in the first one's order"),
        ranking(`Scores of ${names[0]} and ${names[1]}`, left, ids, title,
          [{ name: names[0], number: true }, { name: names[1], number: true }, { name: "Place there", number: true }, { name: "Moved" }],
          (at, place) => [words.score(left.scores[at]), words.score(right.scores[at]), String(after[at]), moved(place, after[at])])));
  }
}
