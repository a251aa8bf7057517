// The files of a sandbox: folders, what is in a file, and how they differ from the image. A place is
// a percent-encoded path, as the server tells it: names need not be UTF-8.

import { Nothing, call, count, date, html, path, size, useEffect, useRef, useState } from "./parts.mjs";
import { Table } from "./sandbox-network.mjs";

export function Files({ id, about }) {
  const [folder, go] = useState("/");
  const [found, know] = useState(null);
  const [file, show] = useState(null);
  const [changes, compare] = useState(null);
  const [error, fail] = useState("");
  const [busy, work] = useState("");
  const of = (kind, at, more = "") => `/sandbox/${encodeURIComponent(id)}/${kind}?path=${at}${more}`;
  const tried = (work) => work.then(() => fail(""), (error) => fail(error.message));
  const look = () => tried(call(of("files", folder)).then(know));
  useEffect(() => void look(), [folder]);
  const enter = (at) => (show(null), compare(null), fail(""), go(at));
  const open = async (row) => {
    if (row.kind === "directory") return enter(row.at);
    // A link may lead to either.
    if (row.kind === "symlink" && (await call(of("files", row.at)).then(() => true, () => false))) return enter(row.at);
    return tried(call(of("file", row.at)).then(show));
  };
  const upload = async (input) => {
    for (const each of [...input.files]) {
      work(`Uploading ${each.name} …`);
      await tried(call(of("file", `${folder.replace(/\/$/, "")}/${encodeURIComponent(each.name)}`), { method: "POST", body: each }));
    }
    work("");
    input.value = "";
    await look();
  };
  const parts = folder.split("/").filter(Boolean);
  return html`
    <div class="tools files-tools">
      <nav class="path" aria-label="Folder"><button type="button" aria-label="The root folder" onClick=${() => enter("/")}>/</button>
        ${parts.map((name, i) => html`<button type="button" onClick=${() => enter(`/${parts.slice(0, i + 1).join("/")}`)}>${readable(name)}</button>`)}
      </nav>
      ${!about.readOnly && html`<label class="upload">Upload<input type="file" multiple onChange=${(e) => upload(e.target)} /></label>`}
      ${!about.lacks.includes("diff") && html`<button type="button" aria-pressed=${changes != null}
        onClick=${() => (changes ? compare(null) : tried(call(`/sandbox/${encodeURIComponent(id)}/diff`).then(compare)))}>
        ${changes ? "All files" : "What changed"}</button>`}
    </div>
    ${busy && html`<p class="counts" role="status">${busy}</p>`}
    ${error && html`<p class="trouble" role="alert">${error}</p>`}
    ${changes ? html`<${Changes} found=${changes} />`
    : file ? html`<${View} file=${file} address=${path(of("file", file.at, "&download"))} close=${() => show(null)} />`
    : found && html`<${Folder} ...${{ found, open, address: (row) => path(of("file", row.at, "&download")) }} />`}
  `;
}

function readable(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function Changes({ found }) {
  if (!found.changes.length) return html`<${Nothing} title="Nothing differs from its image." />`;
  return html`<${Table} title="Different from its image" columns=${["Path", "How", "Size"]}
    rows=${found.changes.map((each) => [html`<code>${each.path}</code>`,
      html`<span class=${`chip ${{ added: "good", deleted: "bad" }[each.kind] || "middle"}`}>${each.kind}</span>`,
      each.type === "file" && each.kind !== "deleted" ? size(each.size) : ""])} />
    ${found.more > 0 && html`<p class="counts">… and ${count(found.more, "other")}</p>`}`;
}

function Folder({ found, open, address }) {
  if (!found.files.length) return html`<${Nothing} title="This folder is empty." />`;
  return html`<table class="files">
    <thead><tr><th scope="col">Name</th><th scope="col" class="number c-size">Size</th><th scope="col" class="c-mode">Mode</th>
      <th scope="col" class="c-owner">Owner</th><th scope="col" class="c-changed">Changed</th><th scope="col" class="c-get"><span class="hidden">Download</span></th></tr></thead>
    <tbody>${found.files.map((row) => html`<tr key=${row.at}>
      <td class="c-name"><button type="button" class=${`name ${row.kind}`} disabled=${row.kind === "other"} onClick=${() => open(row)}>${row.name}${row.kind === "directory" ? "/" : ""}</button>
        ${row.target && html`<small> → ${row.target}</small>`}</td>
      <td class="number c-size">${row.kind === "file" ? size(row.size) : ""}</td><td class="c-mode"><code>${row.mode}</code></td><td class="c-owner">${row.owner}</td>
      <td class="c-changed">${date(row.mtime)}</td>
      <td class="c-get">${row.kind === "file" && html`<a href=${address(row)} download aria-label=${`Download ${row.name}`}>Download</a>`}</td></tr>`)}</tbody>
  </table>${found.more > 0 && html`<p class="counts">… and ${count(found.more, "other")}</p>`}`;
}

function View({ file, address, close }) {
  const heading = useRef();
  useEffect(() => heading.current.focus(), []);
  return html`<section class="output card">
    <div class="heading"><h2 ref=${heading} tabindex="-1">${file.path}</h2><small>${size(file.size)}, mode ${file.mode}, ${file.owner}</small>
      <span class="end buttons"><a class="button" href=${address} download>Download</a><button type="button" onClick=${close}>Close</button></span></div>
    ${file.binary ? html`<${Nothing} title="It is no text." />` : html`<pre tabindex="0" aria-label=${`What is in ${file.path}`}>${file.text}</pre>`}
    ${!file.whole && html`<p class="counts">Only the beginning is shown.</p>`}
  </section>`;
}
