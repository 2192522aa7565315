// The parts of the page, each from its part of the document.

const MARKS = { now: "●", done: "✓", waiting: "○", trouble: "!" };
const STATES = { now: "here now", done: "done", waiting: "waits", trouble: "trouble" };
const head = (id, title, note) => el("div", { class: "head" }, el("h2", { id: `${id}-title` }, title), note ? el("p", { class: "small soft" }, note) : null);
const empty = (text) => el("p", { class: "empty" }, told(text));
const verdicts = { pass: "proven fine", fail: "proven worse", inconclusive: "not decided" };

// Versions keep their colour for as long as they are shown.
function colours(doc) {
  const versions = [...new Set([...doc.traffic.versions, ...doc.lineage.map((o) => o.version)])].sort((a, b) => a - b);
  return (version) => Math.max(0, versions.indexOf(version)) % 6;
}

function ring(loop, serving) {
  const cx = 190, cy = 165, r = 108, n = loop.stages.length;
  const place = (i) => -Math.PI / 2 + (2 * Math.PI * i) / n;
  const root = draw("svg", { class: "ring", viewBox: "0 0 380 325", role: "img", "aria-label": `The loop stands at: ${loop.stage}.` });
  root.append(draw("circle", { class: "way", cx, cy, r }));
  loop.stages.forEach((stage, i) => {
    const a = place(i), b = place(i + 0.5), x = cx + r * Math.cos(a), y = cy + r * Math.sin(a);
    const mx = cx + r * Math.cos(b), my = cy + r * Math.sin(b), turn = (b * 180) / Math.PI + 90;
    root.append(draw("path", { class: "arrow", d: "M-5 -6L6 0L-5 6Z", transform: `translate(${mx} ${my}) rotate(${turn})` }));
    const side = Math.cos(a), anchor = Math.abs(side) < 0.2 ? "middle" : side > 0 ? "start" : "end";
    const dx = anchor === "middle" ? 0 : side > 0 ? 20 : -20, dy = anchor === "middle" ? (Math.sin(a) < 0 ? -20 : 30) : 5 + 10 * Math.sin(a);
    root.append(draw("g", { class: stage.state }, draw("circle", { class: "halo", cx: x, cy: y, r: 13 }), draw("circle", { class: "station", cx: x, cy: y, r: 11 }),
      draw("text", { x: x + dx, y: y + dy, "text-anchor": anchor }, stage.title)));
  });
  if (serving.stable === null) {
    root.append(draw("text", { class: "under", x: cx, y: cy + 4, "text-anchor": "middle" }, "nothing serves yet"));
    return root;
  }
  root.append(draw("text", { class: "big", x: cx, y: cy + 2, "text-anchor": "middle" }, `v${serving.stable}`));
  const trial = serving.arms.length ? serving.arms : serving.canary === null ? [] : [serving.canary];
  const share = serving.shadow ? 0 : serving.share;
  const under = trial.length ? `${serving.shadow ? "shadow" : "canary"} ${trial.map((v) => `v${v}`).join(", ")}${share ? ` ${percent(share)}` : ""}` : "answers all";
  root.append(draw("text", { class: "under", x: cx, y: cy + 24, "text-anchor": "middle" }, under));
  if (share) {
    const k = 62, around = 2 * Math.PI * k;
    root.append(draw("circle", { class: "share", stroke: "var(--line)", cx, cy, r: k }),
      draw("circle", { class: "share", stroke: "var(--accent)", cx, cy, r: k, "stroke-dasharray": `${around * share} ${around}`, transform: `rotate(-90 ${cx} ${cy})` }));
  }
  return root;
}

function loopPart(doc) {
  const { loop, serving } = doc;
  const items = loop.stages.map((stage) => el("li", { class: stage.state, "aria-current": stage.state === "now" ? "step" : null },
    el("span", { class: "mark", role: "img", "aria-label": STATES[stage.state] }, MARKS[stage.state]), el("b", {}, stage.title), el("span", {}, told(stage.says))));
  return [el("div", { class: "loop" }, ring(loop, serving), el("div", {}, el("h2", { class: "says" }, told(loop.says)), el("ol", {}, items)))];
}

