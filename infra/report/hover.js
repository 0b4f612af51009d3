// The values under the pointer: a line in the chart, the numbers above it.
for (const picture of document.querySelectorAll("svg[data-series]")) {
  const { across, lines } = JSON.parse(picture.dataset.series);
  const output = picture.parentElement.querySelector("output");
  const cursor = picture.querySelector(".cursor");
  const width = picture.viewBox.baseVal.width;
  const nearest = (points, x) => points.reduce((a, b) => (Math.abs(b[2] - x) < Math.abs(a[2] - x) ? b : a));
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    const found = lines.map((line) => [line.label, nearest(line.points, x)]);
    const at = nearest(found.map(([, point]) => point), x);
    cursor.setAttribute("x1", at[2]);
    cursor.setAttribute("x2", at[2]);
    cursor.style.visibility = "visible";
    const value = ([label, point]) => `${label} ${point[1]}` + (point[0] === at[0] ? "" : ` (at ${point[0]})`);
    output.textContent = [`${across} ${at[0].toLocaleString("en")}`, ...found.map(value)].join("  ·  ");
  });
  picture.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    output.textContent = "";
  });
}
