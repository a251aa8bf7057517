// What holds a sandbox: limits and isolation, as the kernel tells them and not as they were asked for.

import { Nothing, count, html, size } from "./parts.mjs";

export function Holds({ info, live, about, rows }) {
  if (about.lacks.includes("info")) return html`<${Nothing} title=${`The ${about.engine} engine does not tell what holds a sandbox.`} />`;
  if (!info) return html`<${Nothing} title=${live ? "Its kernel does not tell yet." : "It has ended, so nothing holds it any more."} />`;
  const mebi = (value) => (value == null ? null : size(value * 2 ** 20));
  return html`<div class="cards">
    <${Card} title="Limits" rows=${[
      ["Memory", mebi(info.memory)], ["CPU", info.cpu == null ? null : count(info.cpu, "core")],
      ["Processes and threads", info.pids], ["Disk", mebi(info.disk)]]} />
    <${Card} title="Rights" rows=${[
      ["Its root is, outside", info.root === 0 ? html`<span class="bad">root</span>` : `id ${info.root}`], ["Ids", info.ids.toLocaleString("en")],
      ["Filter of system calls", yes(info.seccomp)], ["No new privileges", yes(info.no_new_privileges)],
      ["Capabilities", info.capabilities.length ? html`<code>${info.capabilities.join(" ").toLowerCase().replaceAll("cap_", "")}</code>` : "none"]]} />
    <${Card} title="Place" rows=${[
      ["Runtime", info.runtime], ["Network", rows.has("egress") ? "what its allow list has" : { none: "none", outbound: "the internet, outbound" }[info.network]],
      ["Generation", info.generation || "as it was created"],
      ["Lacks", info.degraded.length ? html`<span class="bad">${info.degraded.join(", ")}</span>` : "nothing"]]} />
  </div>`;
}

const yes = (value) => (value ? "yes" : html`<span class="bad">no</span>`);

function Card({ title, rows }) {
  return html`<section class="card holds"><h2>${title}</h2>
    <dl>${rows.map(([name, value]) => html`<dt>${name}</dt><dd>${value ?? html`<span class="unknown">no limit</span>`}</dd>`)}</dl></section>`;
}