function alertsPart(doc) {
  const alarms = doc.alerts.map((a) => el("li", {}, el("b", {}, a.trigger), " since ", when(a.since), el("div", {}, told(a.says))));
  const open = doc.notices.map((a) => el("li", {}, el("b", {}, `${a.severity}: ${a.rule}`), ` of ${a.subject}, ${a.state}, since `, when(a.since), el("div", {}, told(a.says))));
  const list = (title, items) => items.length ? [el("h2", {}, title), el("ul", { class: "alerts" }, items)] : [];
  return alarms.length + open.length ? [...list("Alarming now", alarms), ...list("Open alerts", open)] : null;
}

function metricPart(m, rollout) {
  const last = m.looks.at(-1), arm = m.arm === null ? "" : `v${m.arm} `;
  const need = m.needed ? `${many(m.n_keys)} of about ${many(m.n_keys + m.needed)} keys` : `${many(m.n_keys)} keys`;
  const title = el("h3", {}, `${arm}${m.title} `, el("span", { class: `word ${m.verdict}` }, verdicts[m.verdict] || m.verdict), el("span", { class: "soft small" }, ` ${need}`));
  if (typeof last.low !== "number" && m.looks.length < 2) return el("div", {}, title, empty("No interval yet: it takes outcomes of both versions."));
  const rows = [...m.looks].reverse().map((l) => [when(l.at), many(l.n_keys), signed(l.estimate), l.low === null ? "–" : signed(l.low), l.high === null ? "–" : signed(l.high)]);
  return el("div", {}, title, sequenceChart(m, rollout), asTable(`${rollout.id} ${arm}${m.name}`, `Looks at ${m.title}`, ["look at", "#keys", "#difference", "#low", "#high"], rows));
}

function steps(r) {
  if (r.mode === "immediate" || r.mode === "ab") return null;
  const names = [...(r.mode.startsWith("shadow") ? ["shadow"] : []), ...(r.mode === "shadow" ? [] : r.shares.map(percent)), "all"];
  const offset = r.mode === "shadow_then_canary" ? 1 : 0;
  const done = ["promoting", "baking", "promoted"].includes(r.phase);
  const here = done ? names.length - 1 : r.phase === "shadowing" ? 0 : r.step + offset;
  return el("ol", { class: "steps", "aria-label": "Steps of the rollout" }, names.map((name, i) =>
    el("li", { class: i < here ? "past" : i === here && (r.open || done) ? "here" : null, "aria-current": i === here && r.open ? "step" : null }, name === "all" ? "all keys" : name === "shadow" ? name : `${name} of keys`)));
}

function decided(r) {
  return el("details", { "data-key": `decided ${r.id}` }, el("summary", {}, `What was decided about it (${r.steps.length})`),
    el("ul", { class: "rows" }, r.steps.map((s) => el("li", {}, el("div", { class: "top" }, el("b", {}, s.kind), when(s.at), el("span", { class: "soft small" }, `${s.who}, ledger ${s.entry}`)), el("div", { class: "small" }, told(s.why))))));
}

// The versions that a rollout tries.
const onTrial = (r) => r.versions.map((v) => `v${v}`).join(", ");

function rolloutPart(doc) {
  if (!doc.rollouts.length) return [head("rollout", "Rollout"), empty("No version had to replace another yet. When a candidate passes its gates, its canary shows here: the share that it answers, and how its losses compare with stable's.")];
  const [r, ...others] = doc.rollouts;
  const note = r.open ? "under way" : "the last one";
  const waits = r.waits.length ? el("p", { class: "note" }, `It waits for: ${r.waits.join("; ")}.`) : null;
  const body = [head("rollout", `Rollout of ${onTrial(r)} against v${r.against}`, note), r.open ? null : el("p", {}, told(r.says), "."), steps(r), waits];
  if (r.metrics.length) {
    body.push(el("div", { class: "metrics" }, r.metrics.map((m) => metricPart(m, r))),
      legend([key(draw("rect", { class: "band", width: 22, height: 14 }), draw("line", { class: "mean", x1: 0, x2: 22, y1: 7, y2: 7 })), "canary minus stable; positive is worse. The band is a confidence sequence: it holds at all looks together"],
        [key(draw("line", { class: "limit", x1: 0, x2: 22, y1: 7, y2: 7 })), "margin: proven worse above, fine when the whole band is below"]));
  } else if (r.open) {
    body.push(empty("No look at its evidence yet. The first comes when rows of both versions have been committed to the log."));
  }
  body.push(decided(r));
  if (others.length) body.push(el("details", { "data-key": "older rollouts" }, el("summary", {}, `Rollouts before it (${others.length})`), el("ul", { class: "rows" }, others.map((o) =>
    el("li", {}, el("div", { class: "top" }, el("b", {}, `${onTrial(o)} against v${o.against}`), el("span", { class: `word ${o.phase === "promoted" ? "good" : "wait"}` }, o.phase), when(o.began)), el("div", { class: "small" }, told(o.says)))))));
  return body;
}

