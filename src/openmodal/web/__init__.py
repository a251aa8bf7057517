"""The web page: `openmodal dashboard`, and the same under `openmodal serve`.

A Starlette application over the public API (`Sandbox`, `Pool`, `housekeeping`), so it shows every
engine, and holds nothing that matters: it may be killed at any time. Budget: with the page open, a
sandbox's exec takes at most a tenth longer.

    server      the application: page, files of the page, and the calls below /api/PLACE/
    sessions    tokens and cookies: who may see the page
    guard       Host, Origin and headers of every answer
    feed        rows that change, as Server-Sent Events that go on where they broke off
    sandboxes   the list: what runs, what ended, stop, pause and resume
    sandbox     one sandbox: timeline, use, egress, what holds it
    output      ... what a command writes; files: its files; terminal: a shell in it
    images      images and their layers, prune with a preview
    machine     this machine, its pools, doctor and gc

A module has a class with `routes`, which `server.py` mounts below /api/PLACE/, and `feeds`, by
name. Its methods take a Starlette request and return a response; `openmodal.errors.Error` becomes
an answer with its sentence. Whatever is no GET is refused on a page that is read-only, and so is
every WebSocket: a module need not look.

    static/index.html      the page's frame; the nonce of its scripts is put in by server.py
    static/app.mjs         which view is shown: #/sandboxes, #/sandboxes/ID, #/images …
    static/parts.mjs       what views share: `html`, `call`, `useFeed`, `Age`, `size`, `duration` …
    static/sandboxes.mjs   the view of the same name, as are images, machine and pools
    static/sandbox.mjs     one sandbox: exports `Sandbox({id})`; its views are sandbox-*.mjs
    static/style.css       the style of all views; sandbox.css, of one sandbox
    vendor/                libraries, as vendor.toml names them; `make vendor` fetches them

Whatever comes from a sandbox is hostile: it becomes text, never HTML (Preact sees to that; nothing
here uses innerHTML), and a download is an attachment.
"""
