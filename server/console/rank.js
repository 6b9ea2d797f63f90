// Rank: scores with titles, where the time went, cached against recomputed, and what an event changes.
import * as api from "./api.js";
import { Candidates, modelSelect } from "./candidates.js";
import { stack } from "./charts.js";
import { el, field, put, table } from "./dom.js";
import { UserField, remember } from "./people.js";
import * as words from "./words.js";

const SHOWN = 50;

/** Positions of candidates, best first, ties by position. */
export function order(scores) {
  return scores.map((_, at) => at).sort((a, b) => scores[b] - scores[a] || a - b);
}

/** By position of the candidate: its place, from 1. */
export function places(scores) {
  const found = new Array(scores.length);
  order(scores).forEach((at, place) => (found[at] = place + 1));
  return found;
}

/** How a place has changed, in words. */
export function moved(from, to) {
  return from === to ? "same" : from > to ? `up ${from - to}` : `down ${to - from}`;
}

/** [name, milliseconds] of an answer, in the order in which they were spent. */
export function timeParts(timings) {
  const parts = [["Queue", timings.queue_us], ["State", timings.state_us], ["Features", timings.features_us], ["Encode", timings.encode_us], ["Score", timings.score_us], ["Merge", timings.merge_us], ["Rerank", timings.rerank_us]]
    .filter(([name, us]) => us > 0 || name === "Encode" || name === "Score").map(([name, us]) => [name, us / 1e3]);
  const rest = timings.total_us / 1e3 - parts.reduce((sum, [, value]) => sum + value, 0);
  return rest > 0.005 ? [...parts, ["Other", rest]] : parts;
}

export function cacheSentence(cache) {
  if (!cache.reused_tokens && !cache.encoded_tokens) return "There was nothing to encode.";
  const encoded = `${words.counted(cache.encoded_tokens, "token")} encoded`;
  if (cache.source === "NONE") return `No KV state was used: ${encoded}.`;
  return `The KV state came from ${words.TIERS[cache.source]}: ${words.counted(cache.reused_tokens, "token")} reused, ${encoded}.`;
}

/** The table of the best candidates, with more on demand. cells: (position, place) => the cells behind the title. */
export function ranking(caption, answer, ids, title, columns, cells) {
  const best = order(answer.scores);
  const unknown = new Set(answer.unknown), failed = new Set(answer.failed);
  const place = el("div", null);
  const draw = (num) => {
    const rows = best.slice(0, num).map((at, index) => [String(index + 1), titled(title(ids[at]), ids[at], unknown.has(at), failed.has(at)), ...cells(at, index + 1)]);
    put(place, table(caption, [{ name: "Place", number: true }, { name: "Item", heads: false }, ...columns], rows, { className: "ranking" }),
      num < best.length ? el("p", null, el("button", { type: "button", onclick: () => draw(num + 500) }, `Show more of ${words.number(best.length)}`)) : null);
  };
  draw(SHOWN);
  return place;
}

export function titled(title, id, isUnknown, isFailed) {
  return el("span", { class: "item" }, el("span", { class: "title" }, title || `Item ${id}`), el("span", { class: "note" }, title ? `id ${id}` : "no title",
    isUnknown ? " · not known to the model" : "", isFailed ? " · no finite score" : ""));
}

export default class Rank {
  title = "Rank";

  constructor(shell) {
    this.shell = shell;
    this.user = new UserField("rank-user", () => shell.users);
    this.model = modelSelect("rank-model", shell.models, "");
    this.candidates = new Candidates("rank-candidates", () => this.model.value);
    this.submit = el("button", { type: "submit", class: "main" }, "Rank");
    this.notice = el("div", { role: "alert" });
    this.results = el("div", null);
    this.told = el("p", { class: "unseen", role: "status" });
    this.element = el("div", null,
      el("div", { class: "head" }, el("h1", null, "Rank"), el("p", { class: "lead" }, "One user, some candidates: their scores, where each millisecond went, and what the cache was worth.")),
      el("form", { class: "panel form", onsubmit: (event) => this.asked(event) }, this.user.element, field("Model", this.model), this.candidates.element,
        el("div", { class: "actions" }, this.submit)),
      this.notice, this.told, this.results);
  }

  start() {
    this.user.show();
    const chosen = this.model.value;
    const anew = modelSelect("rank-model", this.shell.models, chosen);
    this.model.replaceWith(anew);
    this.model = anew;
    if (!this.user.value && this.shell.users.length) this.user.input.value = this.shell.users[0];
    if (!this.candidates.text.value && this.shell.models.length) this.candidates.sample();
  }

  stop() {}

  info() {
    return this.shell.models.find((model) => model.name === this.model.value) ?? this.shell.models[0];
  }

