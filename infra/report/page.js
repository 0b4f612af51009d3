// Charts: show the values under the pointer, a vertical line in the chart and the numbers above it.
for (const chart of document.querySelectorAll("svg[data-series]")) {
  const { x_title, series } = JSON.parse(chart.dataset.series);
  const output = chart.parentElement.querySelector("output");
  const cursor = chart.querySelector(".cursor");
  const width = chart.viewBox.baseVal.width;
  // A point is [step or epoch, formatted value, x, y].
  const nearest = (points, x) => points.reduce((a, b) => (Math.abs(b[2] - x) < Math.abs(a[2] - x) ? b : a));
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    const found = series.map((one) => [one.label, nearest(one.points, x)]);
    const at = nearest(found.map(([, point]) => point), x);
    cursor.setAttribute("x1", at[2]);
    cursor.setAttribute("x2", at[2]);
    cursor.style.visibility = "visible";
    const text = ([label, point]) => `${label} ${point[1]}` + (point[0] === at[0] ? "" : ` (at ${point[0]})`);
    output.textContent = [`${x_title} ${at[0].toLocaleString("en")}`, ...found.map(text)].join("  ·  ");
  });
  chart.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    output.textContent = "";
  });
}

// Links to a stage: open its details.
const openTarget = () => {
  const target = document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
};
addEventListener("hashchange", openTarget);
openTarget();
