// The description of the HTTP API, made of /openapi.json.
import * as api from "./api.js";
import { el, put, table } from "./dom.js";

const at = (id) => document.getElementById(id);
const METHODS = ["get", "post", "put", "patch", "delete"];

function resolved(schema, spec) {
  const path = schema?.$ref?.replace("#/", "").split("/");
  return path ? path.reduce((part, name) => part[name], spec) : (schema ?? {});
}

const named = (schema) => schema?.$ref?.split("/").pop();

/** A bound: JavaScript has no number for those of 64 bits. */
function bound(value) {
  const powers = new Map([[2 ** 63, "2⁶³ − 1"], [-(2 ** 63), "−2⁶³"], [2 ** 64, "2⁶⁴ − 1"]]);
  return powers.get(Number(value)) ?? value;
}

/** What a value is, in a few words. */
export function kind(schema, spec) {
  if (!schema) return "";
  if (named(schema)) {
    const of = resolved(schema, spec);
    return of.enum ? of.enum.map((one) => JSON.stringify(one)).join(" or ") : named(schema);
  }
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  const several = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (several) return several.map((one) => kind(one, spec)).join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items, spec) || "values"}`;
  if (schema.type === "object" && schema.additionalProperties) return `object of ${kind(schema.additionalProperties, spec)}`;
  const limits = [schema.minimum !== undefined && `at least ${bound(schema.minimum)}`, schema.maximum !== undefined && `at most ${bound(schema.maximum)}`, schema.pattern && `like ${schema.pattern}`].filter(Boolean);
  return [schema.type ?? "value", ...limits].join(", ");
}

/** Names of schemas that are told apart, in the order in which they appear. */
function inner(schema, spec, found = new Set()) {
  const name = named(schema);
  if (name) {
    if (found.has(name)) return found;
    found.add(name);
  }
  const of = resolved(schema, spec);
  for (const part of [...Object.values(of.properties ?? {}), of.items, of.additionalProperties, ...(of.anyOf ?? []), ...(of.oneOf ?? []), ...(of.allOf ?? [])]) {
    if (part && typeof part === "object") inner(part, spec, found);
  }
  return found;
}

function fields(schema, spec, caption) {
  const of = resolved(schema, spec);
  const rows = Object.entries(of.properties ?? {}).map(([name, part]) => [el("code", null, name), kind(part, spec), (of.required ?? []).includes(name) ? "yes" : part.default !== undefined ? `no: ${JSON.stringify(part.default)}` : "no", part.description ?? resolved(part, spec).description ?? ""]);
  return rows.length ? table(caption, [{ name: "Field", heads: true }, { name: "Kind" }, { name: "Required" }, { name: "What it is" }], rows) : el("p", { class: "note" }, "No fields.");
}

function body(title, content, spec) {
  const schema = content?.["application/json"]?.schema;
  if (!schema) return null;
  const names = [...inner(schema, spec)];
  const example = resolved(schema, spec).examples?.[0];
  return [el("h3", null, title), fields(schema, spec, title), names.slice(named(schema) ? 1 : 0).map((name) => spec.components.schemas[name].properties
    ? [el("h3", null, name), fields({ $ref: `#/components/schemas/${name}` }, spec, name)] : null), example ? [el("h3", null, "Example"), el("pre", { tabindex: 0 }, JSON.stringify(example, null, 2))] : null];
}

function operation(method, path, of, spec) {
  const parameters = (of.parameters ?? []).map((one) => [el("code", null, one.name), one.in, kind(one.schema, spec), one.required ? "yes" : "no", one.description ?? one.schema?.description ?? ""]);
  const good = Object.entries(of.responses ?? {}).find(([code]) => code.startsWith("2"));
  const others = Object.entries(of.responses ?? {}).filter(([code]) => !code.startsWith("2")).map(([code, one]) => [el("code", null, code), one.description ?? ""]);
  // The address begins with the method's word, so that a screen reader hears all of it.
  return el("details", { class: "op" }, el("summary", null, el("span", { class: "method" }, method.toUpperCase()), el("code", null, path), el("span", { class: "note" }, of.description ?? of.summary ?? "")),
    parameters.length ? [el("h3", null, "Parameters"), table(`Parameters of ${method} ${path}`, [{ name: "Name", heads: true }, { name: "In" }, { name: "Kind" }, { name: "Required" }, { name: "What it is" }], parameters)] : null,
    body("Request", of.requestBody?.content, spec), good ? body(`Answer (${good[0]})`, good[1].content, spec) : null,
    others.length ? [el("h3", null, "Other answers"), table(`Other answers of ${method} ${path}`, [{ name: "Status", heads: true }, { name: "Meaning" }], others)] : null);
}

async function load() {
  try {
    const spec = await api.ask("GET", "/openapi.json");
    const tags = new Map();
    for (const [path, methods] of Object.entries(spec.paths)) {
      for (const method of METHODS.filter((name) => methods[name])) {
        const tag = methods[method].tags?.[0] ?? "other";
        tags.set(tag, [...(tags.get(tag) ?? []), operation(method, path, methods[method], spec)]);
      }
    }
    put(at("lead"), spec.info.description ?? spec.info.summary ?? "");
    const all = [...tags].sort(([a], [b]) => (a === "ranking" ? -1 : b === "ranking" ? 1 : 0));
    put(at("operations"), all.map(([tag, operations]) => el("section", { class: "panel" }, el("h2", null, tag[0].toUpperCase() + tag.slice(1)), operations)));
    at("token-panel").hidden = true;
  } catch (error) {
    put(at("lead"), el("span", { class: "notice" }, api.explain(error)));
  }
}

api.onUnauthenticated((message) => {
  at("token-panel").hidden = false;
  at("token-why").textContent = `This server wants a valid token. It said: ${message}`;
  at("token").focus();
});
at("token-panel").addEventListener("submit", (event) => {
  event.preventDefault();
  api.token.set(at("token").value.trim());
  at("token").value = "";
  load();
});
load();
