// Keeps the page up to date: asks every few seconds, redraws only the parts that changed, and keeps what the reader did.

const EVERY_MS = 4000;
const STORED = "mlops_ray token";
const by = (id) => document.getElementById(id);
const PARTS = [
  ["alerts", alertsPart, (d) => [d.alerts, d.notices]], ["loop", loopPart, (d) => [d.loop, d.serving]], ["rollout", rolloutPart, (d) => d.rollouts],
  ["quality", qualityPart, (d) => d.quality], ["traffic", trafficPart, (d) => [d.traffic, d.serving.rows]], ["drift", driftPart, (d) => d.drift],
  ["retrains", retrainsPart, (d) => d.retrains], ["lineage", lineagePart, (d) => d.lineage], ["ledger", ledgerPart, (d) => d.ledger],
];
const shown = new Map();
const snapshot = by("snapshot") ? JSON.parse(by("snapshot").textContent) : null;
let etag = null, updated = null, awaySince = null, timer = null;

function put(id, made) {
  const section = by(id);
  if (made === null) { section.hidden = true; section.replaceChildren(); return; }
  const open = new Set([...section.querySelectorAll("details[open]")].map((d) => d.dataset.key));
  const scrolled = [...section.querySelectorAll(".wide")].map((w) => [w.getAttribute("aria-label"), w.scrollTop, w.scrollLeft]);
  const held = section.contains(document.activeElement) ? named(document.activeElement) : null;
  section.replaceChildren(...made.filter(Boolean));
  section.hidden = false;
  for (const d of section.querySelectorAll("details")) d.open = open.has(d.dataset.key);
  for (const [label, top, left] of scrolled) {
    const again = [...section.querySelectorAll(".wide")].find((w) => w.getAttribute("aria-label") === label);
    if (again) { again.scrollTop = top; again.scrollLeft = left; }
  }
  if (held) refocus(section, held, 3);
}

// What finds an element again in the part that is drawn anew; charts draw themselves some frames later.
function named(node) {
  const details = node.closest("summary") ? node.closest("details") : null;
  if (details) return `details[data-key="${CSS.escape(details.dataset.key)}"] > summary`;
  if (node.dataset.key) return `[data-key="${CSS.escape(node.dataset.key)}"]`;
  return node.getAttribute("aria-label") ? `[aria-label="${CSS.escape(node.getAttribute("aria-label"))}"]` : null;
}

function refocus(section, name, frames) {
  const again = section.querySelector(name);
  if (again) again.focus({ preventScroll: true });
  else if (frames) requestAnimationFrame(() => refocus(section, name, frames - 1));
}

function show(doc) {
  const colour = colours(doc);
  for (const [id, make, of] of PARTS) {
    const body = JSON.stringify(of(doc));
    if (shown.get(id) === body) continue;
    shown.set(id, body);
    put(id, make(doc, colour));
  }
  by("token").hidden = true;
  const { serving } = doc, pill = by("stable");
  pill.hidden = false;
  pill.textContent = serving.stable === null ? "nothing serves" : `v${serving.stable} stable`;
  by("foot").replaceChildren(...foot(doc));
}

function foot(doc) {
  const clock = doc.now === null ? ["There is no decision time before the first request. "] : ["Decision time is ", when(doc.now), ": the time up to which all events are known. Windows, rollouts and the ledger go by it, and all times here are it, but for the training of versions that nothing in the loop asked for. "];
  const behind = doc.now === null ? 0 : Date.now() / 1000 - doc.now;
  if (!snapshot && behind > 86400) clock.push(`It is ${ago(behind)} behind this machine's clock: traffic of the past is being replayed, or none comes. `);
  return [...clock, `Your zone: ${zone}; point at a time for UTC. mlops_ray ${doc.release}.`];
}

function fresh() {
  const pill = by("fresh");
  if (snapshot) {
    pill.className = "pill";
    pill.replaceChildren("snapshot of ", when(snapshot.taken));
    return;
  }
  if (updated === null && awaySince === null) return;
  pill.className = `pill ${awaySince === null ? "good" : "bad"}`;
  const says = updated === null ? "never updated" : `last update ${ago((Date.now() - updated) / 1000)} ago`;
  pill.replaceChildren(el("span", { class: "dot", "aria-hidden": "true" }), says);
}

function away(why) {
  if (awaySince === null) awaySince = Date.now();
  const kept = updated === null ? "Nothing could be read yet." : "What stands below is what was known then.";
  by("away").firstElementChild.replaceChildren("The server is away since ", el("time", {}, hourOnly.format(new Date(awaySince))), ` (${why}). ${kept} It is asked again every few seconds.`);
  by("away").hidden = false;
}

function back() { awaySince = null; by("away").hidden = true; }

function ask(refused) {
  back();
  for (const [id] of PARTS) { by(id).hidden = true; by(id).replaceChildren(); }
  shown.clear();
  etag = updated = null;
  by("stable").hidden = true;
  by("fresh").textContent = "waits for a token";
  by("fresh").className = "pill wait";
  by("refused").textContent = refused;
  if (by("token").hidden) { by("token").hidden = false; by("secret").focus(); }
}

async function look() {
  clearTimeout(timer);
  timer = null;
  const token = sessionStorage.getItem(STORED);
  const headers = { Accept: "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  if (etag) headers["If-None-Match"] = etag;
  by("leave").hidden = !token;
  try {
    const answer = await fetch("dashboard/data", { headers, cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(10000) });
    if (answer.status === 401 || answer.status === 403) {
      const said = await answer.json().catch(() => ({}));
      return ask(token ? said.detail || "This token is not taken." : "");
    }
    if (answer.status !== 200 && answer.status !== 304) throw new Error(`it answers ${answer.status}`);
    if (answer.status === 200) {
      const doc = await answer.json();
      etag = answer.headers.get("ETag");
      show(doc);
    }
    updated = Date.now();
    back();
  } catch (error) {
    away(error.name === "TimeoutError" ? "no answer within 10 s" : error instanceof TypeError ? "it cannot be reached" : error.message);
  }
  fresh();
  timer = setTimeout(look, EVERY_MS);
}

const THEMES = [[null, "as the system"], ["light", "light"], ["dark", "dark"]];
function theme(next) {
  let now = THEMES.findIndex(([name]) => name === (document.documentElement.dataset.theme || null));
  if (next) now = (now + 1) % THEMES.length;
  const [name, says] = THEMES[now];
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  by("theme").textContent = `Theme: ${says}`;
  return name;
}
// A file that was opened from a disk may have no storage.
function kept(work) { try { return work(); } catch { return null; } }

const chosen = kept(() => localStorage.getItem("mlops_ray theme"));
if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
theme(false);
by("theme").addEventListener("click", () => { const name = theme(true); kept(() => localStorage.setItem("mlops_ray theme", name || "")); });
by("token").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(STORED, by("secret").value.trim());
  by("secret").value = "";
  look();
});
by("leave").addEventListener("click", () => { sessionStorage.removeItem(STORED); by("leave").hidden = true; look(); });
if (snapshot) {
  show(snapshot.document);
  fresh();
} else {
  setInterval(fresh, 1000);
  document.addEventListener("visibilitychange", () => { if (document.hidden) clearTimeout(timer); else look(); });
  look();
}
