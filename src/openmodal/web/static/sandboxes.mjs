// The list: what runs, then what ended, with the reason first.

import { Age, Component, Meter, Nothing, Question, Trouble, call, count, duration, html, size, useEffect, useFeed, useRef, useState } from "./parts.mjs";

const MEBI = 2 ** 20;
const STATES = ["running", "paused", "ended"];
const BLOCK = 20; // rows that are drawn, or not, together
const ROW = 57; // px: the height of a row, until one was drawn

// ---------------------------------------------------------------------------------------- filter

/** Whether a row is meant by a text: words that are all in it, or app:x tag:k=v reason:r state:s image:i. */
function filtered(text) {
  const tests = text.toLowerCase().split(/\s+/).filter(Boolean).map(test);
  return (row) => tests.every((fits) => fits(row));
}

function test(word) {
  const [, key, value] = /^(app|tag|reason|state|image|name|id|run|runtime):(.*)$/.exec(word) || [];
  const has = (text) => String(text ?? "").toLowerCase().includes(value ?? word);
  const tags = (row) => Object.entries(row.tags).some(([k, v]) => has(`${k}=${v}`));
  if (key === "tag") return tags;
  if (key === "reason") return (row) => has(row.end?.reason) || (row.end && has(row.end.text));
  if (key) return (row) => has(row[key]);
  return (row) => has(row.id) || has(row.name) || has(row.app) || has(row.end?.text) || tags(row);
}

function sorted(rows) {
  const when = (row) => row.end?.at ?? row.created;
  return [...rows].sort((a, b) => !!a.end - !!b.end || when(b) - when(a));
}

/** [[title, rows]] by what the rows have in common. */
function grouped(rows, by) {
  if (!by) return [["", rows]];
  const groups = new Map();
  for (const row of rows) {
    const title = row[by] || `no ${by}`;
    if (!groups.has(title)) groups.set(title, []);
    groups.get(title).push(row);
  }
  return [...groups];
}

// ------------------------------------------------------------------------------------------ view

export function Sandboxes({ about }) {
  const feed = useFeed("sandboxes");
  const [text, filter] = useState("");
  const [by, group] = useState("");
  const [ended, showEnded] = useState(true);
  const [asked, ask] = useState(null);
  const box = useRef();
  useEffect(() => {
    const focus = (event) => {
      if (event.key !== "/" || /input|textarea|select/i.test(event.target.tagName)) return;
      event.preventDefault();
      box.current?.focus();
    };
    addEventListener("keydown", focus);
    return () => removeEventListener("keydown", focus);
  }, []);
  if (!feed.rows) return html`<h1>Sandboxes</h1><${Trouble} feed=${feed} />`;
  const all = sorted(feed.rows.values());
  const numbers = STATES.map((state) => [state, all.filter((row) => row.state === state).length]);
  const shown = all.filter((row) => ended || !row.end).filter(filtered(text));
  return html`
    <div class="heading">
      <h1>Sandboxes</h1>
      <p class="counts" role="status">
        ${numbers.map(([state, number]) => html`<span class=${state}><b>${number.toLocaleString("en")}</b> ${state}</span>`)}
      </p>
    </div>
    <div class="tools" role="search">
      <input ref=${box} type="search" placeholder="Filter: word, app:x tag:k=v reason:timeout" aria-label="Filter the sandboxes"
        aria-keyshortcuts="/" value=${text} onInput=${(e) => filter(e.target.value)} />
      <label class="inline">Group by
        <select value=${by} onChange=${(e) => group(e.target.value)}>
          <option value="">nothing</option><option value="app">app</option><option value="run">run</option>
        </select>
      </label>
      <label class="inline"><input type="checkbox" checked=${ended} onChange=${(e) => showEnded(e.target.checked)} />Ended ones</label>
    </div>
    <${Trouble} feed=${feed} />
    ${all.length === 0 && html`<${Nothing} title="No sandbox is running, and none ended in the last day.">
      <p>One that you create appears here at once: <code>openmodal create</code>, or <code>openmodal.Sandbox.create()</code> in Python.</p>
    </${Nothing}>`}
    ${all.length > 0 && shown.length === 0 && html`<${Nothing} title="No sandbox fits the filter.">
      <button type="button" onClick=${() => (filter(""), showEnded(true))}>Show all</button></${Nothing}>`}
    ${shown.length > 0 && grouped(shown, by).map(([title, rows]) => html`<${Group} key=${title} ...${{ title, rows, about, ask }} />`)}
    <${Question} asked=${asked} close=${() => ask(null)} />
  `;
}