  async guarded(work) {
    this.submit.disabled = true;
    put(this.notice);
    try {
      await work();
    } catch (error) {
      const text = error instanceof api.Refused ? api.explain(error) : error.message;
      put(this.notice, el("p", { class: "notice" }, text));
      this.shell.lost(error);
    } finally {
      this.submit.disabled = false;
    }
  }

  asked(event) {
    event.preventDefault();
    return this.guarded(async () => {
      const ids = this.candidates.ids(), userId = this.user.value, model = this.model.value;
      if (!userId) throw new Error("There is no user: type an id.");
      const now = await api.info();
      this.asks = { user_id: userId, model, request_time_ms: now.now_ms };
      this.ids = ids;
      let answer = await api.rank(this.asks, ids);
      remember(userId);
      this.user.show();
      this.name = await api.titlesOf(model, ids).catch(() => () => "");
      this.showAnswer(answer);
      await this.compare(answer);
    });
  }

  showAnswer(answer) {
    this.answer = answer;
    const tasks = answer.tasks;
    this.proof = el("section", { class: "panel" }, el("h2", null, "Cached against recomputed"), el("p", { class: "note" }, "Asking for the same scores without the cache …"));
    this.change = el("div", null);
    this.told.textContent = `${words.counted(answer.num_scored, "candidate")} scored.`;
    const version = el("code", null, answer.model_version);
    put(this.results, el("div", { class: "two" },
      el("section", { class: "panel" }, el("h2", null, "Where the time went"),
        el("p", null, el("strong", { class: "big" }, words.ms(answer.timings.total_us / 1e3)), ` in the engine for ${words.counted(answer.num_scored, "candidate")}; ${words.ms(answer.took_ms)} as this page saw it.`),
        stack(timeParts(answer.timings), 0, words.ms),
        el("p", null, cacheSentence(answer.cache), ` The history has ${words.counted(answer.history_len, "event")}. Version `, version, "."),
        answer.stale ? el("p", { class: "notice" }, "The event log could not be asked: these scores are of the last history that was verified.") : null,
        answer.partial_merge ? el("p", { class: "notice" }, "Some member of the ensemble is missing from this merge.") : null),
      this.proof),
      this.appendForm(),
      this.change,
      el("section", { class: "panel" }, el("h2", null, "Scores"),
        ranking("Candidates by score", answer, this.ids, this.name,
          [{ name: "Score", number: true }, ...tasks.map((task) => ({ name: task, number: true })), { name: "Try", hidden: true }],
          (at) => [words.score(answer.scores[at]), ...tasks.map((_, task) => words.score(answer.task_scores[task * answer.num_scored + at])),
            el("button", { type: "button", class: "small", "aria-label": `Choose ${this.name(this.ids[at]) || `item ${this.ids[at]}`} for an event`, onclick: () => this.choose(this.ids[at]) }, "Choose")])));
  }

  async compare(first) {
    // The first answer may have been the one that encoded the history: then the next one shows the cache.
    const cached = first.cache.encoded_tokens ? await api.rank(this.asks, this.ids) : first;
    const anew = await api.rank({ ...this.asks, recompute: true }, this.ids);
    put(this.proof, el("h2", null, "Cached against recomputed"), this.verdict(cached, anew));
  }

  verdict(cached, anew) {
    const numbers = cached.scores.concat(cached.task_scores), others = anew.scores.concat(anew.task_scores);
    const furthest = numbers.reduce((most, value, at) => Math.max(most, Math.abs(value - others[at])), 0);
    const same = numbers.length === others.length && numbers.every((value, at) => Object.is(value, others[at]));
    // What both answers are of: of an ensemble the members that arrived, too.
    const of = (answer) => [answer.history_version, answer.counters_version, answer.model_version, ...answer.members.map((member) => `${member.arrived} ${member.version}`)].join();
    const moved = of(cached) !== of(anew);
    const longest = Math.max(cached.timings.total_us, anew.timings.total_us) / 1e3;
    // Waiting is no work: how long depends on who else asks.
    const work = ({ timings }) => timings.total_us - timings.queue_us;
    const times = work(anew) / Math.max(1, work(cached));
    const verdict = moved
      ? el("p", null, el("span", { class: "badge bad" }, "not comparable"), " The history, the counters, the model or the members that arrived changed between the two answers: rank again.")
      : same
        ? el("p", null, el("span", { class: "badge good" }, "equal to the bit"), ` All ${words.number(numbers.length)} numbers of both answers are the same.`)
        : el("p", null, el("span", { class: "badge bad" }, "not equal to the bit"), ` The furthest two of ${words.number(numbers.length)} numbers are ${furthest.toExponential(2)} apart: this backend rounds by the order of its sums.`);
    const useless = !cached.cache.reused_tokens;
    return [verdict,
      el("h3", null, useless ? "As asked" : "With the KV state"), stack(timeParts(cached.timings), longest, words.ms), el("p", { class: "note" }, cacheSentence(cached.cache)),
      el("h3", null, "Recomputed"), stack(timeParts(anew.timings), longest, words.ms), el("p", { class: "note" }, cacheSentence(anew.cache)),
      el("p", null, useless ? "This user or model has no KV state to reuse, so both did the same work."
        : times >= 1.05 ? `Without the queue, recomputed took ${times.toFixed(1)} times as long.` : "Without the queue, both took about as long: this history is cheap to encode, or the machine was busy.")];
  }

