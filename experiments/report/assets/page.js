"use strict";
// The page of one table: sorting and filtering its rows, and two drawings of the numbers embedded in the page.
// Text from the data goes in as text only, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const find = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const unique = (values) => [...new Set(values)];
const bodies = all(".rows tbody");
const rowOf = (body) => data.rows[Number(body.dataset.row)];

function element(space, name, attributes, children) {
  const node = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const html = (name, attributes = {}, ...children) => element("http://www.w3.org/1999/xhtml", name, attributes, children);
const svg = (name, attributes = {}, ...children) => element("http://www.w3.org/2000/svg", name, attributes, children);

// ---- numbers as text
const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const withSpread = (value, spread) => number(value, 2) + (spread == null ? "" : ` ± ${number(spread, 2)}`);
const saved = (value, dense) => (dense && dense !== value ? ` (${number(100 * (value / dense - 1), 1)} %)` : "");
const precise = (value) => String(Number(value.toPrecision(3)));

// ---- light and dark
const theme = find("#theme");
let dark = matchMedia("(prefers-color-scheme: dark)").matches;
function showTheme() {
  theme.textContent = dark ? "Light" : "Dark";
  theme.setAttribute("aria-label", `Change to ${dark ? "light" : "dark"} colours`);
}
theme.addEventListener("click", () => {
  dark = !dark;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  showTheme();
});
showTheme();

// ---- the table: sort by a header, filter, expand a row
const headers = all(".rows thead th");
const table = find(".rows");
function sortBy(index, direction) {
  const { kind, noisy } = headers[index].dataset;
  const keys = new Map(bodies.map((body) => [body, body.rows[0].cells[index].dataset.value]));
  const compare = (first, second) => {
    const [a, b] = [keys.get(first), keys.get(second)];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // blanks last, either way
    const apart = noisy === undefined ? 0 : ("fewer" in first.dataset) - ("fewer" in second.dataset); // no mean outranked
    return apart || direction * (kind === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  };
  table.append(...(direction ? [...bodies].sort(compare) : bodies));
  headers.forEach((header, other) => {
    const way = { 1: "ascending", "-1": "descending", 0: "none" }[other === index ? direction : 0];
    header.setAttribute("aria-sort", way);
  });
  markGroups();
}
headers.forEach((header, index) => {
  const next = { none: 1, ascending: -1, descending: 0 };
  find("button", header).addEventListener("click", () => sortBy(index, next[header.getAttribute("aria-sort")]));
});

// Architectures are parted where their rows stand together: in the order of the table, and sorted by architecture.
function markGroups() {
  const sorted = headers.find((header) => header.getAttribute("aria-sort") !== "none");
  let above = null;
  for (const body of all(".rows tbody:not([hidden])")) {
    const { architecture } = rowOf(body);
    body.classList.toggle("first", architecture !== above && (!sorted || sorted.classList.contains("architecture")));
    above = architecture;
  }
}

for (const button of all(".expand")) {
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", open);
    button.closest("tbody").rows[1].hidden = !open;
  });
}

const form = find("#filters");
const choices = all("select", form).map((select) => select.name);
const choiceOf = (row, name) => (name === "status" && row.stale ? "stale" : row[name] || "none");
function matches(body) {
  const words = form.elements.search.value.toLowerCase().split(/\s+/);
  const { id, model, note, reason } = rowOf(body);
  const text = [body.rows[0].textContent, id, model, note, reason].join(" ").toLowerCase();
  return (
    choices.every((name) => ["", choiceOf(rowOf(body), name)].includes(form.elements[name].value)) &&
    words.every((word) => text.includes(word))
  );
}
function filter() {
  for (const body of bodies) body.hidden = !matches(body);
  const shown = bodies.filter((body) => !body.hidden);
  find("#count").textContent = shown.length < bodies.length ? `${shown.length} of ${bodies.length} rows` : `${shown.length} rows`;
  markGroups();
  drawPlot();
}
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter)); // after the fields are reset

