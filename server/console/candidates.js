// Candidates: typed, pasted, or sampled of the model's items.
import * as api from "./api.js";
import { el } from "./dom.js";
import * as words from "./words.js";

export class Candidates {
  constructor(id, model) {
    this.model = model;
    this.seed = 0;
    this.text = el("textarea", { id, rows: 3, spellcheck: "false", autocomplete: "off", "aria-describedby": `${id}-hint`, oninput: () => this.count() });
    this.size = el("select", { "aria-label": "How many items to sample" }, [20, 100, 500, 1000].map((size) => el("option", { value: size, selected: size === 100 }, String(size))));
    this.told = el("p", { class: "note", id: `${id}-hint`, role: "status" }, "Item ids, separated by spaces, commas or lines.");
    this.element = el("div", { class: "field wide" }, el("label", { for: id }, "Candidates"), this.text,
      el("div", { class: "row" }, el("button", { type: "button", onclick: () => this.sample() }, "Sample items"), this.size, this.told));
  }

  /** Item ids as texts. Throws a sentence. */
  ids() {
    const ids = api.itemIds(this.text.value);
    if (!ids.length) throw new Error("There are no candidates: type item ids, or sample some.");
    return ids;
  }

  count() {
    const num = (this.text.value.match(/[^\s,;]+/g) ?? []).length;
    this.told.textContent = num ? words.counted(num, "candidate") : "Item ids, separated by spaces, commas or lines.";
  }

  async sample() {
    try {
      this.seed += 1;
      const found = await api.items(this.model(), [], Number(this.size.value), this.seed);
      this.text.value = found.items.map(([id]) => id).join(" ");
      this.count();
      if (!found.items.length) this.told.textContent = "This model has no item table here to sample from.";
    } catch (error) {
      this.told.textContent = api.explain(error);
    }
  }
}

/** A select of what is served. */
export function modelSelect(id, models, chosen) {
  return el("select", { id }, models.length
    ? models.map((model) => el("option", { value: model.name, selected: model.name === chosen }, model.name + (model.ensemble ? " (ensemble)" : "")))
    : el("option", { value: "" }, "the default model"));
}
