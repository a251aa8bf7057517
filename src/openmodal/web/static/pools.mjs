// Pools: sandboxes kept ready.

import { Meter, Nothing, Trouble, html, useFeed } from "./parts.mjs";

export function Pools({ about }) {
  const feed = useFeed("pools");
  const pools = [...(feed.rows?.values() || [])];
  if (about.lacks.includes("pools")) {
    return html`<div class="heading"><h1>Pools</h1></div><${Nothing} title=${`The ${about.engine} engine needs no pools.`}>
      <p>A sandbox starts in milliseconds here. On a cluster, a pool keeps some ready.</p></${Nothing}>`;
  }
  return html`
    <div class="heading"><h1>Pools</h1><p class="counts"><span><b>${pools.length}</b> kept</span></p></div>
    <${Trouble} feed=${feed} />
    ${feed.rows && pools.length === 0 && html`<${Nothing} title="There is no pool."><p><code>openmodal pool create NAME --image … --size 10</code> makes one.</p></${Nothing}>`}
    <div class="cards">${pools.map((pool) => html`<section class="card" key=${pool.id}>
      <h2>${pool.name}</h2><p class="facts"><span class="mono" title=${pool.image}>${short(pool.image)}</span></p>
      <${Meter} store value=${pool.ready} most=${pool.size} label=${`${pool.ready} of ${pool.size} ready`}>${pool.ready}<i> / ${pool.size} ready</i></${Meter}>
    </section>`)}</div>`;
}

/** Of a registry's reference: the repository's last word, and a digest's first digits. */
function short(reference) {
  return reference.split("/").pop().replace(/(@sha256:[0-9a-f]{12})[0-9a-f]+$/, "$1");
}
