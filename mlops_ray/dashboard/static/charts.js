// Charts: drawn to the width that there is, explored by pointer and by keyboard, each with a table beside it.

function nice(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  return [1, 2, 5, 10].map((k) => k * power).find((s) => s >= step * 0.999);
}

function numbers(low, high, n) {
  const step = nice((high - low) / n);
  const first = Math.ceil(low / step - 1e-9);
  const found = [];
  for (let k = first; k * step <= high + step * 1e-6; k++) found.push(Number((k * step).toPrecision(12)));
  return { step, found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

// Instants in [since, until] that people count by, in the reader's zone.
function instants(since, until, most) {
  const hours = [1, 2, 3, 6, 12, 24, 48, 168, 336, 720, 2160, 8760].find((h) => (until - since) / 3600 / h <= most) || 87600;
  const at = new Date(since * 1000);
  at.setMinutes(0, 0, 0);
  if (hours >= 24) at.setHours(0);
  else at.setHours(Math.floor(at.getHours() / hours) * hours);
  if (hours >= 720) at.setDate(1);
  const found = [];
  while (at.getTime() / 1000 <= until && found.length < 60) {
    if (at.getTime() / 1000 >= since) found.push(at.getTime() / 1000);
    if (hours >= 720) at.setMonth(at.getMonth() + Math.round(hours / 720));
    else if (hours >= 24) at.setDate(at.getDate() + hours / 24);
    else at.setHours(at.getHours() + hours);
  }
  return found.map((t) => {
    const day = new Date(t * 1000), form = hours >= 720 ? monthOnly : hours >= 24 || !day.getHours() ? dayOnly : hourOnly;
    return [t, form.format(day)];
  });
}

// Axes and scales. y: [low, high]; unit: what the vertical axis counts.
function plane(width, height, since, until, y, unit, form) {
  const left = 54, right = 14, top = 36, bottom = 26;
  const px = (at) => left + ((width - left - right) * (at - since)) / Math.max(until - since, 1);
  const py = (v) => top + ((height - top - bottom) * (y[1] - v)) / Math.max(y[1] - y[0], 1e-12);
  const root = draw("svg", { viewBox: `0 0 ${width} ${height}`, height });
  root.append(draw("text", { x: 0, y: 12 }, unit));
  const ticks = numbers(y[0], y[1], Math.max(2, Math.round((height - 50) / 46)));
  for (const v of ticks.found) {
    root.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: py(v), y2: py(v) }),
      draw("text", { x: left - 8, y: py(v) + 4, "text-anchor": "end" }, form ? form(v) : v.toFixed(ticks.digits)));
  }
  const floor = height - bottom;
  let free = 0;
  for (const [at, text] of instants(since, until, width / 78)) {
    const x = px(at), anchor = x > width - right - 24 ? "end" : x < left + 20 ? "start" : "middle";
    root.append(draw("line", { class: "grid", x1: x, x2: x, y1: floor, y2: floor + 5 }));
    const wide = 7 * text.length, from = anchor === "end" ? x - wide : anchor === "start" ? x : x - wide / 2;
    if (from < free) continue;
    root.append(draw("text", { x, y: floor + 18, "text-anchor": anchor }, text));
    free = from + wide + 8;
  }
  root.append(draw("line", { class: "axis", x1: left, x2: width - right, y1: floor, y2: floor }));
  return { root, px, py, left, right, top, floor, width, height };
}

