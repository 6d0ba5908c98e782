// The patients' table: sorted by a click on a heading, filtered by words and by the flag "check"; plots that name
// their points.
"use strict";
{
  const table = document.querySelector("table.patients");

  /** A cell's number, or its text in lower case; null where it is empty. */
  function valueOf(cell) {
    if (cell.dataset.value !== undefined) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    const text = cell.textContent.trim();
    if (text === "" || text === "–") return null;
    return /^\d+(\.\d+)?$/.test(text) ? Number(text) : text.toLowerCase();
  }

  /** Sorts the body by a column; empty cells stay last either way. */
  function sortBy(head) {
    const column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = [...table.tBodies[0].rows].map(row => [valueOf(row.cells[column]), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const numbers = typeof a === "number" && typeof b === "number";
      const order = numbers ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});
      return down ? -order : order;
    });
    table.tBodies[0].append(...keyed.map(([, row]) => row));
  }

  if (table) {
    const search = document.getElementById("search");
    const onlyCheck = document.getElementById("only-check");
    const count = document.getElementById("count");
    const rows = [...table.tBodies[0].rows].map(row =>
      [row, [...row.querySelectorAll(".words")].map(cell => `${cell.title} ${cell.textContent}`).join(" ").toLowerCase()]);
    const patients = new Set(rows.map(([row]) => row.dataset.patient.toLowerCase()));

    const filter = () => {
      const wanted = search.value.trim().toLowerCase(), words = wanted.split(/\s+/);
      const found = new Set();
      for (const [row, text] of rows) {
        // A patient's whole name means that patient, and not patient10 where patient1 is asked for.
        const named = patients.has(wanted) ? row.dataset.patient.toLowerCase() === wanted : words.every(word => text.includes(word));
        row.hidden = !named || (onlyCheck.checked && !("check" in row.dataset));
        if (!row.hidden) found.add(row.dataset.patient);
      }
      for (const clip of document.querySelectorAll("article.clip")) clip.hidden = !found.has(clip.dataset.patient);
      count.textContent = found.size === rows.length ? rows.length : `${found.size} of ${rows.length}`;
    };
    search.addEventListener("input", filter);
    onlyCheck.addEventListener("change", filter);
    filter();  // a reloaded page keeps what was typed
    for (const head of table.tHead.rows[0].cells) head.querySelector("button").addEventListener("click", () => sortBy(head));

    for (const figure of document.querySelectorAll("figure[data-patients]")) {
      const patients = JSON.parse(figure.dataset.patients);
      figure.querySelectorAll(".points use").forEach((point, index) => {
        const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
        title.textContent = patients[index];
        point.append(title);
        point.addEventListener("click", () => {
          search.value = patients[index];
          filter();
          table.scrollIntoView({block: "start"});
        });
      });
    }
  }
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details")) part.open = true;
  });
}
