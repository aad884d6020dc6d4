"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const COLORS = ["#2f7de1", "#e07b00", "#1a9e63", "#d6457a", "#8a63d2", "#7a8a00", "#0aa5b5", "#b5651d"];
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const SHAPES = ["M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "M-4-4h8v8h-8z", "M0-5.5L5.5 0 0 5.5-5.5 0z", "M0-5L5.5 4h-11z", "M-5.5-4h11L0 5z"];
const state = { w: DATA.first.w, n: DATA.first.n, measure: DATA.measures[0].name };

const short = (value) => (value == null ? "not measured" : String(+value.toPrecision(3)));

function make(tag, properties = {}, ...children) {
  const found = Object.assign(document.createElement(tag), properties);
  found.append(...children);
  return found;
}

function draw(tag, attributes, text) {
  const found = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  if (text !== undefined) found.textContent = text;
  return found;
}

/* Round numbers from low to high: powers of ten, or these times 1, 2, 5, or multiples of a step. */
function ticks(low, high, log) {
  const inside = (value) => value >= low * (1 - 1e-9) - 1e-12 && value <= high * (1 + 1e-9) + 1e-12;
  if (log) {
    for (const factors of [[1], [1, 2, 5]]) {
      const found = [];
      for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high)); k++)
        found.push(...factors.map((factor) => factor * 10 ** k).filter(inside));
      if (found.length >= 3) return found;
    }
  }
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let k = Math.ceil(low / step); k <= high / step + 1e-9; k++) found.push(k * step);
  return found;
}

/* The place of a value in pixels; one below a logarithmic axis is drawn at its floor. */
function scale(axis, from, to) {
  const place = axis.log ? (value) => Math.log(Math.max(value, axis.low)) : (value) => value;
  const low = place(axis.low), high = place(axis.high);
  return (value) => {
    const part = high > low ? (place(value) - low) / (high - low) : 0.5;
    return from + Math.min(1, Math.max(0, part)) * (to - from);
  };
}

