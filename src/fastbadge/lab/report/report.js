"use strict";
// Shows and hides what the page already holds; it draws nothing and asks nobody.
for (const chart of document.querySelectorAll(".chart")) {
  const series = (i) => chart.querySelectorAll(`g.series[data-series="${i}"]`);
  const hidden = new Set();

  for (const button of chart.querySelectorAll("button.toggle")) {
    button.addEventListener("click", () => {
      const i = Number(button.dataset.series);
      const shown = hidden.delete(i);
      if (!shown) hidden.add(i);
      button.setAttribute("aria-pressed", String(shown));
      for (const group of series(i)) group.classList.toggle("off", !shown);
    });
    for (const [event, lit] of [["pointerenter", true], ["pointerleave", false], ["focus", true], ["blur", false]]) {
      button.addEventListener(event, () => {
        for (const group of series(button.dataset.series)) group.classList.toggle("lit", lit);
      });
    }
  }

  const scale = chart.querySelector("button.scale");
  if (scale) {
    scale.addEventListener("click", () => {
      const log = chart.classList.toggle("is-log");
      scale.setAttribute("aria-pressed", String(log));
      leave();
    });
  }

  const columns = JSON.parse(chart.dataset.columns || "[]");
  const svg = chart.querySelector(".box > svg");
  const cursor = svg.querySelector(".cursor");
  const tip = chart.querySelector(".tip");
  const width = svg.viewBox.baseVal.width;
  const place = (column) => column.at[chart.classList.contains("is-log") ? "log" : "linear"];
  let at = -1;

  function leave() {
    at = -1;
    tip.hidden = true;
    cursor.classList.remove("on");
  }

  function show(index) {
    at = index;
    const column = columns[index];
    const x = place(column);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.classList.add("on");
    tip.replaceChildren();
    const name = document.createElement("b");
    name.textContent = column.name;
    tip.append(name);
    for (const [i, strategy, text] of column.rows) {
      if (hidden.has(i)) continue;
      const line = document.createElement("div");
      const swatch = document.createElement("i");
      swatch.style.cssText = chart.querySelector(`button.toggle[data-series="${i}"]`).style.cssText;
      line.append(swatch, `${strategy} `);
      const value = document.createElement("span");
      value.textContent = text;
      line.append(value);
      tip.append(line);
    }
    tip.hidden = false;
    tip.style.left = `${(100 * x) / width}%`;
    tip.classList.toggle("left", x > width / 2);
  }

  if (columns.length) {
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * width;
      const gaps = columns.map((column) => Math.abs(place(column) - x));
      show(gaps.indexOf(Math.min(...gaps)));
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) {
        event.preventDefault();
        show(Math.min(columns.length - 1, Math.max(0, at + step)));
      } else if (event.key === "Escape") {
        leave();
      }
    });
  }
}

// On paper nothing can be unfolded.
const unfolded = [];
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    unfolded.push(details);
  }
});
addEventListener("afterprint", () => {
  for (const details of unfolded.splice(0)) details.open = false;
});
