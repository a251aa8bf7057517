// What the views share. Everything that is shown goes through Preact as text, never as HTML.

import { Component, h } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import htm from "htm";
import { call, path } from "./session.mjs";

export { Component, call, path, useEffect, useRef, useState };
export const html = htm.bind(h);

// ------------------------------------------------------------------------------------------ words

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** About how many bytes: 512 B, 1.4 MiB. */
export function size(bytes) {
  if (bytes == null) return "–";
  let unit = 0;
  while (bytes >= 1024 && unit < UNITS.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${bytes >= 100 || unit === 0 ? bytes.toFixed(0) : bytes.toFixed(1)} ${UNITS[unit]}`;
}

/** About how long: 45 s, 12 m, 3 h, 2 d. */
export function duration(seconds) {
  seconds = Math.max(0, seconds);
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["m", 60]]) {
    if (seconds >= 2 * length) return `${Math.floor(seconds / length)} ${unit}`;
  }
  return `${Math.floor(seconds)} s`;
}

/** 1 layer, 2 layers. */
export function count(number, thing) {
  const plural = /x$/.test(thing) ? `${thing}es` : `${thing}s`;
  return `${number.toLocaleString("en")} ${number === 1 ? thing : plural}`;
}

/** A date and time of this browser's clock. */
export function date(seconds) {
  return new Date(seconds * 1000).toLocaleString();
}

// ------------------------------------------------------------------------------------------- time

const ticking = new Set();
setInterval(() => ticking.forEach((tick) => tick()), 1000);

function useTicking(text) {
  const [, show] = useState("");
  useEffect(() => {
    const tick = () => show(text());
    ticking.add(tick);
    return () => ticking.delete(tick);
  });
  return text();
}

/** How long ago that was, or is to be; it goes on by itself. */
export function Age({ since, until, suffix = "" }) {
  const text = () => duration(since != null ? Date.now() / 1000 - since : until - Date.now() / 1000) + suffix;
  return html`<time title=${date(since ?? until)}>${useTicking(text)}</time>`;
}

// ------------------------------------------------------------------------------------------- feeds

const PATIENCE = 1000;

/** The rows of a feed, by id, as long as the component is shown: {rows, error, live}. `rows` is null
 * until the first ones are there. A page that nobody looks at watches nothing: a browser has six
 * connections to a server, for all pages together. */
export function useFeed(name) {
  const [state, show] = useState({ rows: null, error: "", live: false });
  useEffect(() => {
    let rows = new Map();
    let source, timer, ended;
    let seen = "";
    const told = (event) => {
      const said = JSON.parse(event.data);
      seen = event.lastEventId;
      rows = said.all ? new Map() : new Map(rows);
      for (const row of said.all || said.changed) rows.set(row.id, row);
      for (const id of said.gone || []) rows.delete(id);
      show({ rows, error: said.error, live: true });
    };
    const open = () => {
      source = new EventSource(path(`/feeds/${name}?after=${seen}`));
      source.onmessage = told;
      source.onopen = () => show((before) => ({ ...before, live: true }));
      source.onerror = async () => {
        show((before) => ({ ...before, live: false }));
        if (source?.readyState !== EventSource.CLOSED || ended) return;
        // The browser has given up. Perhaps we are no visitor any more: then this call tells.
        await call("/about").catch(() => {});
        if (!ended && !document.hidden) timer = setTimeout(open, PATIENCE);
      };
    };
    const close = () => {
      clearTimeout(timer);
      source?.close();
      source = null;
    };
    const look = () => (document.hidden ? close() : source || open());
    document.addEventListener("visibilitychange", look);
    look();
    return () => {
      ended = true;
      document.removeEventListener("visibilitychange", look);
      close();
    };
  }, [name]);
  return state;
}

// ------------------------------------------------------------------------------------------ pieces

/** What a view says if there is nothing, or not yet. */
export function Nothing({ title, children }) {
  return html`<div class="nothing"><p class="title">${title}</p>${children}</div>`;
}

/** That the server, or the engine, does not answer. */
export function Trouble({ feed }) {
  if (feed.rows && !feed.live) return html`<p class="trouble" role="status">The page's server does not answer; trying again …</p>`;
  return feed.error ? html`<p class="trouble" role="alert">${feed.error}</p>` : null;
}

/** A part of a whole, as a bar with words. `label` names it for those who do not see it. Nearly all
 * of it is a warning, but not of a `store`: that is to be full. */
export function Meter({ value, most, label, store, children }) {
  if (value == null) return html`<span class="unknown">–</span>`;
  const share = most ? Math.min(1, value / most) : 0;
  const level = store ? (share < 1 ? "low" : "full") : share > 0.9 ? "high" : share > 0.7 ? "middle" : "low";
  return html`<span class="meter" role="img" aria-label=${label}>
    <span class="words">${children}</span>
    <span class="bar"><span class=${level} style=${{ width: `${(share * 100).toFixed(1)}%` }}></span></span>
  </span>`;
}

/** Asks before something is lost: {title, text, verb, act} or null. */
export function Question({ asked, close }) {
  const dialog = useRef();
  const [error, fail] = useState("");
  const [busy, work] = useState(false);
  useEffect(() => {
    fail("");
    if (asked) dialog.current.showModal();
    else if (dialog.current.open) dialog.current.close();
  }, [asked]);
  const act = async () => {
    work(true);
    try {
      await asked.act();
      close();
    } catch (error) {
      fail(error.message);
    }
    work(false);
  };
  return html`<dialog ref=${dialog} onClose=${close} aria-labelledby="question">
    <h2 id="question">${asked?.title}</h2>
    <div class="said">${asked?.text}</div>
    ${error && html`<p class="trouble" role="alert">${error}</p>`}
    <div class="buttons">
      <button type="button" onClick=${close}>${asked?.verb ? "Cancel" : "Close"}</button>
      ${asked?.verb && html`<button type="button" class="danger" disabled=${busy} onClick=${act}>${asked.verb}</button>`}
    </div>
  </dialog>`;
}

/** uPlot, loaded when a view first draws. */
let charts;
export function loadCharts() {
  charts ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.nonce = document.querySelector("script[nonce]").nonce;
    script.src = "/vendor/uplot.js";
    script.onload = () => done(window.uPlot);
    script.onerror = () => failed(new Error("the charts cannot be loaded"));
    document.head.append(script);
  });
  return charts;
}