function qualityPart(doc) {
  const q = doc.quality;
  if (!q.points.length) return [head("quality", "Quality"), empty(q.empty)];
  const rows = [...q.points].reverse().map((x) => [when(x.start), when(x.end), `v${x.version}`, x.estimated ? plain(x.estimated.value) : "–", x.estimated && x.estimated.low !== null ? `${plain(x.estimated.low)} to ${plain(x.estimated.high)}` : "–", plain(x.realised), plain(x.limit), x.coverage === null ? "–" : percent(x.coverage), plain(x.roc_auc, 3), x.alarm ? "ALARM" : ""]);
  return [head("quality", "Quality", `${q.metric} by window; less is better`), qualityChart(q),
    legend([key(draw("line", { class: "bar", x1: 11, x2: 11, y1: 0, y2: 14 }), draw("circle", { class: "hollow", cx: 11, cy: 7, r: 4 })), "estimated before labels, 95 % interval"],
      [key(draw("path", { class: "solid", d: "M11 1L17 7L11 13L5 7Z" })), "realised"],
      [key(draw("line", { class: "limit", x1: 0, x2: 22, y1: 7, y2: 7 })), "alarms above"]),
    el("p", { class: "note" }, `Realised is counted over the window's labelled rows, ${span(q.horizon_s)} after it has closed, so that late labels are in.`),
    asTable("quality", "Quality by window", ["from", "to", "version", "#estimated", "#interval", "#realised", "#limit", "#labelled", "#ROC AUC", ""], rows)];
}

function trafficPart(doc, colour) {
  const t = doc.traffic;
  if (!t.blocks.length) return [head("traffic", "Traffic"), empty(t.empty)];
  const total = (v) => doc.serving.rows[v] ?? 0;
  const rows = [...t.blocks].reverse().map(([at, n]) => [when(at), ...n.map(many)]);
  return [head("traffic", "Traffic", `rows answered, by version, each ${span(t.block_s)}`), trafficChart(t, colour),
    legend(...t.versions.map((v) => [el("span", { class: `swatch v${colour(v)}` }), `v${v}: ${many(total(v))} rows in all`])),
    asTable("traffic", "Rows by version and block", ["from", ...t.versions.map((v) => `#v${v}`)], rows)];
}

function driftPart(doc) {
  const d = doc.drift;
  if (!d.windows.length) return [head("drift", "Drift"), empty(d.empty)];
  const newest = d.windows.at(-1);
  const says = el("p", { class: "note" }, "The newest window, ", when(newest.start), " to ", when(newest.end), `: ${newest.alarm ? "alarms: " : ""}${newest.why}. `, newest.decision ? (newest.decision === newest.why ? "A retrain was decided. " : `Then: ${newest.decision}. `) : "", d.next ? ["The next closes at ", when(d.next), "."] : "");
  if (!d.features.length) return [head("drift", "Drift"), says, empty("No window had rows and limits enough to be judged.")];
  const rows = [...d.windows].reverse().map((w) => [when(w.start), `v${w.version}`, w.rows === null ? "–" : many(w.rows), w.alarm ? "ALARM" : "", ...w.psi.map((v, i) => (v === null ? "–" : `${v.toFixed(3)}${w.limit[i] && v > w.limit[i] ? " !" : ""}`))]);
  return [head("drift", "Drift", "features by windows, the most drifted on top"), heatMap(d),
    legend([el("span", { class: "scale", "aria-hidden": "true" }, [0, 1, 2, 3, 4].map(() => el("i"))), "PSI from none to its limit"],
      [key(draw("rect", { class: "cell over", width: 22, height: 14 }), draw("path", { class: "flag", d: "M11 2l5 5l-5 5l-5 -5Z" })), "above its limit"],
      [key(draw("rect", { class: "cell none", width: 22, height: 14 })), "not judged"]),
    says, asTable("drift", "PSI by window and feature", ["from", "version", "#rows", "", ...d.features.map((f) => `#${f}`)], rows)];
}

