"use strict";
const nav = document.querySelector("nav"); // links to the sections
document.querySelectorAll(".part").forEach((part, p, parts) => part.querySelectorAll("section").forEach((section, s) => {
  section.id = `part-${p + 1}-${s + 1}`;
  const link = document.createElement("a");
  link.href = `#${section.id}`;
  link.textContent = (parts.length > 1 ? `${p + 1}. ` : "") + section.querySelector("h3").textContent;
  nav.append(link);
}));

// A button on each column sorts the rows: the largest number first, then the smallest; texts without a number are last.
function compare(a, b) {
  const [x, y] = [Number.parseFloat(a), Number.parseFloat(b)];
  if (Number.isNaN(x) && Number.isNaN(y)) return b.localeCompare(a);
  return (Number.isNaN(x) ? -Infinity : x) - (Number.isNaN(y) ? -Infinity : y) || 0;
}
document.querySelectorAll("table.sortable").forEach((table) => [...table.tHead.rows[0].cells].forEach((head, column) => {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    table.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyOf = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
    const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? compare(keyOf(b), keyOf(a)) : compare(keyOf(a), keyOf(b))));
    table.tBodies[0].append(...rows);
  });
}));

// The values of a chart at the pointer, or at the place that the arrow keys choose.
const tip = document.getElementById("tip");
document.querySelectorAll(".chart").forEach((chart) => {
  const svg = chart.querySelector("svg"), points = JSON.parse(chart.dataset.points), width = svg.viewBox.baseVal.width;
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
    cursor.setAttribute("d", `M${places[place]} 14V210`);
    svg.append(cursor);
    tip.replaceChildren(...points.filter((point) => point.x === places[place]).map((point) => {
      const line = document.createElement("div"), mark = document.createElement("i");
      mark.className = point.c;
      line.append(mark, point.t);
      return line;
    }));
    tip.hidden = false;
    const box = svg.getBoundingClientRect(), right = box.left + (places[place] / width) * box.width + 12;
    const fits = right + tip.offsetWidth < document.documentElement.clientWidth;
    tip.style.left = `${Math.max(4, fits ? right : right - tip.offsetWidth - 24)}px`;
    tip.style.top = `${Math.max(4, box.top + 8)}px`;
  }
  function showNearest(event) {
    const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * width;
    show(places.reduce((best, value, index) => (Math.abs(value - x) < Math.abs(places[best] - x) ? index : best), 0));
  }
  ["pointermove", "pointerdown"].forEach((kind) => svg.addEventListener(kind, showNearest));
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
