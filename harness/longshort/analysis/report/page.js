// Controls, and what the page shows first.
const options = (parent, outcomes) => {
  for (const name of outcomes) html(parent, "option", labels[name], { value: name });
};
if (report.outcomes.length > report.headline.length && report.headline.length) {
  options(html(byId("outcome"), "optgroup", undefined, { label: "Main outcomes" }), report.headline);
  const others = report.outcomes.filter((name) => !report.headline.includes(name));
  options(html(byId("outcome"), "optgroup", undefined, { label: "Other outcomes" }), others);
} else options(byId("outcome"), report.outcomes);
byId("outcome").addEventListener("change", () => {
  const outcome = byId("outcome").value;
  const first = ranking.predictor[places(outcome)[0]];
  choose(row_of(ranking, chosen.predictor, outcome) < 0 ? first : chosen.predictor, outcome);
});
for (const button of document.querySelectorAll("#findings button")) {
  button.addEventListener("click", () => {
    choose(button.dataset.predictor, button.dataset.outcome);
    byId("leaderboard").scrollIntoView({ block: "nearest" });
  });
}

byId("group-name").textContent = report.group === "family" ? "Families" : report.group;
const boxes = families.map((family) => {
  const label = html(byId("families"), "label");
  const input = html(label, "input", undefined, { type: "checkbox" });
  input.checked = true;
  shape_of(svg(label, "svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }), family);
  html(label, "span", family);
  input.addEventListener("change", () => {
    if (input.checked) hidden.delete(family);
    else hidden.add(family);
    draw_scatter();
  });
  return input;
});
for (const [id, checked] of [["all", true], ["none", false]]) {
  byId(id).addEventListener("click", () => {
    boxes.forEach((input) => { input.checked = checked; });
    hidden.clear();
    if (!checked) families.forEach((family) => hidden.add(family));
    draw_scatter();
  });
}

byId("more").addEventListener("click", () => show_all(byId("more").getAttribute("aria-expanded") === "false"));
axis(byId("axis"));
if (chosen.predictor) {
  choose(chosen.predictor);
  let drawn_width = box.clientWidth;
  new ResizeObserver(() => {
    if (box.clientWidth === drawn_width) return;
    drawn_width = box.clientWidth;
    draw_scatter();
  }).observe(box);
}
document.querySelectorAll("[data-table]").forEach(fill);
