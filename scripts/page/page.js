"use strict";
// Links to the sections.
const nav = document.querySelector("nav");
const several = document.querySelectorAll(".part").length > 1;
document.querySelectorAll(".part").forEach((part, p) => part.querySelectorAll("section").forEach((section, s) => {
  section.id = `part-${p + 1}-${s + 1}`;
  const link = document.createElement("a");
  link.href = `#${section.id}`;
  link.textContent = (several ? `${p + 1}. ` : "") + section.querySelector("h3").textContent;
  nav.append(link);
}));

// A button on each column sorts the rows: numbers the largest first, then the smallest first.
function keyOf(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.sort ?? cell.textContent;
  const number = Number.parseFloat(text);
  return Number.isNaN(number) ? text.trim() : number;
}
function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? 1 : -1;
  return b.localeCompare(a);
}
document.querySelectorAll("table.sortable").forEach((table) => {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      table.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].map((row) => [keyOf(row, column), row]);
      rows.sort(([a], [b]) => (down ? compare(b, a) : compare(a, b)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
});

// The values of a chart at the pointer, or where the arrow keys are.
const tip = document.getElementById("tip");
document.querySelectorAll(".chart").forEach((chart) => {
  const svg = chart.querySelector("svg");
  const points = JSON.parse(chart.dataset.points);
  const places = [...new Set(points.map((point) => point.x))].sort((a, b) => a - b);
  const cursor = document.createElementNS(svg.namespaceURI, "path");
  cursor.setAttribute("class", "cursor");
  let place = -1;
  function hide() {
    tip.hidden = true;
    cursor.remove();
  }
  function show(index) {
    place = Math.max(0, Math.min(places.length - 1, index));
    const x = places[place];
    cursor.setAttribute("d", `M${x} 14V210`);
    svg.append(cursor);
    tip.replaceChildren(...points.filter((point) => point.x === x).map((point) => {
      const line = document.createElement("div");
      const mark = document.createElement("i");
      mark.className = point.c;
      line.append(mark, point.t);
      return line;
    }));
    tip.hidden = false;
    const box = svg.getBoundingClientRect();
    const left = box.left + (x / svg.viewBox.baseVal.width) * box.width + 12;
    const room = document.documentElement.clientWidth;
    tip.style.left = `${Math.max(4, left + tip.offsetWidth > room ? left - tip.offsetWidth - 24 : left)}px`;
    tip.style.top = `${Math.max(4, box.top + 8)}px`;
  }
  function nearest(event) {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    show(places.reduce((best, value, index) => (Math.abs(value - x) < Math.abs(places[best] - x) ? index : best), 0));
  }
  svg.addEventListener("pointermove", nearest);
  svg.addEventListener("pointerdown", nearest);
  svg.addEventListener("pointerleave", hide);
  chart.addEventListener("blur", hide);
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -places.length, End: places.length }[event.key];
    if (event.key === "Escape") hide();
    if (step === undefined) return;
    event.preventDefault();
    show(place + step);
  });
});
