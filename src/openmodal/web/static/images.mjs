// Images: what each is made of, what it shares with others, and what a prune would remove.

import { Age, Meter, Nothing, Question, Trouble, call, count, html, size, useFeed, useState } from "./parts.mjs";

const DAY = 86400;
const AGES = [[0, "that nothing uses now"], [DAY, "not used for a day"], [7 * DAY, "not used for a week"], [30 * DAY, "not used for a month"]];

export function Images({ about }) {
  const feed = useFeed("images");
  const [age, older] = useState(7 * DAY);
  const [asked, ask] = useState(null);
  const [error, fail] = useState("");
  if (about.lacks.includes("images")) return html`<h1>Images</h1><${Nothing} title=${`The ${about.engine} engine keeps no images of its own.`} />`;
  const images = [...(feed.rows?.values() || [])].sort((a, b) => b.used - a.used);
  const layers = new Map(images.flatMap((image) => image.stack.map((layer) => [layer.key, layer.size])));
  const total = layers.size ? [...layers.values()].reduce((a, b) => a + b, 0) : images.reduce((a, b) => a + b.size, 0);
  const preview = async () => {
    fail("");
    try {
      const found = await call(`/images/prune?unused_for=${age}`);
      ask(question(found, age, images));
    } catch (error) {
      fail(error.message);
    }
  };
  return html`
    <div class="heading">
      <h1>Images</h1>
      <p class="counts"><span><b>${images.length}</b> built</span><span><b>${size(total)}</b> on disk</span></p>
      ${!about.readOnly && images.length > 0 && html`<span class="tools end">
        <label class="inline">Prune those
          <select value=${age} onChange=${(e) => older(Number(e.target.value))}>${AGES.map(([seconds, text]) => html`<option value=${seconds}>${text}</option>`)}</select>
        </label>
        <button type="button" onClick=${preview}>Preview …</button>
      </span>`}
    </div>
    <${Trouble} feed=${feed} />
    ${error && html`<p class="trouble" role="alert">${error}</p>`}
    ${feed.rows && images.length === 0 && html`<${Nothing} title="No image is built yet."><p>The first <code>Sandbox.create()</code> builds one.</p></${Nothing}>`}
    <div class="images">${images.map((image) => html`<${Image} key=${image.id} image=${image} />`)}</div>
    <${Question} asked=${asked} close=${() => ask(null)} />
  `;
}

function question(found, age, images) {
  if (!found.images.length) return { title: "Nothing would go", text: html`<p>Every image was used since, has a name, or a sandbox stands on it.</p>`, act: async () => {} };
  const going = images.filter((image) => found.images.includes(image.id));
  return {
    title: `Remove ${count(going.length, "image")}?`,
    text: html`<p>${found.bytes != null && `${size(found.bytes)} become free. `}Each can be built again.</p><ul class="short">${going.map((image) => html`<li>${image.step} <small>${size(image.own)}</small></li>`)}</ul>`,
    verb: "Remove",
    act: () => call(`/images/prune?unused_for=${age}`, { method: "POST" }),
  };
}

function Image({ image }) {
  const most = Math.max(...image.stack.map((layer) => layer.size), 1);
  return html`<article class="card image" aria-label=${`Image ${image.step}`}>
    <header>
      <h2>${image.names.length ? image.names.join(", ") : image.step}</h2>
      <p class="facts">
        <span class="mono">${image.id.slice(0, 12)}</span><span><b>${size(image.size)}</b>${image.own != null && html` · ${size(image.own)} its own`}</span>
        <span>used <${Age} since=${image.used} suffix=" ago" /></span>
        ${image.expires * 1000 > Date.now() && image.expires < 2e11 && html`<span class="chip">snapshot, kept for <${Age} until=${image.expires} /></span>`}
        ${image.names.length > 0 && html`<span class="chip">published</span>`}
        ${image.users.length > 0 && html`<span class="chip good" title=${image.users.slice(0, 40).join(", ")}>${count(image.users.length, "sandbox")}</span>`}
      </p>
    </header>
    ${image.stack.length > 0
      ? html`<ol class="stack" aria-label="Layers, topmost first">${image.stack.map(
          (layer) => html`<li class=${layer.images > 1 ? "shared" : ""} key=${layer.key}>
            <span class="step mono" title=${layer.step}>${layer.step}</span>
            <${Meter} value=${layer.size} most=${most} label=${size(layer.size)}>${size(layer.size)}</${Meter}>
            <small>${layer.images > 1 ? `shared by ${layer.images}` : "its own"}</small>
          </li>`,
        )}</ol>`
      : html`<p class="facts">${count(image.layers, "layer")}, which the ${" "}engine's daemon keeps.</p>`}
  </article>`;
}
