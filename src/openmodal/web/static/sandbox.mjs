// One sandbox: `about` is what the server tells of itself ({engine, readOnly, lacks, …}).

import { Nothing, html } from "./parts.mjs";

export function Sandbox({ id }) {
  return html`<h1>${id}</h1><${Nothing} title="Nothing is shown of one sandbox yet." />`;
}
