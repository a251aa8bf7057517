"""Code that nobody has read, with limits: no network, little memory, a few seconds.

    openmodal --local run examples/untrusted_code.py

A failure of the code is a value (its exit code, its output), whatever it tries; only `timeout` is an exception, which still has the output.
"""

import openmodal

app = openmodal.App("untrusted-code")
image = openmodal.Image.debian_slim()

SNIPPETS = {
    "honest": "print(sum(range(10)))",
    "crashes": "print('so far'); 1 / 0",
    "exits": "import sys; sys.exit(7)",
    "never ends": "print('begins', flush=True)\nwhile True: pass",
    "eats memory": "data = bytearray(1 << 30)",
    "calls home": "import socket; socket.create_connection(('192.0.2.1', 80), timeout=2)",
    "leaves a child": "import os, time\nif not os.fork(): os.setsid(); time.sleep(600)",
    "reads secrets": "print(open('/etc/shadow').read())",
}


def run(sandbox: openmodal.Sandbox, code: str) -> str:
    """Run a snippet and say in a line how it went."""
    try:
        proc = sandbox.exec("python3", "-c", code, timeout=3, user="nobody")
    except openmodal.ExecTimeoutError as error:
        return f"killed after 3 s, it had printed {error.process.stdout.read()!r}"
    if proc.out_of_memory:
        return f"killed: out of memory (exit code {proc.returncode})"
    last_line = (proc.stdout.read() + proc.stderr.read()).strip().splitlines()[-1:]
    return f"exit code {proc.returncode}, {last_line}"


@app.local_entrypoint()
def main() -> None:
    """Run each snippet in a sandbox of its own: they share nothing, not even the harm that they do."""
    for name, code in SNIPPETS.items():
        with openmodal.Sandbox.create(image=image, app=app, timeout=60, memory=256, block_network=True) as sandbox:
            print(f"{name + ':':16}{run(sandbox, code)}", flush=True)