// A figure that redraws itself to its width. paint(width) gives { root, spots }: spots are { x, y, w, h, row, col, says },
// what a pointer or the arrow keys can stand on.
function chart(label, paint) {
  const box = el("figure", {});
  const tip = el("div", { class: "tip", role: "status", hidden: true });
  let drawn = 0, at = -1, spots = [], cursor = null;
  function show(i) {
    at = i;
    if (i < 0 || !spots[i]) { tip.hidden = true; if (cursor) cursor.setAttribute("visibility", "hidden"); return; }
    const s = spots[i];
    for (const [name, value] of Object.entries({ x: s.x, y: s.y, width: Math.max(s.w, 1), height: s.h, visibility: "visible" })) cursor.setAttribute(name, value);
    tip.textContent = s.says;
    tip.hidden = false;
    const room = box.clientWidth - tip.offsetWidth;
    const middle = s.x + s.w / 2;
    tip.style.left = `${Math.min(Math.max(0, middle - tip.offsetWidth / 2), Math.max(0, room))}px`;
    const above = s.y - tip.offsetHeight - 6;
    tip.style.top = `${above >= -tip.offsetHeight / 2 ? Math.max(above, -8) : s.y + s.h + 6}px`;
  }
  function near(event) {
    const frame = box.firstChild.getBoundingClientRect();
    const x = event.clientX - frame.left, y = event.clientY - frame.top;
    const grid = spots.some((s) => s.row !== spots[0].row);
    let best = -1, least = Infinity;
    spots.forEach((s, i) => {
      const dx = Math.abs(s.x + s.w / 2 - x), dy = grid ? Math.abs(s.y + s.h / 2 - y) : 0;
      if (dx + 3 * dy < least) { least = dx + 3 * dy; best = i; }
    });
    return best;
  }
  function step(dc, dr) {
    if (at < 0) return show(spots.length - 1);
    const here = spots[at];
    const next = spots.findIndex((s) => s.col === here.col + dc && s.row === here.row + dr);
    if (next >= 0) show(next);
  }
  const keys = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  function redraw() {
    const width = Math.floor(box.clientWidth);
    if (!width || width === drawn) return;
    drawn = width;
    const focused = box.firstChild === document.activeElement;
    const made = paint(width);
    spots = made.spots;
    cursor = draw("rect", { class: "cursor", visibility: "hidden", rx: 2 });
    made.root.append(cursor);
    fill(made.root, { tabindex: "0", role: "application", "aria-roledescription": "chart", "aria-label": `${label} Arrow keys read it point by point; the table below has the same.`, "data-key": `chart ${label.slice(0, 24)}` }, []);
    made.root.addEventListener("keydown", (event) => {
      if (event.key === "Escape") show(-1);
      else if (event.key === "Home") show(0);
      else if (event.key === "End") show(spots.length - 1);
      else if (keys[event.key]) step(...keys[event.key]);
      else return;
      event.preventDefault();
    });
    made.root.addEventListener("pointermove", (event) => show(near(event)));
    made.root.addEventListener("pointerdown", (event) => show(near(event)));
    made.root.addEventListener("pointerleave", () => show(-1));
    made.root.addEventListener("blur", () => show(-1));
    box.replaceChildren(made.root, tip);
    if (focused) made.root.focus({ preventScroll: true });
  }
  new ResizeObserver(redraw).observe(box);
  return box;
}

const key = (...marks) => draw("svg", { viewBox: "0 0 22 14", "aria-hidden": "true" }, marks);
const legend = (...entries) => el("ul", { class: "legend" }, entries.map(([mark, text]) => el("li", {}, mark, text)));

// Stacked rows by version.
function trafficChart(of, colour) {
  return chart(`Rows answered by version, in blocks of a ${span(of.block_s)}.`, (width) => {
    const since = of.blocks[0][0], until = of.blocks.at(-1)[0] + of.block_s;
    const most = Math.max(1, ...of.blocks.map(([, rows]) => rows.reduce((a, b) => a + b, 0)));
    const short = (v) => (v >= 1e6 ? `${v / 1e6} M` : v >= 1000 ? `${v / 1000} k` : `${v}`);
    const p = plane(width, 262, since, until, [0, most * 1.05], `rows per ${span(of.block_s)}`, short);
    const spots = of.blocks.map(([at, rows], col) => {
      const x = p.px(at), w = p.px(at + of.block_s) - x, gap = w > 5 ? 1 : 0;
      let from = 0;
      rows.forEach((n, i) => {
        if (n) p.root.append(draw("rect", { class: `v${colour(of.versions[i])}`, x: x + gap / 2, width: Math.max(w - gap, 0.5), y: p.py(from + n), height: Math.max(p.py(from) - p.py(from + n), 0.5) }));
        from += n;
      });
      const lines = of.versions.map((v, i) => (rows[i] ? `v${v}: ${many(rows[i])} rows` : null)).filter(Boolean);
      return { x, y: p.py(from), w, h: p.floor - p.py(from), row: 0, col, says: [`${local(at)}`, ...lines].join("\n") };
    });
    return { root: p.root, spots };
  });
}

