// Elements are made here and nowhere else, always from text: nothing that a server or a person says becomes markup.

const SVG = "http://www.w3.org/2000/svg";
const SHAPES = new Set(["svg", "path", "line", "rect", "g", "text", "title", "circle"]);

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An element: its name, its attributes (on… is a listener), and texts or elements in it. */
export function el(name, properties, ...children) {
  return fill(document.createElement(name), properties, children);
}

/** The same in SVG. */
export function shape(name, properties, ...children) {
  if (!SHAPES.has(name)) throw new Error(name);
  return fill(document.createElementNS(SVG, name), properties, children);
}

/** What an element holds is now this. */
export function put(element, ...children) {
  element.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
}

/** A table. columns: [{name, number?, hidden?}]; rows: lists of cells, texts or elements. */
export function table(caption, columns, rows, { captionShown = false, className = "" } = {}) {
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    el("table", { class: className },
      el("caption", { class: captionShown ? "" : "unseen" }, caption),
      el("thead", null, el("tr", null, columns.map((column) =>
        el("th", { scope: "col", class: column.number ? "number" : "" }, column.hidden ? el("span", { class: "unseen" }, column.name) : column.name)))),
      el("tbody", null, rows.map((row) => el("tr", null, row.map((cell, at) =>
        at === 0 && columns[0].heads
          ? el("th", { scope: "row" }, cell)
          : el("td", { class: columns[at].number ? "number" : "" }, cell)))))));
}

let count = 0;

/** A labelled field: the label, then what it is of, then a hint. */
export function field(label, control, hint) {
  const id = control.id || `field-${++count}`;
  control.id = id;
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  return el("div", { class: "field" }, el("label", { for: id }, label), control, hint && el("p", { class: "note", id: `${id}-hint` }, hint));
}
