// Runs the networks of demo.json in the browser, and draws what they make of the same noise.
"use strict";

const find = (id) => document.getElementById(id);
let facts, asked = 0, busy = false;

// Returns a new element within a parent.
function add(parent, kind, given = {}) {
  const made = Object.assign(document.createElement(kind), given);
  parent.append(made);
  return made;
}

// Adds a slider with its name and its value.
function slider(name, range, text) {
  const label = add(find("controls"), "label", { className: "slider" });
  add(label, "span", { textContent: name });
  const input = add(label, "input", { type: "range", ...range });
  const value = add(label, "output");
  const show = () => input.setAttribute("aria-valuetext", (value.value = text(input)));
  input.addEventListener("input", () => { show(); draw(); });
  show();
}

// Adds a menu of texts.
function menu(texts, name) {
  const select = add(find("prompt"), "select", { ariaLabel: name, className: "menu" });
  for (const text of texts) add(select, "option", { value: text, textContent: text || "alone" });
  select.addEventListener("change", draw);
  return select;
}

// Adds the labels as buttons, of which one is pressed; many labels are a menu.
function labels() {
  const group = find("labels");
  group.hidden = false;
  if (facts.labels > 12) {
    const select = add(group, "select", { id: "label", ariaLabel: "label" });
    for (let i = -1; i < facts.labels; i++) {
      add(select, "option", { value: i, textContent: i < 0 ? "in turn" : i });
    }
    select.addEventListener("change", draw);
    return;
  }
  for (let i = -1; i < facts.labels; i++) {
    const chip = add(group, "label", { className: "chip" });
    add(chip, "input", { type: "radio", name: "label", value: i, checked: i < 0 })
      .addEventListener("change", draw);
    add(chip, "span", { textContent: i < 0 ? "in turn" : i });
  }
}

// Builds what a person can choose, and a place for the pictures of each network.
function build() {
  document.title = facts.title;
  find("title").textContent = facts.title;
  if (facts.labels) labels();
  if (facts.menus) {
    find("prompt").hidden = false;
    facts.menus.forEach((texts, i) => menu(texts, ["prompt", "relation", "second object"][i]));
  }
  if (facts.w) {
    const [min, max, value] = facts.w;
    slider(facts.networks.every(takes("w")) ? "guidance w" : `${role("w")}'s w`, { id: "w", min, max, step: 0.25, value }, (input) => input.value);
    find("hint").textContent = "Guidance w = 0 is none; more follows the label or prompt more closely.";
  }
  if (facts.steps) {
    const max = facts.steps.length - 1;
    slider(`${role("num_steps")}'s steps`, { id: "steps", min: 0, max, step: 1, value: max }, steps);
  }
  for (const network of facts.networks) {
    const figure = network.figure = add(find("networks"), "figure");
    add(figure, "h2", { textContent: network.name });
    const grid = add(figure, "div", { className: "grid" });
    const [height, width] = network.outputs[0].shape.slice(1);
    network.canvases = Array.from({ length: facts.pictures }, (_, i) =>
      add(grid, "canvas", { width, height, role: "img", ariaLabel: `picture ${i} of ${network.name}` }));
    grid.style.setProperty("--columns", Math.ceil(Math.sqrt(facts.pictures)));
    network.caption = add(figure, "figcaption", { textContent: "loading ..." });
  }
  find("seed").addEventListener("input", draw);
  find("next").addEventListener("click", () => { find("seed").value = seed() + 1; draw(); });
}

const steps = (input) => facts.steps[input.value];
const takes = (input) => ({ inputs }) => inputs.some(({ name }) => name === input);
const role = (input) => facts.networks.find(takes(input)).name.split(" ")[0];
const cost = (network) => network.calls * (takes("num_steps")(network) ? steps(find("steps")) : 1);
const quickest = () => [...facts.networks].sort((a, b) => cost(a) - cost(b));
const seed = () => Math.min(Math.max(Math.trunc(Number(find("seed").value)) || 0, 0), 2 ** 32 - 1);

