// The frame: sign-in, navigation, and which view is shown. An address is #/VIEW or #/VIEW/ID.

import { render } from "preact";
import { call, html, useEffect, useState } from "./parts.mjs";
import { enter, onSignedOut, tokenOfAddress } from "./session.mjs";
import { Images } from "./images.mjs";
import { Machine } from "./machine.mjs";
import { Pools } from "./pools.mjs";
import { Sandbox } from "./sandbox.mjs";
import { Sandboxes } from "./sandboxes.mjs";

const VIEWS = {
  sandboxes: ["Sandboxes", Sandboxes],
  images: ["Images", Images],
  pools: ["Pools", Pools],
  machine: ["Machine", Machine],
};

function useAddress() {
  const read = () => location.hash.replace(/^#\//, "").split("/").map(decodeURIComponent);
  const [address, go] = useState(read);
  useEffect(() => {
    const changed = () => go(read());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return address;
}

function App() {
  const [about, know] = useState(null);
  const [stranger, forget] = useState(false);
  const begin = async (token) => {
    if (token) await enter(token);
    know(await call("/about"));
    forget(false);
  };
  useEffect(() => {
    onSignedOut(() => forget(true));
    begin(tokenOfAddress()).catch(() => forget(true));
  }, []);
  if (stranger) return html`<${SignIn} enter=${begin} />`;
  return about ? html`<${Frame} about=${about} />` : null;
}

function SignIn({ enter }) {
  const [error, fail] = useState("");
  const submit = (event) => {
    event.preventDefault();
    enter(new FormData(event.target).get("token")).catch((error) => fail(error.message));
  };
  return html`<main class="sign-in">
    <form onSubmit=${submit}>
      <h1>OpenModal</h1>
      <p>This page needs a token. <code>openmodal dashboard</code> prints a link that has one.</p>
      <label>Token<input name="token" type="password" autocomplete="off" required autofocus /></label>
      ${error && html`<p class="trouble" role="alert">${error}</p>`}
      <button class="main">Open the page</button>
    </form>
  </main>`;
}

function Frame({ about }) {
  const [view, id] = useAddress();
  const [title, View] = VIEWS[view] || VIEWS.sandboxes;
  useEffect(() => {
    document.title = `${id || title} · OpenModal`;
  }, [title, id]);
  return html`
    <a class="skip" href="#main" onClick=${(e) => (e.preventDefault(), document.querySelector("main").focus())}>Skip to content</a>
    <header class="top">
      <a class="mark" href="#/sandboxes"><${Mark} />OpenModal</a>
      <nav aria-label="Views">
        ${Object.entries(VIEWS).map(
          ([name, [text]]) =>
            html`<a href=${`#/${name}`} aria-current=${name === (view in VIEWS ? view : "sandboxes") ? "page" : null}>${text}</a>`,
        )}
      </nav>
      <span class="about">
        ${about.readOnly && html`<span class="chip">read-only</span>`}
        <span class="chip" title=${`OpenModal ${about.version}`}>${about.engine}</span>
      </span>
    </header>
    <main tabindex="-1" key=${`${title}/${id || ""}`}>
      ${view === "sandboxes" && id ? html`<${Sandbox} id=${id} about=${about} />` : html`<${View} about=${about} id=${id} />`}
    </main>
  `;
}

function Mark() {
  return html`<svg viewBox="0 0 32 32" width="28" height="28" aria-hidden="true">
    <rect x="2" y="2" width="28" height="28" rx="8" fill="var(--accent)" />
    <path d="M9 13l7-4 7 4v7l-7 4-7-4z M9 13l7 4 7-4 M16 17v7" fill="none" stroke="white" stroke-width="2" stroke-linejoin="round" />
  </svg>`;
}

render(html`<${App} />`, document.body);
