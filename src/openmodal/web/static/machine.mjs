// This machine: what is used, what waits, what doctor says, and what crashes left behind.

import { Question, Trouble, call, count, html, size, useEffect, useFeed, useRef, useState } from "./parts.mjs";

const KEPT = 150; // points of a line: five minutes

export function Machine({ about }) {
  const feed = useFeed("machine");
  const now = feed.rows?.get("machine");
  const past = useRef([]);
  if (now && past.current.at(-1) !== now) past.current = [...past.current, now].slice(-KEPT);
  const line = (value) => past.current.map(value);
  return html`
    <div class="heading"><h1>Machine</h1>${now && html`<p class="counts"><span><b>${now.name}</b></span><span>Linux ${now.kernel}</span></p>`}</div>
    <${Trouble} feed=${feed} />
    ${now && html`<div class="cards">
      <${Gauge} title="CPU" share=${now.busy} words=${percent(now.busy)} line=${line((r) => r.busy)}>
        ${count(now.cpus, "core")}, load ${now.load.toFixed(2)}, <${Pressure} of=${now.pressure.cpu} /></${Gauge}>
      <${Gauge} title="Memory" share=${now.memory.used / now.memory.total} words=${size(now.memory.used)} line=${line((r) => r.memory.used / r.memory.total)}>
        of ${size(now.memory.total)}, <${Pressure} of=${now.pressure.memory} /></${Gauge}>
      <${Gauge} title="Disk of sandboxes and images" share=${now.disk.used / now.disk.total} words=${size(now.disk.used)} line=${line((r) => r.disk.used / r.disk.total)}>
        of ${size(now.disk.total)} at <span class="mono">${now.disk.at}</span>, <${Pressure} of=${now.pressure.io} /></${Gauge}>
      <${Apps} apps=${now.apps} />
    </div>`}
    <${Doctor} />
    ${!about.lacks.includes("gc") && html`<${Leftovers} about=${about} />`}
  `;
}

const percent = (share) => (share == null ? "–" : `${(100 * share).toFixed(0)} %`);

function Pressure({ of }) {
  if (of == null) return "pressure unknown";
  return html`<span class=${of > 40 ? "high" : of > 15 ? "middle" : ""}>${of.toFixed(0)} % of the time something waited</span>`;
}

function Gauge({ title, share, words, line, children }) {
  const level = share > 0.9 ? "high" : share > 0.75 ? "middle" : "low";
  const points = line.map((value, at) => `${(at * 100) / (KEPT - 1)},${(39 - 37 * (value ?? 0)).toFixed(1)}`);
  const end = ((line.length - 1) * 100) / (KEPT - 1);
  return html`<section class="card gauge">
    <h2>${title}</h2>
    <p class=${`figure ${level}`}>${words}</p>
    <svg viewBox="0 0 100 40" preserveAspectRatio="none" role="img" aria-label=${`${title} in the last five minutes, now ${percent(share)}`}>
      <polygon points=${`0,40 ${points.join(" ")} ${end},40`} /><polyline points=${points.join(" ")} />
    </svg>
    <p class="facts"><span>${children}</span></p>
  </section>`;
}

function Apps({ apps }) {
  const all = Object.entries(apps);
  const most = Math.max(1, ...all.map(([, number]) => number));
  return html`<section class="card">
    <h2>Sandboxes by app</h2>
    ${all.length === 0 && html`<p class="facts">None runs.</p>`}
    <ul class="bars">${all.slice(0, 8).map(([app, number]) => html`<li key=${app}><a href="#/sandboxes">${app}</a><b>${number}</b>
      <span class="bar"><span style=${{ width: `${(100 * number) / most}%` }}></span></span></li>`)}</ul>
    ${all.length > 8 && html`<p class="facts">… and ${count(all.length - 8, "other app")}</p>`}
  </section>`;
}

/** What a call tells, and a way to call again: [told, error, again]. */
function useCall(of) {
  const [told, tell] = useState(null);
  const [error, fail] = useState("");
  const again = () => {
    tell(null);
    fail("");
    call(of).then(tell, (error) => fail(error.message));
  };
  useEffect(again, [of]);
  return [told, error, again];
}

const rank = (check) => (check.ok ? 2 : check.required ? 0 : 1);

function Doctor() {
  const [checks, error, again] = useCall("/doctor");
  const wrong = (checks || []).filter((check) => !check.ok);
  const works = checks && !checks.some((check) => check.required && !check.ok);
  return html`<section class="part" aria-busy=${!checks}>
    <div class="group"><h2>Doctor</h2>
      <span>${checks ? (works ? (wrong.length ? `sandboxes can run; ${count(wrong.length, "note")}` : "all is well") : "sandboxes cannot run yet") : "looking …"}</span>
      <button type="button" disabled=${!checks} onClick=${again}>Look again</button></div>
    ${error && html`<p class="trouble" role="alert">${error}</p>`}
    ${checks && html`<ul class="checks card">${[...checks].sort((a, b) => rank(a) - rank(b)).map(
      (check) => html`<li class=${check.ok ? "ok" : check.required ? "missing" : "note"}>
        <span class="mark-of">${check.ok ? "✓" : check.required ? "✗" : "!"}<span class="hidden">${check.ok ? "ok" : check.required ? "missing" : "note"}</span></span>
        <div><b>${check.name}</b> <span>${check.text}</span>${!check.ok && check.remedy && html`<p class="remedy">${check.remedy}</p>`}</div></li>`,
    )}</ul>`}
  </section>`;
}

function Leftovers({ about }) {
  const [left, error, again] = useCall("/gc");
  const [asked, ask] = useState(null);
  const clear = () =>
    ask({
      title: `Remove ${count(left.found.length, "leftover")}?`,
      text: html`<p>Running sandboxes are left alone.</p>`,
      verb: "Remove",
      act: async () => (await call("/gc", { method: "POST" }), again()),
    });
  return html`<section class="part">
    <div class="group"><h2>Left behind by crashes</h2><span>${left ? (left.found.length ? left.found.length : "nothing") : "looking …"}</span>
      ${left?.found.length > 0 && !about.readOnly && html`<button type="button" onClick=${clear}>Remove …</button>`}</div>
    ${error && html`<p class="trouble" role="alert">${error}</p>`}
    ${left?.found.length > 0 && html`<ul class="checks card">${left.found.map((line) => html`<li class="note"><span class="mark-of">!</span><div class="mono">${line}</div></li>`)}</ul>`}
    <${Question} asked=${asked} close=${() => ask(null)} />
  </section>`;
}
