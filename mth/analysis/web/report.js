"use strict";
// The table of runs, sorted and filtered, and the learning curves of the runs that it shows. Everything is made as text nodes, never as HTML.
const table = document.getElementById("runs-table"), body = table.tBodies[0], rows = Array.from(body.rows);
const data = JSON.parse(document.getElementById("curve-data").textContent);
const byId = (id) => document.getElementById(id);

// ---- the table
const heads = Array.from(table.tHead.rows[0].cells);
const names = heads.map((head) => head.textContent.trim());
let sorted = { column: -1, up: false };

function key(row, column) {
  const cell = row.cells[column], value = cell.dataset.value ?? cell.textContent.trim();
  return value === "" ? null : isNaN(value) ? value : Number(value);
}

function compare(left, right) {
  if (left === null || right === null) return (left === null) - (right === null);  // empty cells last, in either direction
  const order = typeof left === "number" && typeof right === "number" ? left - right : String(left).localeCompare(String(right), undefined, { numeric: true });
  return sorted.up ? order : -order;
}

function sortBy(column, up) {
  sorted = { column, up };
  const order = rows.map((row, number) => [key(row, column), number, row]).sort((a, b) => compare(a[0], b[0]) || a[1] - b[1]);
  order.forEach((each) => body.append(each[2]));
  heads.forEach((head, number) => head.setAttribute("aria-sort", number !== column ? "none" : up ? "ascending" : "descending"));
  heads.forEach((head, number) => { head.querySelector("span").textContent = number !== column ? "" : up ? " ▲" : " ▼"; });
  byId("sort").value = `${column} ${up}`;
}

function matches(row, words) {
  return words.every((word) => {
    const [, name, value] = word.match(/^([^=]+)=(.*)$/) || [];
    if (name === undefined) return row.textContent.toLowerCase().includes(word.toLowerCase());
    const column = names.findIndex((each) => each.replaceAll(" ", "_").toLowerCase() === name.toLowerCase());
    if (column >= 0) return same(row.cells[column].dataset.value ?? row.cells[column].textContent.trim(), value);
    const named = (each) => each === name || each.endsWith(`.${name}`), number = data.keys.findIndex(named);
    if (number >= 0) return same(data.runs[row.dataset.run].values[number], value);
    return Object.keys(data.same).some((each) => named(each) && same(data.same[each], value));
  });
}

const same = (left, right) => left === right || (left !== "" && right !== "" && Number(left) === Number(right));

function filter() {
  const words = byId("filter").value.split(/\s+/).filter(Boolean), picks = Array.from(document.querySelectorAll("#picks select")).filter((each) => each.value);
  let count = 0;
  for (const row of rows) {
    const shown = matches(row, words) && picks.every((pick) => (row.cells[pick.dataset.column].dataset.value ?? row.cells[pick.dataset.column].textContent.trim()) === pick.value);
    row.hidden = !shown;
    count += shown;
  }
  byId("count").textContent = `${count} of ${rows.length} ${rows.length === 1 ? "run" : "runs"}`;
  draw();
}

function option(select, value, text) {
  const made = document.createElement("option");
  made.value = value;
  made.textContent = text;
  select.append(made);
}