// ---- marks: shape, dashes and colour each tell the methods apart; the report chooses them, by matplotlib's letters
const SHAPES = {
  s: "M-4.5-4.5h9v9h-9z", "^": "M0-6L5.5,4.5H-5.5z", o: "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0-10,0",
  D: "M0-6.5L6.5,0L0,6.5L-6.5,0z", v: "M0,6L5.5-4.5H-5.5z", P: "M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
  X: "M-5.5-3L-3-5.5 0-2.5 3-5.5 5.5-3 2.5,0 5.5,3 3,5.5 0,2.5-3,5.5-5.5,3-2.5,0z",
  p: "M0-6L5.7-1.9 3.5,4.9H-3.5L-5.7-1.9z", "<": "M-6,0L4.5-5.5V5.5z", ">": "M6,0L-4.5-5.5V5.5z",
  h: "M0-6L5.2-3V3L0,6-5.2,3V-3z",
};
const STAR = "M0-8.5L2.1-2.8 8.1-2.6 3.4 1.1 5 6.9 0 3.5-5 6.9-3.4 1.1-8.1-2.6-2.1-2.8z";
const isDense = (row) => row.protocol === "dense";
const methods = Object.keys(data.styles); // a line each: a method at all its sizes, or one model at all its bits
function styleOf({ series }) {
  const { marker, dashes, light, dark } = data.styles[series];
  return { shape: SHAPES[marker] ?? STAR, dash: dashes, colour: `light-dark(${light}, ${dark})` };
}
const denseStyle = { shape: STAR, dash: "", colour: "var(--text)" };

function mark(x, y, { shape, colour }, title, lines, kind = "") {
  const node = svg("path", { d: shape, transform: `translate(${x},${y})`, class: `mark ${kind}` });
  node.style.color = colour;
  node.setAttribute("tabindex", -1);
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", [title, ...lines].join(", "));
  node.tip = { title, lines };
  return node;
}

function keyEntry({ shape, dash, colour }, text, kind = "") {
  const line = svg("path", { d: "M1,8H37", class: "series", "stroke-dasharray": dash ?? "0 99" });
  const point = svg("path", { d: shape, transform: "translate(19,8)", class: `mark ${kind}` });
  const picture = svg("svg", { viewBox: "0 0 38 16", "aria-hidden": "true" }, line, point);
  picture.style.color = colour;
  return html("li", {}, picture, text);
}

// One mark of a drawing is reached by the tabulator, the others by the arrows.
function rove(drawing) {
  const marks = all(".mark", drawing);
  marks[0]?.setAttribute("tabindex", 0);
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const next = marks[marks.indexOf(document.activeElement) + step];
    if (!next) return;
    event.preventDefault();
    marks.forEach((node) => node.setAttribute("tabindex", node === next ? 0 : -1));
    next.focus();
  });
}

const tip = find("#tip");
function showTip(node) {
  tip.replaceChildren(html("b", {}, node.tip.title), ...node.tip.lines.map((line) => html("div", {}, line)));
  tip.hidden = false;
  const [box, own] = [node.getBoundingClientRect(), tip.getBoundingClientRect()];
  const above = box.top - own.height - 8;
  const left = Math.min(Math.max(4, box.left + box.width / 2 - own.width / 2), innerWidth - own.width - 4);
  tip.style.left = `${left}px`;
  tip.style.top = `${above < 4 ? box.bottom + 8 : above}px`;
}
const onMark = (event) => event.target.closest?.(".mark[role]");
for (const kind of ["pointerover", "focusin", "click"]) {
  document.addEventListener(kind, (event) => (onMark(event) ? showTip(onMark(event)) : kind === "click" && (tip.hidden = true)));
}
for (const kind of ["pointerout", "focusout"]) document.addEventListener(kind, (event) => onMark(event) && (tip.hidden = true));
document.addEventListener("keydown", (event) => event.key === "Escape" && (tip.hidden = true));
addEventListener("scroll", () => (tip.hidden = true), true);

// ---- accuracy against size
const SIZES = { params: "parameters", macs: "multiply-accumulates", file_bytes: "file on disk" };
const ACCURACIES = { top1: "after fine-tuning", top1_before_finetune: "before fine-tuning" };
const SPREADS = { top1: "top1_std", top1_before_finetune: "top1_before_std" };
const COUNTS = [[1e9, "billions"], [1e6, "millions"], [1e3, "thousands"], [1, ""]];
const BYTES = [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"], [1, "bytes"]];

const SAME_SIZE = 1.005; // ranks are whole numbers, so equal budgets differ by some parameters

function niceTicks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  const digits = [0, 1, 2, 3, 4, 5, 6].find((count) => Math.abs(step * 10 ** count - Math.round(step * 10 ** count)) < 1e-6) ?? 7;
  return Array.from({ length: count }, (_, index) => [(first + index) * step, number((first + index) * step, digits)]);
}
function domain(values, least) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = Math.max((high - low) * 0.07, least);
  return [low - margin, high + margin];
}