// Returns the prompt of the menus; a menu at its empty text ends it, and hides those after it.
function prompt() {
  const menus = [...document.querySelectorAll(".menu")];
  const empty = menus.findIndex(({ value }) => !value);
  const end = empty < 0 ? menus.length : empty;
  menus.forEach((each, i) => { each.hidden = i > end; });
  return menus.slice(0, end).map(({ value }) => value).join(" ");
}

// Returns the values of an input of a network, by its name in the description of the program.
function values(network, { name, shape }) {
  const size = shape.reduce((a, b) => a * b, 1);
  if (name === "noise") {
    const calls = shape.length === 5 ? shape[1] : 1;
    const one = shape.slice(-3).reduce((a, b) => a * b);
    return Noise.of(seed(), facts.pictures, one, calls, network.later);
  }
  if (name === "label") {
    const label = Number(document.querySelector("#label, input[name=label]:checked").value);
    return Int32Array.from({ length: size }, (_, i) => (label < 0 ? i % facts.labels : label));
  }
  if (name === "w") return new Float32Array(size).fill(find("w").value);
  if (name === "num_steps") return Int32Array.of(steps(find("steps")));
  const ids = network.tokens[prompt()][name];
  return Int32Array.from({ length: size }, (_, i) => ids[i % ids.length]);
}

// Draws the pictures of a network, and says what they took.
async function drawOne(network) {
  const feeds = Object.fromEntries(network.inputs.map((input) =>
    [input.name, new ort.Tensor(input.dtype, values(network, input), input.shape)]));
  const count = feeds.num_steps ? feeds.num_steps.data[0] : 1;
  network.figure.ariaBusy = true;
  const from = performance.now();
  const { images } = await network.session.run(feeds);
  const time = performance.now() - from, calls = network.calls * count;
  show(network, images.data, images.dims[3]);
  network.figure.ariaBusy = false;
  network.milliseconds = time / calls;
  network.caption.textContent = "";
  const words = [`${calls} call${calls > 1 ? "s" : ""}, ${time.toFixed(time < 10 ? 1 : 0)} ms`];
  if (calls > 1) words.push(`(${network.milliseconds.toPrecision(2)} ms a call)`);
  for (const textContent of words) add(network.caption, "span", { textContent });
}

// Writes images in [-1, 1] into the canvases of a network, rounded as the package does.
function show(network, data, channels) {
  network.canvases.forEach((canvas, i) => {
    const pixels = new ImageData(canvas.width, canvas.height);
    const first = i * canvas.width * canvas.height;
    for (let p = 0; p < canvas.width * canvas.height; p++) {
      for (let c = 0; c < 4; c++) {
        const x = data[(first + p) * channels + (channels > 1 ? c : 0)];
        pixels.data[4 * p + c] = c === 3 ? 255 : 127.5 * (x + 1);
      }
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  });
}

// Draws what is chosen, by the quickest network first; while it draws, only the newest choice waits.
async function draw() {
  asked += 1;
  if (busy) return;
  busy = true;
  for (let now = -1; now !== asked;) {
    now = asked;
    find("status").textContent = facts.menus ? prompt() : "";
    for (const network of quickest()) {
      if (now === asked) await drawOne(network);
    }
  }
  busy = false;
  document.body.dataset.drawn = asked;
}

async function start() {
  if (location.protocol === "file:") {
    throw Error("serve this folder: python -m http.server, and open http://localhost:8000");
  }
  facts = await (await fetch("demo.json")).json();
  build();
  ort.env.wasm.proxy = true;  // A worker, so that the page answers while a network draws.
  ort.env.wasm.numThreads = 1;  // More need headers of the server.
  ort.env.wasm.wasmPaths = new URL("runtime/", location.href).href;
  for (const network of quickest()) {
    network.session = await ort.InferenceSession.create(network.file);
    await drawOne(network);  // The first run is slow, and its time is not shown for long.
  }
  await draw();
}

start().catch((error) => { find("status").textContent = error.message; console.error(error.message); });