// Estimates with their intervals, what was realised, the limit that alarms, and where versions change.
function qualityChart(of) {
  return chart(`${of.metric} of each window, estimated and realised.`, (width) => {
    const points = of.points;
    const values = points.flatMap((q) => [q.realised, q.low, q.high, q.limit, q.estimated && q.estimated.value, q.estimated && q.estimated.low, q.estimated && q.estimated.high]).filter((v) => typeof v === "number");
    const low = Math.min(...values), high = Math.max(...values), room = Math.max((high - low) * 0.12, high * 0.02, 1e-6);
    const p = plane(width, 262, points[0].start, points.at(-1).end, [Math.max(0, low - room), high + room], `${of.metric}, ${of.unit}`);
    let before = null;
    const spots = points.map((q, col) => {
      const x = p.px((q.start + q.end) / 2), from = p.px(q.start), to = p.px(q.end);
      if (q.version !== before) {
        if (before !== null) p.root.append(draw("line", { class: "boundary", x1: from, x2: from, y1: p.top, y2: p.floor }));
        p.root.append(draw("text", { class: "strong", x: from + 3, y: p.top - 7 }, `v${q.version}`));
        before = q.version;
      }
      if (q.limit !== null) p.root.append(draw("line", { class: "limit", x1: from, x2: to, y1: p.py(q.limit), y2: p.py(q.limit) }));
      const e = q.estimated;
      if (e) {
        if (e.low !== null) p.root.append(draw("line", { class: "bar", x1: x, x2: x, y1: p.py(e.low), y2: p.py(e.high) }), ...[e.low, e.high].map((v) => draw("line", { class: "bar", x1: x - 4, x2: x + 4, y1: p.py(v), y2: p.py(v) })));
        p.root.append(draw("circle", { class: "hollow", cx: x, cy: p.py(e.value), r: 4 }));
      }
      if (q.realised !== null) {
        const y = p.py(q.realised);
        if (q.low !== null) p.root.append(draw("line", { class: "bar sure", x1: x + 9, x2: x + 9, y1: p.py(q.low), y2: p.py(q.high) }));
        p.root.append(draw("path", { class: q.alarm ? "solid alarm" : "solid", d: `M${x} ${y - 6}L${x + 6} ${y}L${x} ${y + 6}L${x - 6} ${y}Z` }));
      }
      const lines = [`${dayOf(q.start)} to ${dayOf(q.end)}, v${q.version}`];
      if (e) lines.push(`estimated ${plain(e.value)}${e.low === null ? "" : ` (${plain(e.low)} to ${plain(e.high)})`}, trust ${e.trust.toFixed(2)}`);
      lines.push(q.realised === null ? "labels are not old enough yet" : `realised ${plain(q.realised)}${q.low === null ? "" : ` (${plain(q.low)} to ${plain(q.high)})`}${q.limit === null ? "" : `, limit ${plain(q.limit)}`}`);
      if (q.coverage !== null) lines.push(`${percent(q.coverage)} of its rows have a label`);
      if (q.alarm) lines.push("ALARM");
      return { x: from, y: p.top, w: to - from, h: p.floor - p.top, row: 0, col, says: lines.join("\n") };
    });
    return { root: p.root, spots };
  });
}

// A metric's confidence sequence: canary minus stable, against zero and the margin.
function sequenceChart(m, rollout) {
  return chart(`${m.title}, canary minus stable, with its confidence sequence.`, (width) => {
    const looks = m.looks, last = looks.at(-1);
    const later = looks.slice(Math.floor(looks.length / 4));
    const known = (v) => typeof v === "number";
    // The first intervals are as wide as the metric's bounds: drawn whole, nothing else could be seen.
    const low = Math.min(0, ...[last.low, ...later.map((l) => l.estimate)].filter(known));
    const high = Math.max(m.margin, ...[last.high, ...later.map((l) => l.estimate)].filter(known));
    const room = 0.3 * (high - low);
    const since = Math.min(rollout.began, looks[0].at), until = Math.max(last.at, since + 1);
    const p = plane(width, 250, since, until + (until - since) * 0.04, [low - room, high + room], "difference", (v) => (Math.abs(v) < 1e-12 ? "0" : signed(v, 3)));
    const name = `clip-${Math.random().toString(36).slice(2)}`;
    const inside = draw("g", { "clip-path": `url(#${name})` });
    p.root.append(draw("clipPath", { id: name }, draw("rect", { x: p.left, y: p.top, width: width - p.left - p.right, height: p.floor - p.top })), inside);
    const sure = looks.filter((l) => known(l.low) && known(l.high));
    if (sure.length > 1) {
      const upper = sure.map((l) => `${p.px(l.at)},${p.py(l.high)}`), lower = sure.map((l) => `${p.px(l.at)},${p.py(l.low)}`).reverse();
      inside.append(draw("polygon", { class: "band", points: [...upper, ...lower].join(" ") }));
    }
    for (const l of sure) inside.append(draw("line", { class: "bar", x1: p.px(l.at), x2: p.px(l.at), y1: p.py(l.low), y2: p.py(l.high), "stroke-opacity": sure.length > 1 ? 0.45 : 1 }));
    inside.append(draw("polyline", { class: "mean", points: looks.map((l) => `${p.px(l.at)},${p.py(l.estimate)}`).join(" ") }),
      ...looks.map((l) => draw("circle", { class: "point", cx: p.px(l.at), cy: p.py(l.estimate), r: 3.5 })));
    p.root.append(draw("line", { class: "zero", x1: p.left, x2: width - p.right, y1: p.py(0), y2: p.py(0) }),
      draw("line", { class: "limit", x1: p.left, x2: width - p.right, y1: p.py(m.margin), y2: p.py(m.margin) }),
      draw("text", { class: "limit-name", x: width - p.right, y: p.py(m.margin) - 5, "text-anchor": "end" }, `margin ${m.margin}`));
    let free = 0;
    for (const s of rollout.steps) {
      const share = / at ([0-9.e-]+)$/.exec(s.kind);
      if (!share || s.at < since) continue;
      const x = p.px(s.at);
      p.root.append(draw("line", { class: "boundary", x1: x, x2: x, y1: p.top - 4, y2: p.floor }));
      const end = x > width - 44;
      if (x >= free) { p.root.append(draw("text", { x: end ? width - 2 : x + 3, y: p.top - 7, "text-anchor": end ? "end" : "start", class: "strong" }, percent(Number(share[1])))); free = x + 44; }
    }
    const spots = looks.map((l, col) => {
      const at = p.px(l.at), interval = known(l.low) ? `interval ${signed(l.low)} to ${signed(l.high)}` : "no interval yet";
      return { x: at - 5, y: p.top, w: 10, h: p.floor - p.top, row: 0, col, says: `${local(l.at)}\n${signed(l.estimate)}, ${interval}\n${many(l.n_keys)} keys` };
    });
    return { root: p.root, spots };
  });
}