  choose(id) {
    this.item.value = id;
    this.describe();
    this.item.scrollIntoView({ block: "center", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    this.item.focus({ preventScroll: true });
  }

  describe() {
    const id = this.item.value.trim();
    this.itemName.textContent = this.name(id) || "An item id; “Choose” in the table below fills it in.";
  }

  appendForm() {
    const actions = this.info()?.actions ?? [];
    this.item = el("input", { type: "text", inputmode: "numeric", required: true, autocomplete: "off", oninput: () => this.describe(), id: "event-item", "aria-describedby": "event-item-name" });
    this.itemName = el("p", { class: "note", id: "event-item-name" });
    this.value = el("input", { type: "number", step: "any", value: "0" });
    this.boxes = actions.map((action, at) => el("input", { type: "checkbox", value: at, checked: at === actions.length - 1 }));
    const form = el("form", { class: "panel form", "aria-label": "Append an event", onsubmit: (event) => this.append(event) },
      el("h2", null, "What an event changes"),
      el("p", { class: "note wide" }, "This writes to the user's history, for good, and ranks again with the same candidates and time."),
      el("div", { class: "field" }, el("label", { for: "event-item" }, "Item id"), this.item, this.itemName),
      field("Value", this.value, "A rating, a dwell time: what the model was trained on."),
      el("fieldset", { class: "field wide" }, el("legend", null, "Actions"), actions.length
        ? el("div", { class: "row" }, actions.map((action, at) => el("label", { class: "check" }, this.boxes[at], action)))
        : el("p", { class: "note" }, "This model names no actions.")),
      el("div", { class: "actions" }, el("button", { type: "submit" }, "Append and rank again")));
    this.item.value = this.ids[order(this.answer.scores)[0]];
    this.describe();
    this.suggest();
    return form;
  }

  /** Actions and value as in the newest event of the history, where we may read that: a likely event of this data. */
  async suggest() {
    const { boxes, value, answer } = this;
    if (!answer.history_len) return;
    const page = await api.history(this.asks.user_id, answer.history_len - 1, 1, false).catch(() => null);
    const newest = page?.events[0];
    if (!newest) return;
    value.value = String(newest.value);
    for (const box of boxes) box.checked = Math.floor(newest.actions / 2 ** Number(box.value)) % 2 === 1;
  }

  append(event) {
    event.preventDefault();
    return this.guarded(async () => {
      const [id, ...more] = api.itemIds(this.item.value);
      if (!id || more.length) throw new Error("An event is of one item: type its id.");
      const value = Number(this.value.value || 0);
      if (!Number.isFinite(value)) throw new Error("The value must be a number.");
      const bits = this.boxes.filter((box) => box.checked).reduce((mask, box) => mask + 2 ** Number(box.value), 0);
      const before = await api.rank(this.asks, this.ids);
      const told = await api.append(this.asks.user_id, { item_id: id, actions: bits, value, time_ms: this.asks.request_time_ms });
      const after = await api.rank(this.asks, this.ids);
      this.name = await api.titlesOf(this.asks.model, [...this.ids, id]).catch(() => this.name);
      this.showAnswer(after);
      put(this.change, this.changed(before, after, told, id));
      this.change.firstElementChild.focus();
      await this.compare(after);
    });
  }

  changed(before, after, told, id) {
    const from = places(before.scores), numMoved = places(after.scores).filter((place, at) => place !== from[at]).length;
    const name = this.name(id) || `item ${id}`;
    return el("section", { class: "panel", tabindex: -1, "aria-label": "What the event changed" }, el("h2", null, "What the event changed"),
      el("p", null, `“${name}” is event ${words.number(told.history_len)} of the history`, told.inserted.length ? ", put where its time belongs" : "", `. ${words.number(numMoved)} of ${words.counted(after.num_scored, "candidate")} changed places. `, cacheSentence(after.cache)),
      ranking("Scores before and after the event", after, this.ids, this.name,
        [{ name: "Before", number: true }, { name: "After", number: true }, { name: "Difference", number: true }, { name: "Place before", number: true }, { name: "Moved" }],
        (at, place) => [words.score(before.scores[at]), words.score(after.scores[at]), words.signed(after.scores[at] - before.scores[at]), String(from[at]), moved(from[at], place)]));
  }
}
