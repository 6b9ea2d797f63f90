// Whom this page asked for lately: in this tab's memory alone, so that the next person at this machine sees nobody.
import { el, put } from "./dom.js";

const PLACE = "mfalcon-users";
const KEPT = 12;

function recent() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(PLACE) ?? "[]");
    return Array.isArray(kept) ? kept.filter((user) => typeof user === "string") : [];
  } catch {
    return [];
  }
}

export function remember(userId) {
  sessionStorage.setItem(PLACE, JSON.stringify([userId, ...recent().filter((user) => user !== userId)].slice(0, KEPT)));
}

export function forget(userId) {
  sessionStorage.setItem(PLACE, JSON.stringify(recent().filter((user) => user !== userId)));
}

/** A field for a user's id, with buttons for those whom this tab asked for and for the server's examples. */
export class UserField {
  constructor(id, examples) {
    this.examples = examples;
    this.input = el("input", { id, type: "text", required: true, autocomplete: "off", spellcheck: "false", autocapitalize: "off", "aria-describedby": `${id}-hint` });
    this.choices = el("div", { class: "chips", id: `${id}-hint` });
    this.element = el("div", { class: "field wide" }, el("label", { for: id }, "User id"), this.input, this.choices);
    this.show();
  }

  get value() {
    return this.input.value;
  }

  show() {
    const mine = recent();
    const chip = (user, kind) => el("button", { type: "button", class: "chip", title: `${kind}: ${user}`, onclick: () => {
      this.input.value = user;
      this.input.dispatchEvent(new Event("input", { bubbles: true }));
    } }, user);
    const others = this.examples().filter((user) => !mine.includes(user));
    put(this.choices,
      mine.length ? [el("span", { class: "note" }, "Asked for in this tab:"), mine.map((user) => chip(user, "Asked for in this tab"))] : null,
      others.length ? [el("span", { class: "note" }, "Examples:"), others.map((user) => chip(user, "Example"))] : null,
      !mine.length && !others.length ? el("span", { class: "note" }, "Anybody: a user who is not known has an empty history.") : null);
  }
}