// Features by windows: how far each is from its limit. As many of the newest windows as fit.
function heatMap(of) {
  return chart("Drift of each feature in each window, as a share of its limit.", (width) => {
    const left = width < 480 ? 96 : 150, right = 4, top = 40, line = 22;
    const fits = Math.max(4, Math.floor((width - left - right) / 24)), shown = of.windows.slice(-fits);
    const cell = Math.min(150, (width - left - right) / shown.length), height = top + line * of.features.length + 6;
    const root = draw("svg", { viewBox: `0 0 ${width} ${height}`, height });
    if (shown.length < of.windows.length) root.append(draw("text", { x: 0, y: 12 }, `${shown.length} of ${of.windows.length}`));
    let free = 0, before = null;
    shown.forEach((w, col) => {
      const x = left + col * cell;
      if (w.version !== before) {
        root.append(draw("text", { class: "strong", x: x + 1, y: 12 }, `v${w.version}`));
        before = w.version;
      }
      if (x >= free) { root.append(draw("text", { x: x + 1, y: top - 12, class: w.alarm ? "alarm-name" : null }, dayOf(w.start))); free = x + 52; }
      if (w.alarm) root.append(draw("rect", { class: "cell over", x: x + 1, width: cell - 2, y: top - 7, height: 4 }));
    });
    const spots = [];
    of.features.forEach((feature, row) => {
      const y = top + row * line, most = Math.floor((left - 8) / 7.8);
      root.append(draw("text", { x: left - 8, y: y + 15, "text-anchor": "end" }, feature.length > most ? `${feature.slice(0, most - 1)}…` : feature));
      shown.forEach((w, col) => {
        const psi = w.psi[row], limit = w.limit[row], x = left + col * cell;
        const share = typeof psi === "number" && limit ? psi / limit : null;
        const over = share !== null && share > 1;
        root.append(draw("rect", { class: `cell ${share === null ? "none" : over ? "over" : "low"}`, x, y, width: cell, height: line, "fill-opacity": share === null ? null : over ? Math.min(0.7 + 0.1 * (share - 1), 1) : 0.05 + 0.75 * share }));
        if (over) root.append(draw("path", { class: "flag", d: `M${x + cell / 2} ${y + 6}l5 5l-5 5l-5 -5Z` }));
        const judged = share === null ? `not judged: ${w.why}` : `PSI ${psi.toFixed(3)}, limit ${limit.toFixed(3)}${over ? ": ALARM" : ""}`;
        spots.push({ x, y, w: cell, h: line, row, col, says: `${feature}, ${dayOf(w.start)} to ${dayOf(w.end)}\n${judged}` });
      });
    });
    return { root, spots };
  });
}
