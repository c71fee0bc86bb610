const MAX_PRINTED = { checkpoints: 100, others: 200 }; // rows of a table that is printed

// Tables that sort by a column: ascending first, then descending; missing values stay last.
const fill = (table) => {
  const { columns, values } = tables[table.dataset.table];
  const count = columns.length ? Math.max(...Object.values(values).map((column) => column.length)) : 0;
  if (!count) {
    html(html(html(table, "tbody"), "tr"), "td", "Nothing was computed.");
    return;
  }
  table.classList.toggle("long", count > (MAX_PRINTED[table.dataset.table] ?? MAX_PRINTED.others));
  const head = html(html(table, "thead"), "tr");
  const body = html(table, "tbody");
  const rows = Array.from({ length: count }, (_, row) => {
    const line = html(body, "tr");
    columns.forEach((column, index) => {
      const text = cell(column, values, row);
      const classes = (column.print ? "" : "extra ") + (String(text).length > 40 ? "wrap" : "");
      html(line, index ? "td" : "th", text, index ? { class: classes } : { scope: "row" });
    });
    return line;
  });
  const heads = columns.map(({ key, kind, label, print }) => {
    const head_cell = html(head, "th", undefined, { scope: "col", "aria-sort": "none", class: print ? "" : "extra" });
    const title = labels[key] && labels[key] !== label ? { title: labels[key] } : {};
    html(head_cell, "button", label, { type: "button", ...title }).addEventListener("click", () => {
      const up = head_cell.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head_cell.setAttribute("aria-sort", up ? "ascending" : "descending");
      const sorted = values[kind === "range" ? `${key}_lo` : key];
      const order = rows.map((_, row) => row).sort((a, b) => {
        const [one, other] = [sorted[a], sorted[b]];
        if (missing(one) || missing(other)) return missing(one) - missing(other);
        const difference = typeof one === "number" ? one - other : String(one).localeCompare(String(other), "en", { numeric: true });
        return up ? difference : -difference;
      });
      body.append(...order.map((row) => rows[row]));
    });
    return head_cell;
  });
};