heads.forEach((head, column) => {
  head.querySelector("button").addEventListener("click", () => sortBy(column, sorted.column === column ? !sorted.up : !head.classList.contains("result")));
  option(byId("sort"), `${column} true`, `${names[column]}, ascending`);
  option(byId("sort"), `${column} false`, `${names[column]}, descending`);
  const values = [...new Set(rows.map((row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim()))];
  if (column === 0 || head.classList.contains("result") || values.length < 2 || values.length > 12) return;
  const label = document.createElement("label"), select = document.createElement("select");
  label.textContent = `${names[column]} `;
  select.dataset.column = column;
  option(select, "", "all");
  values.sort((a, b) => a - b || a.localeCompare(b)).filter(Boolean).forEach((value) => option(select, value, value));
  select.addEventListener("change", filter);
  label.append(select);
  byId("picks").append(label);
});
byId("sort").addEventListener("change", () => { const [column, up] = byId("sort").value.split(" "); sortBy(Number(column), up === "true"); });
byId("filter").addEventListener("input", filter);

// ---- the curves
const COLORS = ["#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"], DASHES = ["", "7 4", "2 3"], MAX_GROUPS = 14;
const HEIGHT = 380, LEFT = 52, RIGHT = 14, TOP = 12, BOTTOM = 42;
let WIDTH = 900;  // of the picture, in pixels of the page

function groups() {
  const metric = byId("metric").value, group = data.keys.indexOf(byId("group").value), setting = data.keys.indexOf("setting");
  const found = new Map();
  for (const row of rows) {
    const run = data.runs[row.dataset.run], curve = run.curves[metric];
    if (row.hidden || !curve || (byId("best").checked && row.dataset.best !== "1")) continue;
    const value = group < 0 ? row.cells[0].textContent.trim() : run.values[group];
    const name = setting < 0 || data.keys[group] === "setting" ? value : `${value}, ${run.values[setting]}`;  // settings are never averaged
    if (!found.has(name)) found.set(name, []);
    const bySteps = (pairs) => new Map(pairs ? pairs[0].map((step, number) => [step, pairs[1][number]]) : []);
    found.get(name).push({ curve: bySteps(curve), errors: bySteps(run.errors[metric]), collapsed: run.collapsed });
  }
  const rank = (name) => (name.startsWith("full training") ? 0 : 1);
  const parts = (name) => name.match(/^(.*?)(\d+(?:\.\d+)?(?:e-?\d+)?)(.*)$/i) || [name, name, 0, ""];
  const order = (a, b) => rank(a) - rank(b) || parts(a)[1].localeCompare(parts(b)[1]) || parts(a)[2] - parts(b)[2] || parts(a)[3].localeCompare(parts(b)[3]);
  return [...found].sort((a, b) => order(a[0], b[0]));
}

// Mean and sample std, of a single run its standard error, at the steps that all runs of a group have. A run that its collapse ended keeps its last value.
function mean(runs) {
  const steps = [...new Set(runs.flatMap((run) => [...run.curve.keys()]))].sort((a, b) => a - b), points = [];
  for (const step of steps) {
    const values = runs.map((run) => run.curve.get(step) ?? (run.collapsed && step > Math.max(...run.curve.keys()) ? [...run.curve.values()].at(-1) : undefined));
    if (values.includes(undefined)) continue;
    const middle = values.reduce((a, b) => a + b) / values.length;
    points.push({ step, mean: middle, std: values.length > 1 ? Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1)) : runs[0].errors.get(step) ?? 0 });
  }
  return points;
}

function svg(parent, tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function ticks(low, high, count, whole) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  let size = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw);
  if (whole) size = Math.max(1, Math.round(size));
  const found = [];
  for (let value = Math.ceil(low / size - 1e-9) * size; value <= high + size * 1e-9; value += size) found.push(value);
  const digits = Math.max(0, -Math.floor(Math.log10(size) + 1e-9));
  return found.map((value) => [value, value.toFixed(digits)]);
}

