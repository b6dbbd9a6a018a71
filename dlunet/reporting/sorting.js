// Tables of class "sortable" are sorted by the column whose title is clicked, and in reverse by a second click.

function sortBy(header) {
  const table = header.closest("table"), body = table.tBodies[0];
  const isNumber = header.classList.contains("number");
  const direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const text = (row) => row.cells[header.cellIndex]?.textContent.trim() ?? "";
  const value = (row) => (isNumber ? parseFloat(text(row).replace("<", "").replace("−", "-")) : text(row));
  const compare = (one, other) => {
    if (!isNumber) return direction * one.localeCompare(other, "en", { numeric: true });
    if (Number.isNaN(one) || Number.isNaN(other)) return Number.isNaN(one) - Number.isNaN(other); // missing ones last
    return direction * (one - other);
  };
  body.append(...[...body.rows].sort((one, other) => compare(value(one), value(other))));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
}

for (const header of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.append(...header.childNodes);
  button.type = "button";
  button.addEventListener("click", () => sortBy(header));
  header.append(button);
}