function measuredPoint(row, x, y) {
  const size = x === "file_bytes" ? "bytes on disk" : SIZES[x];
  const lines = [`${number(row[x])} ${size}${saved(row[x], row[`${x}_dense`])}`];
  if (!isDense(row)) {
    if (row.top1_before_finetune !== null) lines.push(`before fine-tuning ${withSpread(row.top1_before_finetune, row.top1_before_std)} %`);
    const dense = row.top1_dense === null ? "" : `, dense ${number(row.top1_dense, 2)} %`;
    lines.push(`top-1 ${withSpread(row.top1, row.top1_std)} %${dense}`);
  } else lines.push(`top-1 ${withSpread(row.top1, row.top1_std)} %`);
  if (row.interval) lines.push(`${number(row.images)} images: 95 % interval ${row.interval.map((end) => number(end, 1)).join(" to ")} %`);
  if (row.fewer) lines.push(`n=${row.fewer}: fewer seeds than the other rows`);
  if (row.stale) lines.push("stale: made by another version of the package");
  const value = isDense(row) ? row.top1 : row[y];
  const title = [row.architecture, row.method, isDense(row) ? null : row.setting].filter(Boolean).join(" · ");
  const style = isDense(row) ? denseStyle : styleOf(row);
  return { row, x: row[x], y: value, spread: row[isDense(row) ? "top1_std" : SPREADS[y]] ?? 0, style, title, lines };
}
const SQUARE = { shape: SHAPES.s, colour: "var(--muted)" };
const CIRCLE = { shape: SHAPES.o, colour: "var(--muted)" };
const PRINTED = {
  params: (row) => [row.params_printed_count, `${row.params_printed} parameters`],
  file_bytes: (row) => [row.size_reported && row.size_reported * 2 ** 20, `${row.size_reported} MiB`],
};
function reportedPoints(rows, xName) {
  const points = new Map(); // readings of one printed number are one mark
  for (const row of rows) {
    const [x, words] = PRINTED[xName](row);
    if (x === null || row.top1_reported === null) continue;
    const key = `${x} ${row.top1_reported}`;
    const style = isDense(row) ? { ...SQUARE, shape: STAR } : row.status === "reported" ? CIRCLE : SQUARE;
    const lines = [words, `top-1 ${number(row.top1_reported, 2)} % on ImageNet`, row.source ?? ""];
    const point = points.get(key) ?? { x, y: row.top1_reported, spread: 0, style, names: [], lines, printed: true };
    point.names.push(row.method);
    point.title = `reported: ${row.architecture} · ${point.names.join(", ")}`;
    points.set(key, point);
  }
  return [...points.values()];
}

