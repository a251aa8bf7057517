// What a command writes, live and as text, with search. Text is appended to a few text nodes and
// never drawn anew, so that much of it is no work.

import { html, path, useEffect, useRef, useState } from "./parts.mjs";

const MAIN = "0".repeat(32);
const MOST = 4 * 2 ** 20; // characters that are shown, the newest
const NODE = 64 * 1024;
const FOUND = 5000;
// Colours and the like, and what sets titles: this is no terminal.
const ESCAPES = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])/g;

export function Output({ id, command, paused }) {
  const box = useRef();
  const [state, say] = useState("");
  useEffect(() => listen(id, command, box, say), [id, command]);
  return html`<div class="output">
    <${Search} box=${box} />
    <pre ref=${box} tabindex="0" aria-label=${command === MAIN ? "Output of the main command" : "Output of the command"}></pre>
    <p class="counts" role="status">${state || (paused ? "It is paused." : "Live: what it writes appears here.")}</p>
  </div>`;
}

function listen(id, command, box, say) {
  let total = 0;
  const source = new EventSource(path(`/sandbox/${encodeURIComponent(id)}/output/${command}`));
  const add = (text, kind) => {
    const at = box.current;
    if (!at) return;
    const follows = at.scrollHeight - at.scrollTop - at.clientHeight < 40;
    const last = at.lastChild;
    if (last?.className === kind && last.firstChild.length < NODE) last.firstChild.appendData(text);
    else {
      const piece = document.createElement("span");
      piece.className = kind;
      piece.append(text);
      at.append(piece);
    }
    for (total += text.length; total > MOST && at.childNodes.length > 1; at.firstChild.remove()) total -= at.firstChild.textContent.length;
    if (follows) at.scrollTop = at.scrollHeight;
  };
  source.onmessage = ({ data }) => {
    const said = JSON.parse(data);
    if (said.missing) add(`… ${said.missing.toLocaleString("en")} bytes are not kept …\n`, "note");
    if (said.text) add(said.text.replace(ESCAPES, ""), said.stream === 2 ? "stderr" : "stdout");
    if (said.ended) say(`It ended with exit code ${said.code}.`);
    if (said.none) say(said.none);
    if (said.ended || said.none) source.close();
  };
  source.onerror = () => {
    say("The page's server does not answer.");
    source.close();
  };
  return () => source.close();
}

/** Marks what is found by highlights, which change no node. */
function Search({ box }) {
  const [text, search] = useState("");
  const [at, go] = useState(0);
  const [found, know] = useState([]);
  const look = (text) => {
    search(text);
    go(0);
    know(text ? ranges(box.current, text) : []);
  };
  useEffect(() => {
    if (!window.CSS?.highlights) return;
    CSS.highlights.set("found", new Highlight(...found));
    CSS.highlights.set("current", new Highlight(...found.slice(at, at + 1)));
    const pre = box.current, place = found[at]?.getBoundingClientRect(), frame = pre.getBoundingClientRect();
    if (place && (place.top < frame.top || place.bottom > frame.bottom)) pre.scrollTop += place.top - frame.top - frame.height / 3;
    return () => (CSS.highlights.delete("found"), CSS.highlights.delete("current"));
  }, [found, at]);
  const step = (event, by) => {
    event.preventDefault();
    const now = ranges(box.current, text); // more may have come
    know(now);
    go(now.length ? (at + by + now.length) % now.length : 0);
  };
  return html`<form class="tools" role="search" onSubmit=${(e) => step(e, 1)}>
    <input type="search" placeholder="Find in the output" aria-label="Find in the output" value=${text} onInput=${(e) => look(e.target.value)} />
    <button type="button" aria-label="The one before" disabled=${!found.length} onClick=${(e) => step(e, -1)}>↑</button>
    <button type="submit" aria-label="The next one" disabled=${!text}>↓</button>
    <span class="counts" role="status">${text && (found.length ? `${at + 1} of ${found.length}${found.length === FOUND ? " or more" : ""}` : "not found")}</span>
  </form>`;
}

function ranges(box, text) {
  const found = [], wanted = text.toLowerCase();
  for (const piece of text ? box.childNodes : []) {
    const all = piece.textContent.toLowerCase();
    for (let at = all.indexOf(wanted); at >= 0 && found.length < FOUND; at = all.indexOf(wanted, at + wanted.length)) {
      const range = new Range();
      range.setStart(piece.firstChild, at);
      range.setEnd(piece.firstChild, Math.min(at + wanted.length, piece.firstChild.length));
      found.push(range);
    }
  }
  return found;
}
