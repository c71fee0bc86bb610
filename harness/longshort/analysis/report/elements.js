"use strict";
// Elements and numbers. Text goes into the page through textContent alone, so that a name is never markup.
const report = JSON.parse(document.getElementById("data").textContent);
const { tables, labels, names } = report;
const checkpoints = tables.checkpoints.values;
const byId = (id) => document.getElementById(id);

const put = (parent, element, text) => {
  if (text !== undefined) element.textContent = text;
  return parent.appendChild(element);
};
const dress = (element, attributes) => {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};
const html = (parent, name, text, attributes = {}) => dress(put(parent, document.createElement(name), text), attributes);
const svg = (parent, name, attributes = {}, text) =>
  dress(put(parent, document.createElementNS("http://www.w3.org/2000/svg", name), text), attributes);

const missing = (number) => number === null || number === undefined;
const minus = (text) => text.replaceAll("-", "−");
const value = (number, digits = 4) => {
  if (missing(number)) return "–";
  if (typeof number !== "number") return String(number);
  if (Number.isInteger(number)) return minus(number.toLocaleString("en-GB").replaceAll(",", "\u202f"));
  const size = Math.abs(number);
  return minus(size >= 1e-3 && size < 1e6 ? number.toPrecision(digits) : number.toExponential(2));
};
const decimals = (number) => (missing(number) ? "–" : minus(number.toFixed(2).replace("-0.00", "0.00")));
const range = (low, high) => (missing(low) || missing(high) ? "" : `[${decimals(low)}, ${decimals(high)}]`);

// A table's cell as text: a value with its interval, or with its standard error and its numerical floor.
const cell = ({ key, kind }, values, row) => {
  const at = (name) => (values[name] ? values[name][row] : null);
  const number = at(key);
  const [low, high, error] = [at(`${key}_lo`), at(`${key}_hi`), at(`${key}_stderr`)];
  if (kind === "range") return missing(low) || missing(high) ? "–" : `${decimals(low)} to ${decimals(high)}`;
  if (kind === "text") return number ?? "";
  if (missing(number)) return "–";
  if (kind === "p") return number < 0.001 ? "< 0.001" : number.toFixed(3);
  if (kind === "coefficient") return `${decimals(number)} ${range(low, high)}`.trim();
  const floor = at(`${key}_floor`);
  const flagged = at(`${key}_below_floor`) ? ` ${report.mark}` : "";
  return value(number) + (missing(error) ? "" : ` ± ${value(error, 2)}`) + (missing(floor) ? "" : `, floor ${value(floor, 2)}${flagged}`);
};