function panel(host, points, xName) {
  const width = host.clientWidth;
  const [height, left, right, top, bottom] = [Math.min(400, Math.max(250, 0.55 * width)), 52, 14, 10, 38];
  const [xLow, xHigh] = domain(points.map((point) => point.x), 1e-9 + Math.max(...points.map((point) => point.x)) * 0.02);
  let [yLow, yHigh] = domain(points.flatMap((point) => [point.y - point.spread, point.y + point.spread]), 0.5);
  [yLow, yHigh] = [Math.max(yLow, -1), Math.min(yHigh, 102)];
  const x = (value) => left + ((value - xLow) / (xHigh - xLow)) * (width - left - right);
  const y = (value) => height - bottom - ((Math.min(100, Math.max(0, value)) - yLow) / (yHigh - yLow)) * (height - top - bottom);
  const drawing = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "top-1 against size" });
  const [unit, unitName] = (xName === "file_bytes" ? BYTES : COUNTS).find(([size]) => xHigh >= size);
  for (const [value, text] of niceTicks(yLow, Math.min(100, yHigh), 6)) {
    drawing.append(svg("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "grid" }));
    drawing.append(svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, text));
  }
  for (const [value, text] of niceTicks(xLow / unit, xHigh / unit, Math.max(4, width / 60))) {
    drawing.append(svg("line", { x1: x(value * unit), x2: x(value * unit), y1: top, y2: height - bottom, class: "grid" }));
    drawing.append(svg("text", { x: x(value * unit), y: height - bottom + 15, "text-anchor": "middle" }, text));
  }
  const middle = (top + height - bottom) / 2;
  drawing.append(svg("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, [SIZES[xName], unitName].filter(Boolean).join(", ")));
  drawing.append(svg("text", { transform: `translate(10,${middle}) rotate(-90)`, "text-anchor": "middle" }, "top-1, %"));
  const line = (own) => `M${own.map((point) => `${x(point.x)},${y(point.y)}`).join("L")}`;
  const measured = points.filter((point) => !point.printed).sort((a, b) => a.x - b.x || b.y - a.y);
  const means = measured.filter(({ row }) => !row.fewer); // a lucky seed is not ahead of means
  const front = means.filter((point) => !means.some((other) => other.y > point.y && other.x <= SAME_SIZE * point.x));
  if (front.length > 1) drawing.append(svg("path", { d: line(front), class: "front" }));
  for (const method of methods) {
    const own = measured.filter((point) => !isDense(point.row) && point.row.series === method);
    const sizes = new Set(own.map(({ row }) => `${row.setting} ${row.bits}`));
    if (own.length < 2 || sizes.size < own.length) continue; // several at one size differ in something else
    const series = svg("path", { d: line(own), class: "series", "stroke-dasharray": own[0].style.dash });
    series.style.color = own[0].style.colour;
    drawing.append(series);
  }
  for (const point of points.filter((point) => point.spread)) {
    const whisker = svg("line", { x1: x(point.x), x2: x(point.x), y1: y(point.y - point.spread), y2: y(point.y + point.spread), class: "whisker" });
    whisker.style.color = point.style.colour;
    drawing.append(whisker);
  }
  for (const point of points) {
    const node = mark(x(point.x), y(point.y), point.style, point.title, point.lines, point.printed ? "hollow" : point.row.fewer ? "fewer" : "");
    if (point.row) node.dataset.id = point.row.id;
    drawing.append(node);
  }
  rove(drawing);
  host.append(drawing);
}

function drawPlot() {
  if (!drawn) return;
  const [host, key] = [find("#panels"), find("#plot-key")];
  const [xName, yName] = [find("#plot-x").value, find("#plot-y").value];
  const rows = bodies.filter((body) => !body.hidden).map(rowOf);
  const points = rows
    .filter((row) => row.status === "done" && row[xName] !== null && (isDense(row) ? row.top1 : row[yName]) !== null)
    .map((row) => measuredPoint(row, xName, yName));
  const printed = find("#reported").checked && xName in PRINTED;
  host.replaceChildren();
  const panels = []; // drawn when all are there, as only then their widths are what they will be
  for (const architecture of unique(rows.map((row) => row.architecture))) {
    const own = points.filter((point) => point.row.architecture === architecture);
    const theirs = printed ? reportedPoints(rows.filter((row) => row.architecture === architecture), xName) : [];
    const model = data.models[architecture] ?? "";
    const together = data.imagenet ? [[[...own, ...theirs], model, ""]] : [[own, model, ""], [theirs, "reported, ImageNet", "reported"]];
    for (const [some, about, kind] of together.filter(([some]) => some.length)) {
      const figure = html("figure", { class: kind }, html("figcaption", {}, `${architecture} `, html("small", {}, about)));
      host.append(figure);
      panels.push([figure, some]);
    }
  }
  for (const [figure, some] of panels) panel(figure, some, xName);
  if (!host.children.length) host.append(html("p", { class: "empty" }, "Nothing was measured in the rows that are shown."));
  const compressed = points.filter(({ row }) => !isDense(row));
  const shown = unique(compressed.map(({ row }) => row.series)).map((series) => {
    const counts = unique(compressed.filter(({ row }) => row.series === series).map(({ row }) => row.fewer));
    return keyEntry(styleOf({ series }), series + (counts.length === 1 && counts[0] ? ` (n=${counts[0]})` : ""), counts[0] ? "fewer" : "");
  });
  const dense = { ...denseStyle, dash: undefined };
  key.replaceChildren(...(points.some(({ row }) => isDense(row)) ? [keyEntry(dense, "dense")] : []), ...shown);
  if (points.some(({ row }) => row.fewer)) key.append(keyEntry({ ...CIRCLE }, "pale: fewer seeds, not ranked", "fewer"));
  const front = svg("svg", { viewBox: "0 0 38 16", "aria-hidden": "true" }, svg("path", { d: "M5,8H33", class: "front" }));
  key.append(html("li", {}, front, "Pareto front (sizes within 0.5 % count as equal)"));
  if (!printed) return;
  key.append(keyEntry({ ...SQUARE, shape: STAR }, "reported: dense", "hollow"));
  key.append(keyEntry(SQUARE, "reported: by the paper", "hollow"), keyEntry(CIRCLE, "reported: other methods", "hollow"));
}

// ---- ranks and errors of the layers
const layered = data.rows.filter((row) => row.layers.length);
const fill = (select, names) => select.replaceChildren(...names.map((name) => html("option", {}, name)));
const EVERY = "all methods";
const READABLE = 0.645; // of the greatest rank: where the text in a cell changes its colour
const MOST_METHODS = 10; // whose errors are legible in one drawing
const MOST_PAIRS = 5; // of methods whose two errors can be told apart in one drawing

function layerColumns() {
  const [architecture, setting] = [find("#layers-architecture").value, find("#layers-setting").value];
  const rows = layered.filter((row) => row.architecture === architecture && (row.setting ?? "-") === setting);
  const repeated = new Set(rows.map((row) => row.method)).size < rows.length;
  return rows.map((row) => ({ row, name: repeated ? row.id.split("/").pop() : row.method }));
}
function drawLayers() {
  const [columns, wanted] = [layerColumns(), find("#layers-method").value];
  const names = unique(columns.flatMap(({ row }) => row.layers.map((layer) => layer.name)));
  drawRanks(columns, names);
  drawErrors(columns.filter(({ name }) => [EVERY, name].includes(wanted)), names);
}

const LOG_STEPS = Array.from({ length: 30 }, (_, power) => [1, 2, 5].map((step) => Number(`${step}e${power - 20}`))).flat();

const layerOf = (row, name) => row.layers.find((layer) => layer.name === name);
function drawRanks(columns, names) {
  const ranks = columns.flatMap(({ row }) => row.layers.map((layer) => layer.rank)).filter((rank) => rank !== null);
  const most = Math.max(...ranks, 1);
  const head = html("tr", {}, html("th", { scope: "col" }, "Layer"), ...columns.map(({ name }) => html("th", { scope: "col" }, name)));
  const lines = names.map((name) => {
    const cells = columns.map(({ row }) => {
      const rank = layerOf(row, name)?.rank ?? null;
      if (rank === null) return html("td", { class: "uncut" }, html("span", {}, "dense"));
      const cell = html("td", { class: rank / most > READABLE ? "strong" : "" }, number(rank, Number.isInteger(rank) ? 0 : 1));
      cell.style.setProperty("--share", rank / most);
      return cell;
    });
    return html("tr", {}, html("th", { scope: "row" }, html("span", {}, name)), ...cells);
  });
  find("#heat").classList.toggle("many", columns.length > MOST_METHODS);
  find("#heat").replaceChildren(html("thead", {}, head), html("tbody", {}, ...lines));
  find("#ramp").replaceChildren("0", html("i"), `${number(most)}`, html("i", { class: "uncut" }), "dense: left as it was");
}

function drawErrors(columns, names) {
  const host = find("#errors");
  const kinds = [["relative_error", "calibration images", true], ["relative_error_held_out", "unseen images", false]];
  const wanted = columns.length > MOST_PAIRS ? kinds.slice(1) : kinds;
  const points = columns.flatMap(({ row, name }) =>
    row.layers.flatMap((layer) =>
      wanted.filter(([field]) => layer[field] > 0).map(([field, words, hollow]) => ({ row, name, layer, value: layer[field], words, kind: hollow ? "hollow" : "" })),
    ),
  );
  const known = kinds.filter(([, words]) => points.some((point) => point.words === words));
  find("#errors-key").replaceChildren(
    ...columns.map(({ row, name }) => keyEntry({ ...styleOf(row), dash: undefined }, name)),
    ...known.map(([, words, hollow]) => keyEntry(CIRCLE, words, hollow ? "hollow" : "")),
  );
  if (wanted.length < kinds.length) find("#errors-key").append(html("li", {}, "calibration images: choose one method"));
  host.replaceChildren();
  if (!points.length) return host.append(html("p", { class: "empty" }, "No error is known of these layers."));
  const gutter = Math.max(...names.map((name) => name.length)) * 6.7 + 8;
  const [width, step, top] = [host.clientWidth, 20, 6];
  const bottom = top + step * names.length;
  const values = points.map((point) => point.value);
  const low = LOG_STEPS.findLast((value) => value <= Math.min(...values)) ?? LOG_STEPS[0];
  const high = LOG_STEPS.find((value) => value > Math.max(...values));
  const inside = LOG_STEPS.filter((value) => value >= low && value <= high);
  const x = (value) => gutter + 10 + (Math.log(value / low) / Math.log(high / low)) * (width - gutter - 30);
  const drawing = svg("svg", { width, height: bottom + 38, viewBox: `0 0 ${width} ${bottom + 38}`, role: "group", "aria-label": "relative error of each layer" });
  const decades = inside.filter((value) => Number.isInteger(Math.log10(value)));
  const apart = (some) => some.length < 2 || x(some[1]) - x(some[0]) > 44;
  const labels = [inside, decades, decades.filter((_, index) => index % 2 === 0)].find(apart) ?? [];
  for (const value of inside) {
    drawing.append(svg("line", { x1: x(value), x2: x(value), y1: top, y2: bottom, class: labels.includes(value) ? "axis" : "grid" }));
    if (labels.includes(value)) drawing.append(svg("text", { x: x(value), y: bottom + 15, "text-anchor": "middle" }, precise(value)));
  }
  drawing.append(svg("text", { x: gutter + (width - gutter) / 2, y: bottom + 32, "text-anchor": "middle" }, "||y - y'||² / ||y||², logarithmic"));
  names.forEach((name, index) => {
    const y = top + step * (index + 0.5);
    drawing.append(svg("line", { x1: gutter, x2: width, y1: y, y2: y, class: "grid" }));
    drawing.append(svg("text", { x: 0, y: y + 4, class: "name" }, name));
    for (const { row } of columns) {
      const own = points.filter((point) => point.row === row && point.layer.name === name);
      if (own.length < 2) continue;
      const link = svg("line", { x1: x(own[0].value), x2: x(own[1].value), y1: y, y2: y, class: "series" });
      link.style.color = styleOf(row).colour;
      drawing.append(link);
    }
    for (const point of points.filter((point) => point.layer.name === name)) {
      const lines = kinds.filter(([field]) => point.layer[field] != null).map(([field, words]) => `${words}: ${precise(point.layer[field])}`);
      drawing.append(mark(x(point.value), y, styleOf(point.row), `${point.name} · ${name}`, lines, point.kind));
    }
  });
  rove(drawing);
  host.append(drawing);
}

// ---- start
function keepChoices(select, names) {
  select.replaceChildren(...Object.entries(names).map(([value, text]) => html("option", { value }, text)));
}
const someRowHas = ([name]) => data.rows.some((row) => row.status === "done" && row[name] !== null);
const known = (names) => Object.fromEntries(Object.entries(names).filter(someRowHas));
const accuracies = known(ACCURACIES);
const drawn = "top1" in accuracies; // other tables measure something else
keepChoices(find("#plot-x"), known(SIZES));
// the words tell two apart; one alone may be of a table that trains nothing
keepChoices(find("#plot-y"), Object.keys(accuracies).length > 1 ? accuracies : { top1: "measured here" });
find("#plot").hidden = !drawn;
if (data.columns.includes("file_bytes") && data.columns.includes("bits")) find("#plot-x").value = "file_bytes";
for (const name of ["#plot-x", "#plot-y", "#reported"]) find(name).addEventListener("change", drawPlot);

function chooseSetting() {
  const [select, names] = [find("#layers-method"), layerColumns().map((column) => column.name)];
  const before = select.value;
  fill(select, [EVERY, ...names]);
  select.value = [EVERY, ...names].includes(before) ? before : names.length > MOST_METHODS ? names[0] : EVERY;
  drawLayers();
}
function chooseArchitecture() {
  const own = layered.filter((row) => row.architecture === find("#layers-architecture").value);
  fill(find("#layers-setting"), unique(own.map((row) => row.setting ?? "-")));
  chooseSetting();
}
if (layered.length) {
  fill(find("#layers-architecture"), unique(layered.map((row) => row.architecture)));
  find("#layers-architecture").addEventListener("change", chooseArchitecture);
  find("#layers-setting").addEventListener("change", chooseSetting);
  find("#layers-method").addEventListener("change", drawLayers);
  chooseArchitecture();
} else {
  find("#layers").hidden = true;
}
for (const link of all("nav a")) link.hidden = find(link.hash).hidden;
filter();

let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return; // a phone's bar that comes and goes changes the height alone
  width = innerWidth;
  drawPlot();
  if (layered.length) drawLayers();
});
