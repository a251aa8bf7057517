// A terminal in the sandbox. Its bytes come from the sandbox, so it follows no links, sets no title
// and no clipboard, and shows no images: xterm.js does none of that without add-ons, and what it
// does by itself is turned off here.

import { html, path, useEffect, useRef, useState } from "./parts.mjs";

const ACK = 128 * 1024;

export function Terminal({ id }) {
  const box = useRef();
  const [state, say] = useState("Connecting …");
  useEffect(() => {
    let ended = false;
    let close = () => {};
    begin(id, box.current, say).then((end) => (ended ? end() : (close = end))).catch((error) => say(error.message));
    return () => {
      ended = true;
      close();
    };
  }, [id]);
  return html`<section class="terminal">
    <link rel="stylesheet" href="/vendor/xterm.css" />
    <div class="screen" ref=${box}></div>
    <p class="counts" role="status">${state}</p>
  </section>`;
}

async function begin(id, box, say) {
  const [{ Terminal: Screen }, { FitAddon }] = await Promise.all([import("@xterm/xterm"), import("@xterm/addon-fit")]);
  const screen = new Screen({ cursorBlink: true, fontSize: 13, fontFamily: "ui-monospace, Menlo, Consolas, monospace",
    linkHandler: { activate: () => {} }, scrollback: 10000, theme: { background: "#16161a" } });
  for (const code of [0, 1, 2, 8, 52]) screen.parser.registerOscHandler(code, () => true);
  const fit = new FitAddon();
  screen.loadAddon(fit);
  screen.open(box);
  fit.fit();
  const address = new URL(path(`/sandbox/${encodeURIComponent(id)}/terminal`), location.href);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  const encoder = new TextEncoder();
  const tell = (said) => socket.readyState === WebSocket.OPEN && socket.send(said instanceof Uint8Array ? said : JSON.stringify(said));
  const resize = () => tell({ rows: screen.rows, columns: screen.cols });
  let shown = 0;
  socket.onopen = () => {
    say("");
    resize();
    screen.focus();
  };
  socket.onmessage = ({ data }) => screen.write(new Uint8Array(data), () => {
    shown += data.byteLength;
    if (shown < ACK) return;
    tell({ ack: shown });
    shown = 0;
  });
  socket.onclose = ({ reason }) => say(reason || "The shell has ended.");
  // The server takes a message as a whole: a long paste goes in pieces.
  screen.onData((text) => {
    const bytes = encoder.encode(text);
    for (let at = 0; at < bytes.length; at += ACK / 2) tell(bytes.subarray(at, at + ACK / 2));
  });
  screen.onResize(resize);
  const watch = new ResizeObserver(() => fit.fit());
  watch.observe(box);
  return () => {
    watch.disconnect();
    socket.onclose = null;
    socket.close();
    screen.dispose();
  };
}
