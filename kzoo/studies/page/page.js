"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const views = new Map();
  // The log is of errors only (1): that nothing is left to draw, with all arms hidden, is no news.
  const OPTIONS = {
    actions: false, renderer: "svg", mode: "vega-lite", logLevel: 1, tooltip: { theme: "custom" },
  };

  // A spec as the controls beside its figure ask for it.
  function asked(name, controls) {
    const spec = structuredClone(specs[name]);
    const axis = controls?.querySelector("select");
    if (axis) {
      spec.params.find((param) => param.name === "axis").value = axis.value;
      spec.encoding.x.title = axis.selectedOptions[0].text;
      if (axis.value !== "steps") spec.encoding.x.axis.format = "~s";
      for (const channel of ["x", "y"]) {
        if (controls.querySelector(`[data-log=${channel}]`).checked) {
          const { zero, ...scale } = spec.encoding[channel].scale;
          spec.encoding[channel].scale = { ...scale, type: "log" };
        }
      }
    }
    const hidden = spec.params?.find((param) => param.name === "hidden");
    if (hidden) hidden.value = hiddenArms(controls);
    return spec;
  }

  function hiddenArms(controls) {
    const boxes = controls ? [...controls.querySelectorAll("[data-arm]")] : [];
    return boxes.filter((box) => !box.checked).map((box) => box.dataset.arm);
  }

  function controlsOf(chart) {
    return chart.closest("section")?.querySelector(".controls");
  }

  async function draw(chart) {
    const name = chart.dataset.figure;
    views.get(name)?.finalize();
    try {
      views.set(name, await vegaEmbed(chart, asked(name, controlsOf(chart)), OPTIONS));
      chart.dataset.drawn = "yes";
    } catch (error) {
      chart.textContent = `This figure could not be drawn: ${error.message}`;
      console.error(error);
    }
  }

  function changed(controls, input) {
    const charts = controls.closest("section").querySelectorAll("[data-figure]");
    for (const chart of charts) {
      const view = views.get(chart.dataset.figure)?.view;
      if (input.dataset.arm === undefined) draw(chart);
      else view?.signal("hidden", hiddenArms(controls)).runAsync();
    }
  }

  // A table's rows by one of its columns, and back: numbers as numbers, empty ones last.
  function sort(button) {
    const header = button.closest("th"), body = header.closest("table").tBodies[0];
    const up = header.getAttribute("aria-sort") !== "ascending";
    for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[header.cellIndex].dataset.value ?? row.cells[header.cellIndex].textContent.trim();
    const compare = (a, b) => {
      const numbers = [Number.parseFloat(a), Number.parseFloat(b)].map((x) => (Number.isNaN(x) ? Infinity : x));
      if (header.classList.contains("n")) {
        if (numbers.includes(Infinity)) return numbers[0] === numbers[1] ? 0 : numbers[0] - numbers[1];
        return (up ? 1 : -1) * (numbers[0] - numbers[1]);
      }
      return (up ? 1 : -1) * a.localeCompare(b);
    };
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
  }

  for (const controls of document.querySelectorAll(".controls")) {
    controls.addEventListener("change", (event) => changed(controls, event.target));
  }
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => sort(button));
  }
  (async () => {
    for (const chart of document.querySelectorAll("[data-figure]")) await draw(chart);
    document.documentElement.dataset.ready = "yes";
  })();
})();
