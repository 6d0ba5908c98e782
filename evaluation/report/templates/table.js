// The patients' table: sorted by a click on a heading, filtered by words and by the flag "check"; plots that name
// their points. Of very many patients the rows are data, and a part of them at a time is in the page.
"use strict";
{
  const ROWS_SHOWN = 200;
  const table = document.querySelector("table.patients");
  const data = document.getElementById("rows");
  const {compare} = new Intl.Collator(undefined, {numeric: true});

  /** A text's number, or the text in lower case; null where it is empty. */
  function valueOfText(text) {
    if (text === "" || text === "–") return null;
    return /^−?\d+(\.\d+)?$/.test(text) ? Number(text.replace("−", "-")) : text.toLowerCase();
  }

  /** A cell's number, or its text in lower case; null where it is empty. */
  function valueOf(cell) {
    if (cell.dataset.value !== undefined) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    return valueOfText(cell.textContent.trim());
  }

  /** A row that is in the page. */
  function rowOfElement(element) {
    const words = [...element.querySelectorAll(".words")].map(cell => `${cell.title} ${cell.textContent}`).join(" ");
    return {
      patient: element.dataset.patient, check: "check" in element.dataset, text: words.toLowerCase(),
      value: column => valueOf(element.cells[column]), element: () => element,
    };
  }

  /** A row of data: patient, clips, whether to check it, and the cells as they are shown. */
  function rowOfData([patient, clips, check, ...cells], links, classes) {
    const last = cells.length - 1;
    const parts = cells.map(cell => [].concat(cell));
    const words = parts.filter((_, index) => classes[index + 1].includes("words")).flat();
    return {
      patient, check: check === 1, text: [clips, patient, ...words].join(" ").toLowerCase(),
      value: column => valueOfText(column === 0 ? patient : column === last + 1 ? parts[last].join(" ").trim() : parts[column - 1][0]),
      element() {
        const row = document.createElement("tr");
        row.dataset.patient = patient;
        if (check) row.dataset.check = "";
        const name = row.appendChild(document.createElement("th"));
        Object.assign(name, {className: classes[0], scope: "row", title: clips});
        if (links.has(patient)) add(name, "a", "", patient).href = links.get(patient);
        else name.textContent = patient;
        parts.forEach((part, index) => {
          const cell = row.insertCell();
          cell.className = classes[index + 1];
          if (index < last) cell.append(part[0]);
          else if (part[0]) add(cell, "b", {"✓": "good", "▲": "flag"}[part[0][0]] ?? "", part[0]).after(part[1] && ` ${part[1]}`);
          if (part.length > 1 && part.at(-1)) add(cell, "div", "small", part.at(-1));
        });
        return row;
      },
    };
  }

  function add(parent, tag, className, text) {
    const part = parent.appendChild(document.createElement(tag));
    return Object.assign(part, {className, textContent: text});
  }

  function readRows() {
    if (!data) return [...table.tBodies[0].rows].map(rowOfElement);
    const {links: places, rows} = JSON.parse(data.textContent);
    const links = new Map(Object.entries(places));
    const classes = [...table.tHead.rows[0].cells].map(head => head.className);
    classes[1] = "ef";
    classes[classes.length - 1] += " note";
    return rows.map(row => rowOfData(row, links, classes));
  }

  if (table) {
    const search = document.getElementById("search");
    const onlyCheck = document.getElementById("only-check");
    const count = document.getElementById("count");
    const rows = readRows();
    const patients = new Set(rows.map(row => row.patient.toLowerCase()));
    let found = rows, first = 0;  // the rows that are not filtered away, and the first of them that is shown

    /** Shows a part of the data's rows. */
    const show = start => {
      first = start;
      const part = found.slice(first, first + ROWS_SHOWN);
      table.tBodies[0].replaceChildren(...part.map(row => row.element()));
      document.getElementById("part").textContent = part.length ? `Rows ${first + 1} to ${first + part.length} of ${found.length}` : "No rows";
      for (const name of ["first", "previous"]) document.getElementById(name).disabled = first === 0;
      for (const name of ["next", "last"]) document.getElementById(name).disabled = first + ROWS_SHOWN >= found.length;
      table.parentElement.scrollTop = 0;
    };

    /** Sorts by a column; empty cells stay last either way. */
    const sortBy = head => {
      const column = head.cellIndex;
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = rows.map(row => [row.value(column), row]);
      keyed.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const numbers = typeof a === "number" && typeof b === "number";
        const order = numbers ? a - b : compare(a, b);
        return down ? -order : order;
      });
      keyed.forEach(([, row], index) => { rows[index] = row; });
      if (data) filter();
      else table.tBodies[0].append(...rows.map(row => row.element()));
    };

    const filter = () => {
      const wanted = search.value.trim().toLowerCase(), words = wanted.split(/\s+/);
      // A patient's whole name means that patient, and not patient10 where patient1 is asked for.
      const named = patients.has(wanted) ? row => row.patient.toLowerCase() === wanted : row => words.every(word => row.text.includes(word));
      found = rows.filter(row => named(row) && (row.check || !onlyCheck.checked));
      const kept = new Set(found), names = new Set(found.map(row => row.patient));
      if (data) show(0);
      else rows.forEach(row => { row.element().hidden = !kept.has(row); });
      for (const clip of document.querySelectorAll("article.clip")) clip.hidden = !names.has(clip.dataset.patient);
      count.textContent = found.length === rows.length ? rows.length : `${found.length} of ${rows.length}`;
    };
    search.addEventListener("input", filter);
    onlyCheck.addEventListener("change", filter);
    filter();  // a reloaded page keeps what was typed
    for (const head of table.tHead.rows[0].cells) head.querySelector("button").addEventListener("click", () => sortBy(head));
    if (data) {
      const last = () => Math.floor((found.length - 1) / ROWS_SHOWN) * ROWS_SHOWN;
      const starts = {first: () => 0, previous: () => first - ROWS_SHOWN, next: () => first + ROWS_SHOWN, last};
      for (const [name, start] of Object.entries(starts)) document.getElementById(name).addEventListener("click", () => show(start()));
    }

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
