// Elements, numbers and times. Text reaches the page as text only, never as markup.
"use strict";
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(3)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const many = (n) => n.toLocaleString("en");
const signed = (v, digits = 4) => (v < 0 ? "−" : "+") + Math.abs(v).toFixed(digits);
const percent = (share) => `${Number((100 * share).toPrecision(3))} %`;
const plain = (v, digits = 4) => (v === null || v === undefined ? "–" : v.toFixed(digits));

const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "local";
const full = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" });
const dayOnly = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const hourOnly = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const monthOnly = new Intl.DateTimeFormat("en-GB", { month: "short", year: "numeric" });
const local = (at) => full.format(new Date(at * 1000));
const utc = (at) => new Date(at * 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC";
const dayOf = (at) => dayOnly.format(new Date(at * 1000));

// A time in the reader's zone; UTC shows on hover, and where a reader of screens asks for the title.
const when = (at) => el("time", { datetime: new Date(at * 1000).toISOString(), title: utc(at) }, local(at));

// A sentence with its times, which stand in it as {@seconds}.
function told(text) {
  return text.split(/(\{@-?\d+\})/).map((piece) => {
    const found = /^\{@(-?\d+)\}$/.exec(piece);
    return found ? when(Number(found[1])) : piece;
  });
}

function ago(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

function span(seconds) {
  for (const [unit, name] of [[86400, "day"], [3600, "hour"], [60, "minute"]]) {
    if (seconds >= unit) {
      const n = Number((seconds / unit).toPrecision(3));
      return n === 1 ? name : `${n} ${name}s`;
    }
  }
  return `${seconds} s`;
}

// A table of rows of [text or node]; names that begin with "#" are numbers, flush right.
function table(caption, names, rows) {
  const cell = (tag, name, content) => el(tag, { class: name.startsWith("#") ? "n" : null, scope: tag === "th" ? "col" : null }, content);
  return el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {}, el("thead", {}, el("tr", {}, names.map((n) => cell("th", n, n.replace("#", ""))))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((c, i) => cell("td", names[i], c)))))));
}
const asTable = (key, caption, names, rows) =>
  el("details", { "data-key": key }, el("summary", {}, "The same as a table"), table(caption, names, rows));
