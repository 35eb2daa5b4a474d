"use strict";
// Every head of a sortable table becomes a button. Lines are sorted inside their group; what has no number comes last.
const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

function number(text) {
  return text === "inf" ? Infinity : Number(text);
}

function compare(one, other, sign) {
  const [a, b] = [one.dataset.order, other.dataset.order];
  if (a !== undefined && b !== undefined) return sign * (number(a) - number(b)) || 0;
  if (a !== undefined || b !== undefined) return a !== undefined ? -1 : 1;
  const undefinedLast = (one.textContent.startsWith("–") ? 1 : 0) - (other.textContent.startsWith("–") ? 1 : 0);
  return undefinedLast || sign * collator.compare(one.textContent, other.textContent);
}

function sort(table, head) {
  const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  for (const body of table.tBodies) {
    const lines = [...body.rows].filter((line) => line.cells.length > head.cellIndex && !line.dataset.group);
    lines.sort((a, b) => compare(a.cells[head.cellIndex], b.cells[head.cellIndex], sign));
    body.append(...lines);
  }
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, head));
  }
}
