// The scatter plot of the chosen pair: a point per checkpoint, a colour and shape per family.
const SHAPES = [
  "M-5,0A5,5 0 1 0 5,0A5,5 0 1 0 -5,0Z", "M-4.5,-4.5H4.5V4.5H-4.5Z", "M0,-6L5.5,4.5H-5.5Z", "M0,-6L6,0L0,6L-6,0Z",
  "M0,6L5.5,-4.5H-5.5Z", "M-2,-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z", "M-5.5,-3L-3,-5.5L0,-2.5L3,-5.5L5.5,-3L2.5,0L5.5,3L3,5.5L0,2.5L-3,5.5L-5.5,3L-2.5,0Z",
  "M-6,0L4.5,-5.5V5.5Z", "M6,0L-4.5,-5.5V5.5Z",
];
const group = checkpoints[report.group].map((name) => (name === null ? "unknown" : String(name)));
const families = [...new Set(group)].sort();
const number_of = new Map(families.map((name, index) => [name, index]));
const name_of = (row) => {
  const revision = checkpoints.revision[row];
  return checkpoints.checkpoint[row] + (revision === null || revision === "main" ? "" : `@${revision}`);
};
const hidden = new Set();
const box = byId("scatter");
const shape_of = (parent, family) =>
  svg(parent, "path", { d: SHAPES[number_of.get(family) % SHAPES.length], class: `mark c${number_of.get(family) % 7}` });

let points = []; // drawn: {row, x, y, element}, by x
let current = -1;
const tip = html(document.createDocumentFragment(), "div", undefined, { class: "tip", "aria-hidden": "true" });

const measured = (name, row) => cell({ key: name, kind: "value" }, checkpoints, row);
const hide = () => {
  tip.remove();
  points[current]?.element.classList.remove("current");
};
const show = (index) => {
  hide();
  current = index;
  const { row, x, y, element } = points[index];
  element.classList.add("current");
  tip.textContent = "";
  html(tip, "strong", name_of(row));
  html(tip, "span", `${report.group}: ${group[row]}`);
  for (const name of [chosen.predictor, chosen.outcome]) html(tip, "span", `${name} = ${measured(name, row)}`);
  box.appendChild(tip);
  const scale = box.clientWidth / box.querySelector("svg").viewBox.baseVal.width;
  const left = Math.min(Math.max(x * scale - tip.offsetWidth / 2, 0), box.clientWidth - tip.offsetWidth);
  const above = y * scale - tip.offsetHeight - 14;
  tip.style.left = `${left}px`;
  tip.style.top = `${above < 0 ? y * scale + 14 : above}px`;
};
const focus = (index) => {
  points.forEach(({ element }, other) => element.setAttribute("tabindex", other === index ? "0" : "-1"));
  points[index].element.focus();
};

// Round numbers that span the values, about `count` of them.
const ticks = (low, high, count) => {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, index) => {
    const at = (first + index) * step;
    return { at, text: minus(Math.abs(at) >= 1e6 ? at.toExponential(1) : at.toFixed(digits)) };
  });
};
const span = (rows, name) => {
  const ends = rows.flatMap((row) => {
    const error = checkpoints[`${name}_stderr`]?.[row] ?? 0;
    return [checkpoints[name][row] - error, checkpoints[name][row] + error];
  });
  const [low, high] = [ends.reduce((a, b) => Math.min(a, b)), ends.reduce((a, b) => Math.max(a, b))];
  const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low - margin, high + margin];
};

