"""What a browser is asked about the page: texts that leave their figure or cover another, and contrasts."""

OUTSIDE = """() => [...document.querySelectorAll("main figure")].flatMap((figure) => {
  const frame = figure.getBoundingClientRect();
  const parts = [...figure.querySelectorAll("svg text, svg .mark")].map((node) => [node, node.getBoundingClientRect()]);
  return parts.filter(([, box]) => box.left < frame.left - 1 || box.right > frame.right + 1)
    .map(([node]) => node.textContent || "a mark");
})"""
OVERLAPS = """() => {
  const hit = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  return [...document.querySelectorAll("main svg")].flatMap((drawing) => {
    const texts = [...drawing.querySelectorAll("text")].map((node) => [node.textContent, node.getBoundingClientRect()]);
    const marks = [...drawing.querySelectorAll(".mark")].map((node) => ["a mark", node.getBoundingClientRect()]);
    return texts.flatMap(([one, a], index) =>
      [...texts.slice(index + 1), ...marks].filter(([, b]) => hit(a, b)).map(([other]) => `${one} | ${other}`));
  });
}"""
CONTRASTS = """() => {
  const brush = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (colour) => {
    brush.fillStyle = colour;  // whatever the notation
    brush.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...brush.getImageData(0, 0, 1, 1).data].map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const behind = (node) => {
    const own = getComputedStyle(node).backgroundColor;
    return own === "rgba(0, 0, 0, 0)" ? behind(node.parentElement) : own;
  };
  const found = {};
  const texts = [".hint", ".skipped td", ".reported td", ".stale .status", "header code", "a", "dt", "label", "#notes li"];
  for (const selector of texts) {
    const node = document.querySelector(selector);
    found[selector] = ratio(getComputedStyle(node).color, behind(node));
  }
  document.querySelectorAll("#heat td:not(.uncut)").forEach((cell) => {
    found[`rank ${cell.textContent}`] = ratio(getComputedStyle(cell).color, behind(cell));
  });
  const probe = document.body.appendChild(document.createElement("i"));
  for (const [name, { light, dark }] of Object.entries(data.styles)) {
    probe.style.color = `light-dark(${light}, ${dark})`;
    found[`--${name}`] = ratio(getComputedStyle(probe).color, behind(probe));
  }
  probe.remove();
  return found;
}"""
COVERED = """() => {
  const head = document.querySelector(".rows thead th:last-child").getBoundingClientRect();
  const frame = document.querySelector("#table .scroll").getBoundingClientRect();
  const hidden = [];
  for (const cell of document.querySelectorAll(".rows tr:first-child td.number[data-value]")) {
    const range = document.createRange();
    range.selectNodeContents(cell);
    const { left, right, top, bottom } = range.getBoundingClientRect();
    if (left < frame.left || right > frame.right || top < head.bottom || bottom > Math.min(frame.bottom, innerHeight)) {
      continue;
    }
    const ends = [left + 1, (left + right) / 2, right - 1];
    hidden.push([cell.textContent, ends.some((x) => document.elementFromPoint(x, (top + bottom) / 2) !== cell)]);
  }
  return hidden;
}"""
LONG_OPTIONS = """() => document.querySelectorAll("select").forEach(
  (select) => select.add(new Option("long ".repeat(50), "", false, false)))"""