function stop(rows) {
  return {
    title: rows.length === 1 ? `Stop ${rows[0].name || rows[0].id}?` : `Stop ${count(rows.length, "sandbox")}?`,
    text: html`<p>Their processes end at once, and their files are gone.</p>
      <ul class="short">${rows.slice(0, 8).map((row) => html`<li>${row.name || row.id}</li>`)}</ul>
      ${rows.length > 8 && html`<p>… and ${rows.length - 8} more.</p>`}`,
    verb: "Stop",
    act: () => Promise.all(rows.map((row) => call(`/sandboxes/${encodeURIComponent(row.id)}/stop`, { method: "POST" }))),
  };
}

function Group({ title, rows, about, ask }) {
  const running = rows.filter((row) => !row.end);
  return html`<section>
    ${title && html`<div class="group">
      <h2>${title}</h2><span>${count(rows.length, "sandbox")}</span>
      ${!about.readOnly && running.length > 0 && html`<button type="button" onClick=${() => ask(stop(running))}>Stop ${running.length} running</button>`}
    </div>`}
    <table class="sandboxes" aria-rowcount=${rows.length + 1}>
      <caption class="hidden">Sandboxes ${title}</caption>
      <thead><tr>
        <th scope="col" class="c-name">Sandbox</th><th scope="col" class="c-app">App</th><th scope="col" class="c-tags">Tags</th>
        <th scope="col" class="c-cpu">CPU</th><th scope="col" class="c-memory">Memory</th>
        <th scope="col" class="c-age">Age</th><th scope="col" class="c-end">Ends</th>
        <th scope="col" class="c-verbs"><span class="hidden">Actions</span></th>
      </tr></thead>
      ${blocks(rows).map((some, index) => html`<${Block} key=${index} ...${{ rows: some, about, ask }} />`)}
    </table>
  </section>`;
}

function blocks(rows) {
  return Array.from({ length: Math.ceil(rows.length / BLOCK) }, (_, index) => rows.slice(index * BLOCK, (index + 1) * BLOCK));
}

/** Rows while they are near to what is seen, else one empty row of their height: of a thousand, the
 * browser lays out and changes only some. A row that has the focus stays. */
function Block({ rows, about, ask }) {
  const [near, come] = useState(false);
  const body = useRef();
  const height = useRef(ROW);
  useEffect(() => {
    const observer = new IntersectionObserver((entries) => {
      const { isIntersecting, boundingClientRect } = entries.at(-1);
      const drawn = body.current.querySelectorAll("tr[class]").length;
      if (drawn) height.current = boundingClientRect.height / drawn;
      come(isIntersecting || body.current.contains(document.activeElement));
    }, { rootMargin: "500px" });
    observer.observe(body.current);
    return () => observer.disconnect();
  }, []);
  return html`<tbody ref=${body}>
    ${near
      ? rows.map((row) => html`<${Row} key=${row.id} row=${row} about=${about} ask=${ask} />`)
      : html`<tr key="" aria-hidden="true" style=${{ height: `${rows.length * height.current}px` }}><td colspan="8"></td></tr>`}
  </tbody>`;
}

// Without shouldComponentUpdate: with it, a list of 1,000 rows kept half a KiB for each at each update (Preact 11.2).
class Row extends Component {
  state = { busy: false, error: "" };