function retrainsPart(doc) {
  if (!doc.retrains.length) return [head("retrains", "Retrains"), empty("No retrain was decided yet. What asks for one stands at the station “Retrain” above.")];
  const mood = { succeeded: "good", rejected: "wait", failed: "bad", decided: "wait", submitted: "wait", proposed: "wait" };
  return [head("retrains", "Retrains", "decided by the loop, or by order"), el("ul", { class: "rows" }, doc.retrains.slice(0, 8).map((r) => el("li", {},
    el("div", { class: "top" }, el("b", {}, r.trigger.replaceAll("_", " ")), el("span", { class: `word ${mood[r.status] || ""}` }, r.status), when(r.at)),
    el("div", { class: "small" }, told(r.reason)), el("div", { class: "small soft" }, told(r.says)))))];
}

const tree = (nodes) => el("ul", { class: "tree" }, nodes.map((node) => el("li", {}, node.text, node.children.length ? tree(node.children) : null)));

function lineagePart(doc) {
  if (!doc.lineage.length) return [head("lineage", "Lineage"), empty("No version is registered yet. Each shows here with the data, the cause and the run that made it.")];
  return [head("lineage", "Lineage", "newest version first"), el("ol", { class: "family" }, doc.lineage.map((o) => el("li", {},
    el("span", { class: `badge ${o.serves === "stable" ? "stable" : o.serves === "canary" ? "trial" : ""}` }, `v${o.version}`),
    el("div", {}, el("b", {}, o.became), o.parent === null ? "" : `, tried against v${o.parent}`, el("span", { class: "soft small" }, " trained ", when(o.created))),
    el("div", { class: "small" }, told(o.cause)),
    el("div", { class: "small soft" }, `dataset ${o.dataset.split("/").at(-1)}${o.content_hash ? ` (${o.content_hash.slice(0, 12)})` : ""}, run ${o.run_id.slice(0, 8)}, artifact ${o.sha256.slice(0, 12)}`),
    el("details", { "data-key": `origin ${o.version}` }, el("summary", {}, `All that is on record about v${o.version}`), tree(o.tree)))))];
}

function ledgerPart(doc) {
  const l = doc.ledger;
  if (!l.n) return [head("ledger", "Ledger"), empty("Nothing was decided yet. Each decision and order will stand here, sealed with the hash of the one before.")];
  const row = (e) => el("tr", {}, el("td", { class: "n seal" }, `${e.seq}`), el("td", {}, when(e.at)), el("td", { class: "what" }, el("b", {}, e.kind), ` ${e.subject}`), el("td", { class: "who" }, e.who), el("td", { class: "why" }, told(e.why)), el("td", { class: "seal" }, el("code", {}, e.hash)));
  const shown = (entries) => el("div", { class: "wide ledger", tabindex: "0", role: "region", "aria-label": "Entries of the ledger" }, el("table", {},
    el("thead", {}, el("tr", {}, ["entry", "decision time", "what", "who", "why", "hash"].map((n) => el("th", { scope: "col" }, n)))), el("tbody", {}, entries.map(row))));
  return [head("ledger", "Ledger", `${many(l.n)} entries; the head is ${l.n}:${l.head.slice(0, 12)}…`), shown(l.entries),
    l.n > l.entries.length ? el("p", { class: "note" }, `The last ${l.entries.length}; mlops-ray ledger export has all.`) : null];
}
