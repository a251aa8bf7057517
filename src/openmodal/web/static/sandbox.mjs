// One sandbox: its timeline. All text in it is the sandbox's, or was given by who used it: text nodes only.

import { Nothing, call, date, duration, html, size, useEffect, useState } from "./parts.mjs";

const PERIOD = 2000;

export function Sandbox({ id }) {
  const [events, show] = useState(null);
  const [error, fail] = useState("");
  useEffect(() => {
    let timer, ended;
    const look = async () => {
      try {
        const found = await call(`/sandboxes/${encodeURIComponent(id)}/timeline`);
        if (!ended) (show(found), fail(""));
      } catch (error) {
        if (!ended) fail(error.message);
      }
      if (!ended) timer = setTimeout(look, PERIOD);
    };
    look();
    return () => ((ended = true), clearTimeout(timer));
  }, [id]);
  return html`
    <div class="heading"><h1>${id}</h1></div>
    ${error && html`<p class="trouble" role="alert">${error}</p>`}
    ${events?.length === 0 && html`<${Nothing} title="Nothing was done with it yet, or its journal is off." />`}
    ${events?.length > 0 && html`<table class="timeline">
      <caption class="hidden">What was done with ${id}</caption>
      <thead><tr>
        <th scope="col">Time</th><th scope="col">Took</th><th scope="col">Call</th><th scope="col">What</th><th scope="col">Result</th>
      </tr></thead>
      <tbody>${events.map((event, number) => html`<${Event} key=${number} event=${event} />`)}</tbody>
    </table>`}
  `;
}

function Event({ event }) {
  const seconds = event.record ? event.record.ended - event.record.started : event.seconds;
  return html`<tr>
    <td><time title=${date(event.at)}>${new Date(event.at * 1000).toLocaleTimeString()}</time></td>
    <td>${seconds == null ? "" : length(seconds)}</td>
    <td>${event.call}</td>
    <td>${[event.path, (event.argv || []).join(" ") + (event.cut ? " …" : "")].filter(Boolean).join(" ")}</td>
    <td>${result(event)}</td>
  </tr>`;
}

function length(seconds) {
  return seconds < 1 ? `${(seconds * 1000).toFixed(1)} ms` : duration(seconds);
}

/** What came of a call, in some words. */
function result(event) {
  const { record } = event;
  const known = [
    record && `exit ${event.returncode}`,
    record?.timed_out && "timed out",
    record?.out_of_memory && "out of memory",
    event.error,
    event.size != null && size(event.size),
    event.detail,
    event.by && `by ${event.by}`,
  ].filter(Boolean);
  return known.join(", ") || (event.seconds == null && event.command ? "running" : "");
}