  async act(verb) {
    this.setState({ busy: true, error: "" });
    try {
      await call(`/sandboxes/${encodeURIComponent(this.props.row.id)}/${verb}`, { method: "POST" });
      this.setState({ busy: false });
    } catch (error) {
      this.setState({ busy: false, error: error.message });
    }
  }

  render({ row, about, ask }, { busy, error }) {
    return html`<tr class=${row.state}>
      <td class="c-name">
        <a href=${`#/sandboxes/${encodeURIComponent(row.id)}`}><${State} row=${row} /><span class="names"><b>${row.name || row.id}</b>${row.name && html`<small>${row.id}</small>`}</span></a>
      </td>
      <td class="c-app" data-label="App">${row.app}</td>
      <td class="c-tags" data-label="Tags"><${Tags} row=${row} /></td>
      ${row.end
        ? html`<td class="c-why" colspan="2">${row.end.text || row.end.reason}</td>`
        : html`<td class="c-cpu" data-label="CPU"><${Cpu} row=${row} /></td><td class="c-memory" data-label="Memory"><${Memory} row=${row} /></td>`}
      <td class="c-age" data-label=${row.end ? "Lived" : "Age"}><${Lived} row=${row} /></td>
      <td class="c-end" data-label=${row.end ? "Ended" : "Ends"}>
        ${row.end ? html`<${Age} since=${row.end.at} suffix=" ago" />` : html`in <${Age} until=${row.expires} />`}
      </td>
      <td class="c-verbs">
        ${!row.end && !about.readOnly && html`<${Verbs} ...${{ row, about, busy, ask }} act=${(verb) => this.act(verb)} />`}
        ${error && html`<p class="trouble" role="alert">${error}</p>`}
      </td>
    </tr>`;
  }
}

function State({ row }) {
  const bad = row.end && !["finished", "terminated"].includes(row.end.reason);
  return html`<span class=${`dot ${row.state} ${bad ? "bad" : ""}`}><span class="hidden">${row.state}: </span></span>`;
}

function Tags({ row }) {
  const special = [
    ...(row.degraded || []).map((what) => ["degraded", `without ${what}`]),
    ...(row.runtime !== "native" ? [["", row.runtime]] : []),
    ...(row.generation ? [["", `reset ${row.generation} ×`]] : []),
  ];
  return html`${special.map(([kind, text]) => html`<span class=${`chip ${kind}`}>${text}</span>`)}
    ${Object.entries(row.tags).map(([key, value]) => html`<span class="chip" title=${`${key}=${value}`}>${key}=${value}</span>`)}`;
}

function Cpu({ row }) {
  const most = row.limits?.cpu;
  const words = row.cores == null ? "–" : row.cores.toFixed(2);
  return html`<${Meter} value=${row.cores} most=${most} label=${`${words} of ${most ?? "all"} cores`}>${words}${most ? html`<i> / ${most}</i>` : ""}</${Meter}>`;
}

function Memory({ row }) {
  const most = row.limits?.memory;
  const words = row.memory == null ? "–" : size(row.memory * MEBI);
  const limit = most ? size(most * MEBI) : "";
  return html`<${Meter} value=${row.memory} most=${most} label=${`${words} of ${limit || "all"}`}>${words}${limit && html`<i> / ${limit}</i>`}</${Meter}>`;
}

function Lived({ row }) {
  if (!row.end) return html`<${Age} since=${row.created} />`;
  return row.created ? duration(row.end.at - row.created) : "–";
}



function Verbs({ row, about, busy, ask, act }) {
  const name = row.name || row.id;
  const pause = row.state === "paused" ? ["resume", "Resume"] : ["pause", "Pause"];
  return html`
    ${!about.lacks.includes("pause") && html`<button type="button" disabled=${busy} aria-label=${`${pause[1]} ${name}`} onClick=${() => act(pause[0])}>${pause[1]}</button>`}
    <button type="button" class="danger" disabled=${busy} aria-label=${`Stop ${name}`} onClick=${() => ask(stop([row]))}>Stop</button>`;
}
