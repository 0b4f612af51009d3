// Attention: a picture of each head of each layer, and the lines between the tokens of the chosen one.
(() => {
  const { layers, heads, tokens, secondStart, special } = JSON.parse(document.getElementById("attention-data").textContent);
  const length = tokens.length, rowHeight = 24, maxLines = 3000, minLine = 0.01;
  const drawsLines = length <= 24; // in the small pictures; longer texts are shown as maps of their weights
  const grid = document.getElementById("heads"), title = document.getElementById("head-title");
  const readout = document.getElementById("readout"), svg = document.querySelector("#lines svg");
  const sides = { from: document.getElementById("from"), to: document.getElementById("to") };
  const weights = []; // by layer: [heads * length * length] bytes, the roots of the weights times 255
  const buttons = { heads: [], from: [], to: [] };
  let chosen = [0, 0], shown = null, pinned = null; // [side, index] of the token whose weights are shown

  const weight = (layer, head, from, to) => (weights[layer][(head * length + from) * length + to] / 255) ** 2;
  const percent = (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`;
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  async function inflate(base64) {
    const bytes = Uint8Array.from(atob(base64.trim()), (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // The tokens that the filters leave, on either side.
  function visible() {
    const between = document.querySelector("input[name=between]:checked")?.value ?? "all";
    const hideSpecial = document.getElementById("hide-special").checked;
    const ofSide = (letter) => tokens.map((_, index) => index).filter((index) =>
      !(hideSpecial && special[index]) && (between === "all" || (letter === "B") === (index >= secondStart)));
    return { from: ofSide(between[0]), to: ofSide(between[1]) };
  }

  function drawThumbnail(layer, head, tokensShown) {
    const canvas = buttons.heads[layer * heads + head].firstChild, context = canvas.getContext("2d");
    context.globalAlpha = 1;
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.strokeStyle = context.fillStyle = color("--blue");
    (drawsLines ? drawLineThumbnail : drawMapThumbnail)(context, canvas.width, layer, head, tokensShown);
  }

  function drawLineThumbnail(context, size, layer, head, { from, to }) {
    const rows = Math.max(from.length, to.length);
    from.forEach((i, row) => to.forEach((j, column) => {
      const value = weight(layer, head, i, j);
      if (value < 0.03) return;
      context.globalAlpha = Math.min(1, 0.1 + value);
      context.lineWidth = 1 + 3 * value;
      context.beginPath();
      context.moveTo(size * 0.1, (size * (row + 0.5)) / rows);
      context.lineTo(size * 0.9, (size * (column + 0.5)) / rows);
      context.stroke();
    }));
  }

  // A cell of the map is as dark as the root of the largest weight in it.
  function drawMapThumbnail(context, size, layer, head, { from, to }) {
    const cells = Math.min(size, Math.max(from.length, to.length, 1)), image = new ImageData(cells, cells);
    const paint = [1, 3, 5].map((at) => parseInt(context.fillStyle.slice(at, at + 2), 16)); // #rrggbb
    for (let cell = 0; cell < cells * cells; cell++) image.data.set(paint, 4 * cell);
    from.forEach((i, row) => {
      const of = (head * length + i) * length, top = Math.floor((row * cells) / from.length) * cells;
      to.forEach((j, column) => {
        const alpha = 4 * (top + Math.floor((column * cells) / to.length)) + 3;
        if (image.data[alpha] < weights[layer][of + j]) image.data[alpha] = weights[layer][of + j];
      });
    });
    const map = new OffscreenCanvas(cells, cells);
    map.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(map, 0, 0, size, size);
  }

  async function drawThumbnails() {
    const tokensShown = visible();
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < heads; head++) drawThumbnail(layer, head, tokensShown);
      await new Promise(requestAnimationFrame); // the page stays responsive
    }
  }

  // The lines to draw, of one token or of all: [row on the left, row on the right, weight].
  function linesOf([layer, head], { from, to }) {
    const lines = [];
    from.forEach((i, row) => to.forEach((j, column) => {
      if (shown && (shown[0] === "from" ? i : j) !== shown[1]) return;
      const value = weight(layer, head, i, j);
      if (value >= (shown ? 0.001 : minLine)) lines.push([row, column, value]);
    }));
    return lines.sort((a, b) => b[2] - a[2]).slice(0, maxLines);
  }

  function drawLines() {
    const tokensShown = visible(), rows = Math.max(tokensShown.from.length, tokensShown.to.length);
    const y = (row) => (row + 0.5) * rowHeight;
    svg.setAttribute("viewBox", `0 0 100 ${Math.max(rows, 1) * rowHeight}`);
    svg.style.height = `${rows * rowHeight}px`;
    svg.innerHTML = linesOf(chosen, tokensShown).map(([row, column, value]) =>
      `<line x1="0" x2="100" y1="${y(row)}" y2="${y(column)}" stroke-opacity="${(0.12 + 0.88 * value).toFixed(3)}" stroke-width="${(0.6 + 4 * value).toFixed(2)}"/>`).join("");
    for (const side of ["from", "to"]) {
      const present = new Set(tokensShown[side]);
      buttons[side].forEach((button, index) => {
        const value = shown && shown[0] !== side ? (side === "to" ? weight(...chosen, shown[1], index) : weight(...chosen, index, shown[1])) : 0;
        button.hidden = !present.has(index);
        button.style.setProperty("--weight", value);
        button.querySelector("small").textContent = value >= 0.001 ? percent(value) : "";
        button.setAttribute("aria-pressed", pinned?.[0] === side && pinned[1] === index);
      });
    }
    readout.textContent = shown ? describe(tokensShown) : "";
  }

  function describe(tokensShown) {
    const [side, index] = shown, other = side === "from" ? "to" : "from";
    const values = tokensShown[other].map((one) => [tokens[one], side === "from" ? weight(...chosen, index, one) : weight(...chosen, one, index)]);
    const best = values.sort((a, b) => b[1] - a[1]).slice(0, 5).map(([token, value]) => `“${token}” ${percent(value)}`);
    return `“${tokens[index]}” ${side === "from" ? "attends to" : "is attended to by"} ${best.join(", ")}`;
  }

  function choose(layer, head, focus) {
    chosen = [layer, head];
    buttons.heads.forEach((button, index) => {
      const isChosen = index === layer * heads + head;
      button.setAttribute("aria-checked", isChosen);
      button.tabIndex = isChosen ? 0 : -1;
      if (isChosen && focus) button.focus();
    });
    title.textContent = `Layer ${layer + 1}, head ${head + 1}`;
    drawLines();
  }

  function show(token) {
    shown = token ?? pinned;
    drawLines();
  }

  function addHeads() {
    grid.append(document.createElement("span"));
    for (let head = 0; head < heads; head++) grid.append(Object.assign(document.createElement("span"), { textContent: head + 1 }));
    for (let layer = 0; layer < layers; layer++) {
      grid.append(Object.assign(document.createElement("span"), { textContent: layer + 1 }));
      for (let head = 0; head < heads; head++) {
        const button = document.createElement("button"), canvas = document.createElement("canvas");
        canvas.width = canvas.height = 128;
        button.type = "button";
        button.setAttribute("role", "radio");
        button.setAttribute("aria-label", `Layer ${layer + 1}, head ${head + 1}`);
        button.append(canvas);
        button.addEventListener("click", () => choose(layer, head, false));
        buttons.heads.push(button);
        grid.append(button);
      }
    }
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    grid.addEventListener("keydown", (event) => {
      const step = steps[event.key];
      if (!step) return;
      event.preventDefault();
      choose((chosen[0] + step[0] + layers) % layers, (chosen[1] + step[1] + heads) % heads, true);
    });
  }

  function addTokens(side) {
    tokens.forEach((token, index) => {
      const button = document.createElement("button"), text = document.createElement("span");
      button.type = "button";
      button.className = [special[index] ? "special" : "", index >= secondStart ? "second" : ""].join(" ").trim();
      button.tabIndex = index ? -1 : 0;
      text.textContent = button.title = token;
      button.append(text, document.createElement("small"));
      button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && show([side, index]));
      button.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && show(null));
      button.addEventListener("click", () => {
        pinned = pinned?.[0] === side && pinned[1] === index ? null : [side, index];
        show(null);
      });
      buttons[side].push(button);
      sides[side].append(button);
    });
    sides[side].addEventListener("keydown", (event) => {
      if (event.key === "ArrowUp" || event.key === "ArrowDown") {
        event.preventDefault();
        const present = buttons[side].filter((button) => !button.hidden), at = present.indexOf(document.activeElement);
        const next = present[Math.max(0, Math.min(present.length - 1, at + (event.key === "ArrowUp" ? -1 : 1)))];
        buttons[side].forEach((button) => (button.tabIndex = button === next ? 0 : -1));
        next.focus();
        pinned = [side, buttons[side].indexOf(next)];
        show(null);
      }
    });
  }

  function filter() {
    for (const side of ["from", "to"]) { // what can be reached with the tab key is visible
      const first = visible()[side][0];
      buttons[side].forEach((button, index) => (button.tabIndex = index === first ? 0 : -1));
    }
    if (pinned && !visible()[pinned[0]].includes(pinned[1])) pinned = null;
    show(null);
    drawThumbnails();
  }

  async function start() {
    if (!window.DecompressionStream) {
      readout.textContent = "This browser is too old to draw the attention: it has no DecompressionStream.";
      return;
    }
    for (const element of document.querySelectorAll(".layer-weights")) weights.push(await inflate(element.textContent));
    addHeads();
    addTokens("from");
    addTokens("to");
    choose(0, 0, false);
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      pinned = null;
      show(null);
    });
    document.querySelector(".controls").addEventListener("change", filter);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawThumbnails);
    await drawThumbnails();
    grid.dataset.drawn = "yes";
  }
  start();
})();
