// The leaderboard of the chosen outcome: a row per predictor with its interval drawn, one of them chosen.
const ranking = tables.leaderboard.values;
const correlated = tables.correlations.values;
const chosen = { predictor: report.start[0], outcome: report.start[1] };
const MAX_SHOWN = 12; // rows, and those of NLL and of the chosen predictor, until all are asked for
const TICKS = [-1, -0.5, 0, 0.5, 1];
const across = (number) => `${3 + ((number + 1) / 2) * 94}%`; // of a coefficient in a row's drawing
const row_of = (values, predictor, outcome) =>
  (values.predictor ?? []).findIndex((name, row) => name === predictor && values.outcome[row] === outcome);
const places = (outcome) => (ranking.outcome ?? []).flatMap((name, row) => (name === outcome ? [row] : []));

// A coefficient's interval as a line, its value as a circle (ρ) or a diamond (partial r).
const interval_mark = (plot, row, name, y, shape) => {
  const [number, low, high] = ["", "_lo", "_hi"].map((end) => ranking[name + end]?.[row]);
  if (missing(number)) return;
  const certain = !missing(low) && !missing(high) && (low > 0 || high < 0);
  const naive = ranking.interval?.[row] === "naive" ? " naive" : "";
  const mark = svg(plot, "g", { class: `${shape}${certain ? " certain" : ""}${naive}` });
  if (!missing(low) && !missing(high)) svg(mark, "line", { x1: across(low), x2: across(high), y1: y, y2: y });
  if (shape === "rho") svg(mark, "circle", { cx: across(number), cy: y, r: 5 });
  else svg(svg(mark, "svg", { x: across(number), y, overflow: "visible" }), "path", { d: "M0,-4.5L4.5,0L0,4.5L-4.5,0Z" });
};

const draw_row = (plot, row) => {
  for (const at of TICKS) svg(plot, "line", { x1: across(at), x2: across(at), y1: 0, y2: "100%", class: at ? "grid" : "zero" });
  interval_mark(plot, row, "spearman", 13, "rho");
  interval_mark(plot, row, "partial", 26, "partial");
};

const axis = (plot) => {
  for (const at of TICKS) svg(plot, "text", { x: across(at), y: 14, "text-anchor": "middle" }, minus(String(at)));
};

const draw_leaderboard = () => {
  const body = byId("leaderboard").querySelector("tbody");
  body.textContent = "";
  const rows = places(chosen.outcome);
  for (const row of rows) {
    const predictor = ranking.predictor[row];
    const line = html(body, "tr", undefined, { "data-predictor": predictor });
    line.classList.toggle("more", body.rows.length > MAX_SHOWN && predictor !== "nll");
    const label = html(html(line, "th", undefined, { scope: "row" }), "label");
    const radio = html(label, "input", undefined, { type: "radio", name: "predictor", value: predictor });
    html(label, "span", missing(ranking.rank[row]) ? "–" : String(ranking.rank[row]), { class: "rank" });
    html(label, "span", names[predictor], { title: labels[predictor] });
    radio.addEventListener("change", () => choose(predictor));
    line.addEventListener("click", () => choose(predictor));
    const forest = html(line, "td", undefined, { class: "forest" });
    if (missing(ranking.spearman[row])) html(forest, "span", ranking.note?.[row]?.replace("no coefficient: ", "") || "no coefficient", { class: "small" });
    else draw_row(svg(forest, "svg", { "aria-hidden": "true" }), row);
    const at = row_of(correlated, predictor, chosen.outcome);
    const flag = correlated.n_below_floor?.[at] ? report.mark : "";
    const naive = ranking.interval?.[row] === "naive" ? "†" : "";
    for (const [name, title] of [["spearman", "ρ"], ["partial", "partial r"]]) {
      const box = html(line, "td", undefined, { class: `number ${name}`, "data-label": title });
      html(box, "strong", decimals(ranking[name][row]));
      html(box, "span", range(ranking[`${name}_lo`][row], ranking[`${name}_hi`][row]));
    }
    html(line, "td", `${ranking.n[row]}${flag} (${ranking.n_families[row]}${naive})`, { class: `number counts${flag || naive ? " marked" : ""}`, "data-label": "n (F)" });
    html(line, "td", report.better[chosen.outcome][predictor] || "–", { class: "number better", "data-label": "better than" });
  }
  caption(rows);
  const controls = rows.map((row) => ranking.controls?.[row]).find(Boolean);
  const controlled = controls ? `controlling for ${controls.split(", ").map((name) => names[name] ?? name).join(", ")}` : "";
  for (const place of document.querySelectorAll(".controlled")) place.textContent = controlled;
  byId("answer").textContent = report.answers[chosen.outcome] ?? "";
};

// What all rows have in common is said once, above them, and its column hidden.
const caption = (rows) => {
  const counts = new Set(rows.map((row) => `n = ${ranking.n[row]} checkpoints of F = ${ranking.n_families[row]} ${report.group === "family" ? "families" : `values of ${report.group}`}`));
  const established = rows.some((row) => ranking.better_than?.[row]);
  byId("caption").textContent = rows.every((row) => missing(ranking.spearman[row])) ? "" : `${rows.length} predictors by |ρ|` +
    (counts.size === 1 ? `, ${[...counts][0]}.` : "; n checkpoints of F families.") +
    (established ? "" : " No difference between two of them is established.");
  byId("leaderboard").classList.toggle("same-counts", counts.size === 1 && !byId("leaderboard").querySelector("tbody .counts.marked"));
  byId("leaderboard").classList.toggle("none-better", !established);
  byId("more").hidden = rows.length <= MAX_SHOWN + 1;
  show_all(false);
};

const show_all = (all) => {
  byId("leaderboard").classList.toggle("all", all);
  byId("more").setAttribute("aria-expanded", String(all));
  byId("more").textContent = all ? `Show the first ${MAX_SHOWN}` : `Show all ${places(chosen.outcome).length} predictors`;
};

// What the leaderboard does not say of the chosen pair.
const describe_pair = () => {
  const list = byId("pair");
  list.textContent = "";
  const row = row_of(correlated, chosen.predictor, chosen.outcome);
  const place = row_of(ranking, chosen.predictor, chosen.outcome);
  const add = (term, text) => {
    if (text === "" || text === "–") return;
    const entry = html(list, "div");
    html(entry, "dt", term);
    html(entry, "dd", text);
  };
  for (const [end, term] of [["better_than", "Better than"], ["worse_than", "Worse than"]]) {
    const others = (ranking[end]?.[place] ?? "").split("; ").filter(Boolean);
    add(term, others.map((name) => names[name] ?? name).join(", "));
  }
  for (const column of tables.correlations.columns) {
    if (row >= 0 && report.pair_columns.includes(column.key)) add(column.label, cell(column, correlated, row));
  }
};

const choose = (predictor, outcome = chosen.outcome) => {
  const another = outcome !== chosen.outcome;
  Object.assign(chosen, { predictor, outcome });
  byId("outcome").value = outcome;
  if (another || !byId("leaderboard").querySelector("tbody tr")) draw_leaderboard();
  for (const line of byId("leaderboard").querySelectorAll("tbody tr")) {
    const is_chosen = line.dataset.predictor === predictor;
    line.classList.toggle("chosen", is_chosen);
    line.querySelector("input").checked = is_chosen;
  }
  for (const button of document.querySelectorAll("#findings button")) {
    const is_chosen = button.dataset.predictor === predictor && button.dataset.outcome === outcome;
    button.setAttribute("aria-pressed", String(is_chosen));
  }
  draw_scatter();
  describe_pair();
};