/* Draws lines {color, dash, shape, hollow, faint, points: [{x, y, error, title}]} with axes {log, low, high, label}. */
function chart(host, lines, x, y, height) {
  const width = Math.max(240, host.clientWidth), left = 50, right = 10, top = 10, bottom = 40;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${y.label} against ${x.label}` });
  const across = scale(x, left, width - right), up = scale(y, height - bottom, top);
  for (const value of x.ticks ?? ticks(x.low, x.high, x.log)) {
    svg.append(draw("line", { x1: across(value), x2: across(value), y1: top, y2: height - bottom, stroke: "currentColor", opacity: 0.2 }));
    svg.append(draw("text", { x: across(value), y: height - bottom + 16, "text-anchor": "middle" }, short(value)));
  }
  for (const value of ticks(y.low, y.high, y.log)) {
    svg.append(draw("line", { x1: left, x2: width - right, y1: up(value), y2: up(value), stroke: "currentColor", opacity: 0.2 }));
    svg.append(draw("text", { x: left - 6, y: up(value) + 4, "text-anchor": "end" }, short(value)));
  }
  svg.append(draw("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, x.label));
  for (const line of lines) {
    const group = draw("g", { opacity: line.faint ? 0.25 : 1, class: "line" });
    const known = line.points.filter((point) => point.y != null);
    const path = known.map((point, i) => `${i ? "L" : "M"}${across(point.x).toFixed(1)} ${up(point.y).toFixed(1)}`).join("");
    group.append(draw("path", { d: path, fill: "none", stroke: line.color, "stroke-width": 2, "stroke-dasharray": line.dash }));
    for (const point of line.marked === false ? [] : known) {
      const cx = across(point.x), fill = line.hollow || (y.log && point.y < y.low) ? "var(--back)" : line.color;
      if (point.error) {
        const ends = { y1: up(point.y - point.error), y2: up(point.y + point.error) };
        group.append(draw("line", { x1: cx, x2: cx, ...ends, stroke: line.color, "stroke-width": 1.5, class: "error" }));
      }
      const place = `translate(${cx.toFixed(1)} ${up(point.y).toFixed(1)})`;
      const dot = draw("path", { d: SHAPES[line.shape], transform: place, class: "mark", fill, stroke: line.color, "stroke-width": 1.5 });
      dot.append(draw("title", {}, point.title));
      group.append(dot);
    }
    svg.append(group);
  }
  host.replaceChildren(svg);
}

function legend(entries) {
  const list = make("ul", { className: "legend" });
  for (const { name, color, dash, shape, hollow } of entries) {
    const svg = draw("svg", { viewBox: "0 0 30 12", "aria-hidden": true });
    svg.append(draw("line", { x1: 0, x2: 30, y1: 6, y2: 6, stroke: color, "stroke-width": 2, "stroke-dasharray": dash }));
    if (shape !== undefined) svg.append(draw("path", { d: SHAPES[shape], transform: "translate(15 6)", fill: hollow ? "var(--back)" : color, stroke: color }));
    list.append(make("li", {}, svg, name));
  }
  return list;
}

const samplers = [...new Set(DATA.rows.map((row) => row.sampler))];
const isTeacher = (sampler) => sampler.startsWith("teacher");
/* The style of a sampler: teachers are dashed and hollow. */
function look(sampler) {
  const hollow = isTeacher(sampler), place = samplers.filter((other) => isTeacher(other) === hollow).indexOf(sampler);
  return { dash: hollow ? DASHES[1 + (place % 3)] : "", shape: place % SHAPES.length, hollow };
}
const several = DATA.groups.length > 1;
const colorOf = (row) => COLORS[(several ? row.group : DATA.strengths.indexOf(row.w)) % COLORS.length];
const measure = () => DATA.measures.find((each) => each.name === state.measure);
const strength = () => DATA.strengths[state.w], steps = () => DATA.steps[state.n];

function pointOf(row, x) {
  const value = row.values[state.measure], error = row.errors[state.measure];
  const spread = error == null ? "" : ` ± ${short(error)}`;
  const title = `${several ? DATA.groups[row.group] + ", " : ""}${row.label}, w = ${row.w}: ${state.measure} ${short(value)}${spread}`;
  return { x, y: value, error, title };
}

function linesOf(rows, key, x) {
  const found = new Map();
  for (const row of rows) {
    const name = key(row);
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(row);
  }
  return [...found.values()].map((mine) => ({
    color: colorOf(mine[0]), ...look(mine[0].sampler),
    points: mine.sort((a, b) => x(a) - x(b)).map((row) => pointOf(row, x(row))), row: mine[0],
  }));
}

function drawQuality() {
  const about = measure(), y = { ...about, label: about.name };
  const low = Math.min(...DATA.steps), high = Math.max(...DATA.steps);
  const rows = DATA.rows.filter((row) => !several || row.w === strength());
  const lines = linesOf(rows, (row) => `${row.group} ${row.sampler} ${row.w}`, (row) => row.n);
  for (const line of lines) line.faint = !several && line.row.w !== strength();
  lines.sort((a, b) => b.faint - a.faint);
  const x = { log: true, low: low / 1.1, high: high * 1.1, ticks: DATA.steps, label: "sampling steps" };
  chart(document.getElementById("by-steps"), lines, x, y, 320);
  const host = document.getElementById("by-w");
  host.parentElement.hidden = DATA.strengths.length < 2;
  if (host.parentElement.hidden) return;
  const most = Math.max(...DATA.rows.filter((row) => row.sampler === "teacher").map((row) => row.n));
  const here = DATA.rows.filter((row) => row.n === steps() || (row.sampler === "teacher" && row.n === most));
  const byW = linesOf(here, (row) => `${row.group} ${row.sampler} ${row.n}`, (row) => row.w);
  byW.forEach((line, i) => {
    line.color = COLORS[(several ? line.row.group : i) % COLORS.length];
    line.name = `${several ? DATA.groups[line.row.group] + ": " : ""}${line.row.label}`;
  });
  const ends = { low: Math.min(...DATA.strengths), high: Math.max(...DATA.strengths) };
  chart(host, byW, { log: false, ...ends, ticks: DATA.strengths, label: "guidance strength w" }, y, 320);
  document.getElementById("by-w-legend").replaceChildren(legend(byW));
}

function qualityHost(host) {
  const select = make("select", { id: "measure" });
  for (const each of DATA.measures) select.append(make("option", { value: each.name }, each.name));
  const note = make("p", { className: "soft" });
  const tell = () => (note.textContent = measure().note);
  select.onchange = () => { state.measure = select.value; tell(); refresh(); };
  tell();
  const names = samplers.map((sampler) => ({ name: sampler, color: "currentColor", ...look(sampler) }));
  const colors = several ? DATA.groups.map((name, i) => ({ name, color: COLORS[i % COLORS.length], dash: "" }))
    : DATA.strengths.map((w, i) => ({ name: `w = ${w}`, color: COLORS[i % COLORS.length], dash: "" }));
  const panel = (title, id, below) =>
    make("figure", {}, make("figcaption", {}, title), make("div", { id, className: "chart" }), below);
  host.append(
    make("label", { htmlFor: "measure" }, "Measure "), select, note,
    make("div", { className: "charts" },
      panel(several ? "Against sampling steps, at the w chosen above" : "Against sampling steps", "by-steps", legend([...names, ...colors])),
      panel("Against w, at the steps chosen above", "by-w", make("div", { id: "by-w-legend" }))));
}

/* Draws rows of pictures from the same noise, each below its name. */
function gallery(host, rows) {
  const shown = rows.filter((row) => DATA.strips[row.strip]);
  const count = DATA.columns.length || Math.max(1, ...shown.map((row) => DATA.strips[row.strip].count));
  const points = count === 1, words = DATA.columns.some((name) => name.length > 3);
  const box = make("div", { className: `gallery ${points ? "points" : ""}` });
  box.style.setProperty("--columns", count);
  const large = shown.some((row) => DATA.strips[row.strip].side > 16);
  box.style.setProperty("--least", words ? "84px" : large ? "52px" : "26px");
  if (!points && DATA.columns.length) {
    const titles = DATA.columns.map((name) => make("div", {}, name));
    box.append(make("div", { className: "titles" }, ...titles));
  }
  for (const row of rows) {
    const found = DATA.strips[row.strip], item = make("div", { className: "row" });
    const value = row.values[DATA.measures[0].name];
    const about = `${short(row.ms)} ms an image` + (value == null ? "" : `, ${DATA.measures[0].name} ${short(value)}`);
    const who = `${several ? DATA.groups[row.group] + ": " : ""}${row.label}`;
    item.append(make("div", { className: "name" }, make("strong", {}, who), ` · w = ${row.w} · `, make("span", { className: "soft" }, about)));
    if (found) {
      const strip = make("div", { className: `strip ${found.side <= 48 ? "crisp" : ""}` });
      strip.style.setProperty("--strip", `url(${found.uri})`);
      for (let i = 0; i < found.count; i++) {
        const cell = make("div", { className: "cell", role: "img", ariaLabel: `${who}: ${DATA.columns[i] ?? "samples"}` });
        cell.style.setProperty("--aspect", found.aspect);
        cell.style.backgroundSize = `${100 * found.count}% 100%`;
        cell.style.backgroundPosition = `${found.count > 1 ? (100 * i) / (found.count - 1) : 0}% 0`;
        strip.append(cell);
      }
      item.append(strip);
    } else if (shown.length) item.append(make("p", { className: "soft" }, "No picture of this row was kept."));
    box.append(item);
  }
  host.replaceChildren(box);
}

function slider(id, title, values, show) {
  const input = make("input", { type: "range", id, min: 0, max: values.length - 1, step: 1, value: state[id] });
  const output = make("output", { htmlFor: id });
  const tell = () => { output.value = show(values[state[id]]); input.setAttribute("aria-valuetext", output.value); };
  input.oninput = () => { state[id] = +input.value; tell(); refresh(); };
  input.disabled = values.length < 2;
  tell();
  return make("div", {}, make("label", { htmlFor: id }, title, output), input);
}

function explorerHost(host) {
  host.append(
    make("div", { className: "controls" },
      slider("w", "Guidance strength: ", DATA.strengths, (w) => `w = ${w}`),
      slider("n", "Sampling steps: ", DATA.steps, (n) => `${n} step${n === 1 ? "" : "s"}`)),
    make("div", { id: "explorer", className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Samples at this w and these steps" }));
}

function drawExplorer() {
  const same = DATA.rows.filter((row) => row.w === strength());
  const teachers = same.filter((row) => row.sampler === "teacher").sort((a, b) => b.n - a.n);
  const here = same.filter((row) => row.n === steps() && row !== teachers[0]);
  const host = document.getElementById("explorer");
  gallery(host, [...(several ? [] : teachers.slice(0, 1)), ...here]);
  if (!here.some((row) => row.role === "student")) {
    const known = [...new Set(same.filter((row) => row.role === "student").map((row) => row.n))];
    const text = known.length ? `Students have ${known.sort((a, b) => a - b).join(", ")} steps at this w.` : "No student was measured at this w.";
    host.append(make("p", { className: "soft" }, text));
  }
}

function lossHost(host) {
  const box = make("div", { className: "charts small" });
  for (const each of DATA.losses) box.append(make("figure", {}, make("figcaption", {}, each.stage), make("div", { className: "chart loss" }), legend(each.lines.length > 1 ? each.lines.map((line, i) => ({ name: line.name, color: COLORS[i % COLORS.length], dash: "" })) : [])));
  host.append(box);
}

function drawLosses() {
  document.querySelectorAll(".loss").forEach((host, k) => {
    const { lines, y, last } = DATA.losses[k];
    const drawn = lines.map((line, i) => ({ color: COLORS[i % COLORS.length], dash: "", marked: false, points: line.points.map(([x, value]) => ({ x, y: value })) }));
    chart(host, drawn, { log: false, low: 0, high: last, label: "iterations" }, { ...y, label: "loss" }, 200);
  });
}

function refresh() {
  if (document.getElementById("by-steps")) drawQuality();
  if (document.getElementById("explorer")) drawExplorer();
}

function start() {
  const hosts = { quality: qualityHost, explorer: explorerHost, losses: lossHost, same_noise: (host) => gallery(host, DATA.first.rows.map((i) => DATA.rows[i])) };
  for (const [name, fill] of Object.entries(hosts)) document.querySelectorAll(`[data-host=${name}]`).forEach(fill);
  const drawAll = () => { refresh(); drawLosses(); };
  drawAll();
  addEventListener("resize", drawAll);
  document.body.dataset.ready = "yes";
}
start();