const draw_scatter = () => {
  const { predictor, outcome } = chosen;
  byId("predictor-label").textContent = `${labels[predictor]} →`;
  byId("outcome-label").textContent = `↑ ${labels[outcome]}`;
  hide();
  box.textContent = "";
  points = [];
  current = -1;
  const width = Math.max(box.clientWidth, 260);
  const height = Math.min(Math.max(width * 0.62, 280), 520);
  const plot = svg(box, "svg", {
    viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${labels[outcome]} against ${labels[predictor]}`,
  });
  const all = group.map((_, row) => row).filter((row) => checkpoints[predictor][row] !== null && checkpoints[outcome][row] !== null);
  const rows = all.filter((row) => !hidden.has(group[row]));
  const filtered = rows.length < all.length;
  byId("shown").textContent = `${rows.length} of ${all.length} checkpoints shown.` +
    (filtered ? " The coefficients are those of all families, not only of those shown." : "");
  if (!rows.length) {
    svg(plot, "text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "no checkpoint to show");
    return;
  }
  const [left, right, top, bottom] = [56, width - 8, 8, height - 26];
  const [x_span, y_span] = [span(rows, predictor), span(rows, outcome)];
  const x_of = (number) => left + ((number - x_span[0]) / (x_span[1] - x_span[0])) * (right - left);
  const y_of = (number) => bottom - ((number - y_span[0]) / (y_span[1] - y_span[0])) * (bottom - top);
  for (const { at, text } of ticks(...x_span, Math.max(3, width / 130))) {
    svg(plot, "line", { x1: x_of(at), x2: x_of(at), y1: top, y2: bottom, class: "grid" });
    svg(plot, "text", { x: x_of(at), y: bottom + 18, "text-anchor": "middle" }, text);
  }
  for (const { at, text } of ticks(...y_span, height / 70)) {
    svg(plot, "line", { x1: left, x2: right, y1: y_of(at), y2: y_of(at), class: "grid" });
    svg(plot, "text", { x: left - 6, y: y_of(at) + 4, "text-anchor": "end" }, text);
  }
  svg(plot, "path", { d: `M${left},${top}V${bottom}H${right}`, fill: "none", class: "frame" });
  rows.sort((a, b) => checkpoints[predictor][a] - checkpoints[predictor][b]);
  points = rows.map((row, index) => {
    const [x_value, y_value] = [checkpoints[predictor][row], checkpoints[outcome][row]];
    const [x, y] = [x_of(x_value), y_of(y_value)];
    const element = svg(plot, "g", {
      class: "point", role: "img", tabindex: index ? -1 : 0,
      "aria-label": `${name_of(row)}, ${report.group} ${group[row]}: ${predictor} ${measured(predictor, row)}, ${outcome} ${measured(outcome, row)}`,
    });
    const colour = `bar c${number_of.get(group[row]) % 7}`;
    const [x_error, y_error] = [predictor, outcome].map((name) => checkpoints[`${name}_stderr`]?.[row] ?? 0);
    if (x_error) svg(element, "line", { x1: x_of(x_value - x_error), x2: x_of(x_value + x_error), y1: y, y2: y, class: colour });
    if (y_error) svg(element, "line", { x1: x, x2: x, y1: y_of(y_value - y_error), y2: y_of(y_value + y_error), class: colour });
    const shape = shape_of(element, group[row]);
    shape.setAttribute("transform", `translate(${x},${y})`);
    if ([predictor, outcome].some((name) => checkpoints[`${name}_below_floor`]?.[row])) shape.classList.add("hollow");
    element.addEventListener("focus", () => show(index));
    element.addEventListener("blur", hide);
    return { row, x, y, element };
  });
};

// The point nearest to the pointer, within a finger's width.
const nearest = (event) => {
  const plot = box.querySelector("svg");
  const area = plot.getBoundingClientRect();
  const scale = plot.viewBox.baseVal.width / area.width;
  const [x, y] = [(event.clientX - area.left) * scale, (event.clientY - area.top) * scale];
  const distances = points.map((point) => Math.hypot(point.x - x, point.y - y));
  const index = distances.reduce((best, distance, other) => (distance < (distances[best] ?? 22) ? other : best), -1);
  if (index < 0) hide();
  else show(index);
};
box.addEventListener("pointermove", nearest);
box.addEventListener("pointerdown", nearest);
box.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
box.addEventListener("keydown", (event) => {
  if (event.key === "Escape") return hide();
  const last = points.length - 1;
  const to = { ArrowRight: current + 1, ArrowUp: current + 1, ArrowLeft: current - 1, ArrowDown: current - 1, Home: 0, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  focus(Math.min(Math.max(to, 0), last));
});
