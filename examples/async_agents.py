"""Agents in asyncio: every method has a second face, `.aio`, that is awaited.

    openmodal --local run examples/async_agents.py --agents 20

All of them live in one thread. A conversation with a running program (here Python's own prompt) needs no more than that.
"""

import asyncio
import time

import openmodal

app = openmodal.App("async-agents")
image = openmodal.Image.debian_slim()

# Reads an expression per line and answers with its value.
PROGRAM = "import sys\nfor line in sys.stdin: print(eval(line), flush=True)"


async def run_agent(number: int) -> int:
    """Talk with a program in a sandbox: send a question, await the answer, ask the next one."""
    async with await openmodal.Sandbox.create.aio(image=image, app=app, timeout=120, block_network=True) as sandbox:
        proc = await sandbox.spawn.aio("python3", "-c", PROGRAM)
        value = number
        for _ in range(5):
            proc.stdin.write(f"{value} + 1\n")
            await proc.stdin.drain.aio()
            value = int(await proc.stdout.readline.aio())
        await proc.stdin.close.aio()
        await proc.wait.aio()
        return value


@app.local_entrypoint()
async def main(agents: int = 10) -> None:
    """Run so many agents at the same time."""
    start = time.monotonic()
    values = await asyncio.gather(*(run_agent(number) for number in range(agents)))
    assert values == [number + 5 for number in range(agents)], values
    print(f"{agents} agents counted to {values} in {time.monotonic() - start:.1f}s")
