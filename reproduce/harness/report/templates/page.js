"use strict";
// The page reads without this: it makes tables sortable, and shows what a link leads to where that is folded away.

const collator = new Intl.Collator("en", { numeric: true });

function keyOf(row, column) {
  const cell = row.cells[column];
  return cell ? (cell.dataset.sort ?? cell.textContent.trim()) : "";
}

function compare(one, other) {
  const numbers = [Number(one), Number(other)];
  return numbers.some(Number.isNaN) ? collator.compare(one, other) : numbers[0] - numbers[1];
}

// Ascending, descending, as printed; what has no value comes last either way.
function sort(table, head, column, printed) {
  const next = { ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")] ?? "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", next);
  const sign = next === "descending" ? -1 : 1;
  const rows = printed.map((row) => ({ row, key: keyOf(row, column) }));
  if (next !== "none") {
    rows.sort((a, b) => (a.key === "") - (b.key === "") || sign * compare(a.key, b.key));
  }
  table.tBodies[0].append(...rows.map(({ row }) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const printed = [...table.tBodies[0].rows];
  const heads = table.tHead.rows[table.tHead.rows.length - 1].cells;
  [...heads].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, head, column, printed));
  });
}

function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target; at; at = at.parentElement) {
    if (at.tagName === "DETAILS") at.open = true;
  }
  target?.scrollIntoView();
}

addEventListener("hashchange", unfold);
if (location.hash) unfold();
