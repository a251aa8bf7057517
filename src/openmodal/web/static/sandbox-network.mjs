// What a sandbox wanted to reach, and what became of it.

import { Nothing, count, html } from "./parts.mjs";

export function Network({ info, rows }) {
  const log = rows.get("egress");
  const kind = { none: "It has no network.", outbound: "It has a network." }[info?.network] || "";
  if (!log) return html`<${Nothing} title=${`${kind} Without an allow list, nothing is noted of what it reaches.`}>
    <p>Create it with <code>outbound_domain_allowlist=</code> to choose what it reaches, and to see here what was refused, and why.</p></${Nothing}>`;
  const refused = log.counts.filter((each) => !each.allowed).reduce((sum, each) => sum + each.count, 0);
  const all = log.counts.reduce((sum, each) => sum + each.count, 0);
  if (!all) return html`<${Nothing} title="It has not tried to reach anything yet." />`;
  return html`
    <p class="counts"><span><b>${all - refused}</b> allowed</span> <span><b>${refused}</b> refused</span></p>
    <${Table} title="By name" columns=${["Name", "Kind", "Times", "Outcome"]} rows=${log.counts.map((each) => [
      html`<code>${each.name}</code>`, each.kind, count(each.count, "time"), outcome(each)])} />
    <${Table} title="The newest" columns=${["Name", "Address", "When", "Outcome"]} rows=${[...log.newest].reverse().map((each) => [
      html`<code>${each.asked || "–"}</code>`, each.address || "–", new Date(each.time * 1000).toLocaleTimeString(), outcome(each)])} />`;
}

function outcome({ allowed, reason }) {
  return html`<span class=${`chip ${allowed ? "good" : "bad"}`}>${allowed ? "allowed" : "refused"}</span> ${reason}`;
}

/** A table whose rows are cards on a phone. The first column is the widest. */
export function Table({ title, columns, rows }) {
  return html`<section class="listing"><h2>${title}</h2>
    <table><thead><tr>${columns.map((column) => html`<th scope="col">${column}</th>`)}</tr></thead>
      <tbody>${rows.map((row) => html`<tr>${row.map((cell, i) => html`<td data-label=${columns[i]}>${cell}</td>`)}</tr>`)}</tbody></table>
  </section>`;
}