function draw() {
  const place = byId("curves"), legend = byId("legend"), every = groups(), lines = [];
  place.replaceChildren();
  WIDTH = Math.max(280, place.clientWidth);
  legend.replaceChildren();
  every.slice(0, MAX_GROUPS).forEach(([name, runs], number) => lines.push({ spread: runs.length > 1 ? ", std" : " ±", name: `${name} (${runs.length})`, points: mean(runs), number }));
  byId("curves-note").textContent = every.length > MAX_GROUPS ? `${MAX_GROUPS} of ${every.length} groups are drawn; filter the runs or choose another group.` : every.length ? "" : "No run that is shown has this metric.";
  const points = lines.flatMap((line) => line.points);
  if (!points.length) return;
  let low = Math.min(...points.map((p) => p.mean - p.std)), high = Math.max(...points.map((p) => p.mean + p.std));
  const room = (high - low) * 0.04 || 0.05, first = Math.min(...points.map((p) => p.step)), last = Math.max(...points.map((p) => p.step), first + 1);
  [low, high] = [low - room, high + room];
  const x = (step) => LEFT + ((step - first) / (last - first)) * (WIDTH - LEFT - RIGHT), y = (value) => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const picture = svg(place, "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": "learning curves" });
  for (const [value, text] of ticks(first, last, WIDTH / 110, true)) {
    svg(picture, "line", { x1: x(value), x2: x(value), y1: TOP, y2: HEIGHT - BOTTOM, stroke: "#e6e6e6" });
    svg(picture, "text", { x: x(value), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, text);
  }
  for (const [value, text] of ticks(low, high, 6, false)) {
    svg(picture, "line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), stroke: "#e6e6e6" });
    svg(picture, "text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, text);
  }
  svg(picture, "text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "optimizer step");
  for (const line of lines) {
    const style = { stroke: COLORS[line.number % 7], "stroke-dasharray": DASHES[Math.floor(line.number / 7)], fill: "none", "stroke-width": 2 };
    const edge = [...line.points.map((p) => [p.step, p.mean + p.std]), ...line.points.map((p) => [p.step, p.mean - p.std]).reverse()];
    svg(picture, "polygon", { points: edge.map((p) => `${x(p[0])},${y(p[1])}`).join(" "), fill: style.stroke, opacity: 0.13, class: "band" });
    svg(picture, "polyline", { points: line.points.map((p) => `${x(p.step)},${y(p.mean)}`).join(" "), ...style, class: "line" });
    const entry = document.createElement("span"), sample = svg(entry, "svg", { viewBox: "0 0 28 12" });
    svg(sample, "line", { x1: 0, x2: 28, y1: 6, y2: 6, ...style });
    entry.append(line.name);
    legend.append(entry);
  }
  hover(place, picture, lines, x, first, last);
}

function hover(place, picture, lines, x, first, last) {
  const steps = [...new Set(lines.flatMap((line) => line.points.map((p) => p.step)))], rule = svg(picture, "line", { y1: TOP, y2: HEIGHT - BOTTOM, stroke: "#888", visibility: "hidden" });
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  place.append(tip);
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect(), at = first + (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (last - first);
    const step = steps.reduce((a, b) => (Math.abs(b - at) < Math.abs(a - at) ? b : a));
    rule.setAttribute("x1", x(step));
    rule.setAttribute("x2", x(step));
    rule.setAttribute("visibility", "visible");
    tip.replaceChildren(`step ${step}`);
    for (const line of lines) {
      const point = line.points.find((p) => p.step === step), entry = document.createElement("div");
      if (!point) continue;
      entry.textContent = `${line.name}: ${point.mean.toFixed(3)}${point.std ? `${line.spread} ${point.std.toFixed(3)}` : ""}`;
      entry.style.color = COLORS[line.number % 7];
      tip.append(entry);
    }
    tip.hidden = false;
    const right = x(step) > WIDTH / 2;
    tip.style.left = right ? "auto" : `${(x(step) / WIDTH) * box.width + 10}px`;
    tip.style.right = right ? `${box.width - (x(step) / WIDTH) * box.width + 10}px` : "auto";
  });
  picture.addEventListener("pointerleave", () => { tip.hidden = true; rule.setAttribute("visibility", "hidden"); });
}

data.metrics.forEach((name) => option(byId("metric"), name, name));
data.keys.forEach((name) => option(byId("group"), name, name));
option(byId("group"), "", "single runs");
["metric", "group", "best"].forEach((id) => byId(id).addEventListener("change", draw));
window.addEventListener("resize", draw);
filter();
