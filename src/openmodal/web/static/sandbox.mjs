// One sandbox: its head, and the views of it. `about` is what the server tells of itself
// ({engine, readOnly, lacks, …}). Whatever a sandbox says is shown as text.

import { Age, Nothing, Question, Trouble, call, count, date, html, size, useEffect, useFeed, useState } from "./parts.mjs";
import { Charts } from "./sandbox-charts.mjs";
import { Files } from "./sandbox-files.mjs";
import { Holds } from "./sandbox-holds.mjs";
import { Network } from "./sandbox-network.mjs";
import { Terminal } from "./sandbox-terminal.mjs";
import { Timeline } from "./sandbox-timeline.mjs";

const VIEWS = { Timeline, Terminal, Files, Use: Charts, Network, Limits: Holds };
const USES = ["Terminal", "Files"]; // who is paused would go on

export function Sandbox({ id, about }) {
  const feed = useFeed(`sandbox/${encodeURIComponent(id)}`);
  const [view, show] = useState("Timeline");
  const [asked, ask] = useState(null);
  const known = feed.rows?.get("about");
  if (!known) return html`<h1>${id}</h1>
    ${feed.error ? html`<${Nothing} title=${feed.error}><p><a href="#/sandboxes">All sandboxes</a></p></${Nothing}>` : html`<${Missing} id=${id} feed=${feed} />`}`;
  const { status, info } = known;
  const live = !status.ended;
  const views = Object.keys(VIEWS).filter((name) => offered(name, live, about));
  const chosen = views.includes(view) ? view : "Timeline";
  const View = VIEWS[chosen];
  return html`
    <${Head} ...${{ status, info, about, ask }} />
    <${Trouble} feed=${feed} />
    <div class="tabs" role="tablist" aria-label="Views of the sandbox" onKeyDown=${(e) => step(e, views, chosen, show)}>
      ${views.map((name) => html`<button type="button" role="tab" id=${`tab-${name}`} aria-controls="tab"
        aria-selected=${name === chosen} tabindex=${name === chosen ? 0 : -1} onClick=${() => show(name)}>${name}</button>`)}
    </div>
    <div role="tabpanel" id="tab" aria-labelledby=${`tab-${chosen}`}>
      ${status.paused && USES.includes(chosen)
        ? html`<${Nothing} title="It is paused: nothing in it runs."><p>Resume it to use it.</p></${Nothing}>`
        : html`<${View} key=${chosen} ...${{ id, about, status, info, live, rows: feed.rows }} />`}
    </div>
    <${Question} asked=${asked} close=${() => ask(null)} />
  `;
}

/** A feed whose first answer is an error opens again and again; a call tells why. */
function Missing({ id, feed }) {
  const [error, fail] = useState("");
  useEffect(() => void call(`/sandbox/${encodeURIComponent(id)}/samples`).catch((error) => fail(error.message)), [id]);
  if (!error) return html`<${Trouble} feed=${feed} />`;
  return html`<${Nothing} title=${error}><p><a href="#/sandboxes">All sandboxes</a></p></${Nothing}>`;
}

function offered(name, live, about) {
  if (name === "Terminal") return live && !about.readOnly;
  return name !== "Files" || live;
}

function step(event, views, view, show) {
  const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!move) return;
  const next = views[(views.indexOf(view) + move + views.length) % views.length];
  show(next);
  document.getElementById(`tab-${next}`).focus();
}

function Head({ status, info, about, ask }) {
  const [error, fail] = useState("");
  const state = status.ended ? "ended" : status.paused ? "paused" : "running";
  useEffect(() => fail(""), [state]);
  const verb = (name) => call(`/sandboxes/${encodeURIComponent(status.id)}/${name}`, { method: "POST" });
  const stop = () => ask({
    title: `Stop ${status.name || status.id}?`,
    text: "Its processes end at once, and its files are gone.",
    verb: "Stop",
    act: () => verb("stop"),
  });
  const pauses = !about.lacks.includes("pause");
  const other = status.paused ? "Resume" : "Pause";
  return html`<header class="sandbox">
    <p class="crumb"><a href="#/sandboxes">Sandboxes</a></p>
    <div class="heading">
      <h1><span class=${`dot ${state}`} aria-hidden="true"></span>${status.name || status.id}</h1>
      <span class="chip">${state}</span>
      ${!status.ended && !about.readOnly && html`<span class="end buttons">
        ${pauses && html`<button type="button" onClick=${() => verb(other.toLowerCase()).catch((e) => fail(e.message))}>${other}</button>`}
        <button type="button" class="danger" onClick=${stop}>Stop</button>
      </span>`}
    </div>
    ${error && html`<p class="trouble" role="alert">${error}</p>`}
    ${status.ended && html`<p class="verdict">${status.ended.text} <small>${date(status.ended.ended)}, exit code ${status.ended.returncode}</small></p>`}
    ${info?.degraded?.length > 0 && html`<p class="trouble">It runs without ${info.degraded.join(", ")}.</p>`}
    <dl class="known">
      ${fact("Id", html`<code>${status.id}</code>`)}
      ${fact("App", status.app)}
      ${fact("Age", status.created ? html`<${Age} since=${status.created} />` : "–")}
      ${!status.ended && fact("Ends in", html`<${Age} until=${status.expires} />`)}
      ${fact("Image", html`<code>${status.image.slice(0, 12)}</code>`)}
      ${fact("Runtime", status.runtime)}
      ${limits(info) && fact("Limits", limits(info))}
      ${!status.ended && status.tunnels.length > 0 && fact("Ports", status.tunnels.map(port))}
      ${status.tags.length > 0 && fact("Tags", status.tags.map(([key, value]) => html`<span class="chip">${key}=${value}</span> `))}
    </dl>
  </header>`;
}

function fact(name, value) {
  return html`<div><dt>${name}</dt><dd>${value}</dd></div>`;
}

/** A port is served at another origin, which gets no cookie of ours; and on this machine only. */
function port([number, local]) {
  if (!["127.0.0.1", "localhost", "[::1]"].includes(location.hostname)) return html`${number} (127.0.0.1:${local} there) `;
  return html`<a href=${`http://127.0.0.1:${local}/`} target="_blank" rel="noopener noreferrer">${number}</a> `;
}

function limits(info) {
  if (!info) return "";
  const known = [
    info.cpu != null && count(info.cpu, "core"),
    info.memory != null && `${size(info.memory * 2 ** 20)} of memory`,
    info.disk != null && `${size(info.disk * 2 ** 20)} of disk`,
  ];
  return known.filter(Boolean).join(" · ");
}
