// Tables of class "sortable" are sorted by the column whose title is clicked, and in reverse by a second click.

/** Numbers by value, missing ones last; other cells as texts, with numbers in them in order. */
function compare(one, other) {
  const numbers = [one, other].map((text) => parseFloat(text.replace("<", "").replace("−", "-")));
  if (numbers.every(Number.isNaN)) return one.localeCompare(other, "en", { numeric: true });
  if (numbers.some(Number.isNaN)) return Number.isNaN(numbers[0]) ? 1 : -1;
  return numbers[0] - numbers[1];
}

function sortBy(header) {
  const table = header.closest("table"), body = table.tBodies[0];
  const descending = header.getAttribute("aria-sort") === "ascending";
  const text = (row) => row.cells[header.cellIndex]?.textContent.trim() ?? "";
  const rows = [...body.rows].sort((one, other) => (descending ? compare(text(other), text(one)) : compare(text(one), text(other))));
  body.append(...rows);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

for (const header of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.append(...header.childNodes);
  button.type = "button";
  button.addEventListener("click", () => sortBy(header));
  header.append(button);
}
