// What was done with a sandbox, in the order of time; a command opens to its output.

import { Nothing, count, date, html, size, useState } from "./parts.mjs";
import { Output } from "./sandbox-output.mjs";

export function Timeline({ id, status, rows }) {
  const [text, filter] = useState("");
  const [open, toggle] = useState("");
  const all = [...rows.values()].filter((row) => row.event).sort((a, b) => a.event.at - b.event.at);
  const begin = status.created || all[0]?.event.at || 0;
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = all.filter((row) => words.every((word) => said(row).includes(word)));
  const longest = Math.max(0.001, ...shown.map((row) => length(row.event) || 0));
  return html`
    <div class="tools" role="search">
      <input type="search" placeholder="Filter: a word of a command, path or result" aria-label="Filter the timeline"
        value=${text} onInput=${(e) => filter(e.target.value)} />
      <span class="counts" role="status">${shown.length === all.length ? count(all.length, "call") : `${shown.length} of ${count(all.length, "call")}`}</span>
    </div>
    ${shown.length === 0 ? html`<${Nothing} title=${all.length ? "Nothing fits the filter." : "Nothing was done with it yet."} />` :
    html`<ol class="timeline">${shown.map((row) => html`<${Event} key=${row.id} paused=${status.paused}
      ...${{ id, row, begin, longest, open: open === row.id, toggle: () => toggle(open === row.id ? "" : row.id) }} />`)}</ol>`}
  `;
}

function said({ event, code }) {
  return `${event.call} ${(event.argv || []).join(" ")} ${event.path || ""} ${result(event, code)}`.toLowerCase();
}

function length({ record, seconds }) {
  return record ? record.ended - record.started : seconds;
}

function Event({ id, row, begin, longest, open, toggle, paused }) {
  const { event, code } = row;
  const seconds = length(event);
  const what = event.argv?.length ? event.argv.map(quoted).join(" ") + (event.cut ? " …" : "") : event.path || "";
  const bad = event.error || (code != null && code !== 0);
  const running = event.command && seconds == null;
  const line = html`
    <time title=${date(event.at)}>${since(event.at - begin)}</time>
    <span class=${`call ${bad ? "bad" : running ? "running" : ""}`}>${event.call}</span>
    <span class="what">${what}</span>
    <span class="took" aria-label=${seconds == null ? null : `took ${spell(seconds)}`}>
      ${seconds == null ? (running ? "running" : "") : spell(seconds)}
      ${seconds != null && html`<span class="bar"><span class=${bad ? "high" : ""} style=${{ width: `${((100 * seconds) / longest).toFixed(1)}%` }}></span></span>`}
    </span>
    <span class="result">${result(event, code)}</span>`;
  // Of what `exec` ran, its caller has read everything; so there is something to see of these only.
  const has = event.command && (running || ["spawn", "main"].includes(event.call));
  return html`<li class=${open ? "open" : ""}>
    ${has ? html`<button type="button" class="line" aria-expanded=${open} onClick=${toggle}>${line}</button>` : html`<div class="line">${line}</div>`}
    ${open && html`<${Output} id=${id} command=${event.command} paused=${paused} />`}
  </li>`;
}

function result(event, code) {
  const record = event.record;
  return [
    record && `exit ${code}`,
    record?.timed_out && "timed out",
    record?.out_of_memory && "out of memory",
    record && `CPU ${spell(record.cpu)}, ${size(record.memory * 1024)}`,
    event.error,
    event.size != null && size(event.size),
    event.detail,
    event.by && `by ${event.by}`,
  ].filter(Boolean).join(", ");
}

function since(seconds) {
  seconds = Math.max(0, seconds);
  return seconds < 600 ? `+${seconds.toFixed(2)} s` : `+${spell(seconds)}`;
}

function spell(seconds) {
  if (seconds < 1) return `${(1000 * seconds).toFixed(1)} ms`;
  if (seconds < 120) return `${seconds.toFixed(1)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} m ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} m`;
}

function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
