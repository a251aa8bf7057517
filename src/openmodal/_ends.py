"""How sandboxes end: the reasons, a sentence for each, and the record that is kept. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from openmodal._spec import EndRecord

SENTENCES = {
    "disk": "it filled the disk of the sandboxes, where it may have no more than its share; disk= gives it one of its own",
    "error": "its engine could not go on with it",
    "idle": "nothing happened in it for its idle_timeout",
    "lease": "nobody called it for the time of its lease; call sandbox.renew() in time",
    "lost": "it was killed from outside, or the machine was restarted",
    "oom": "it ran out of memory; give Sandbox.create more memory=",
    "owner": "the process that owned it has ended",
    "sockets": "its sockets held more memory than it may have without being charged for it; read what arrives, or keep fewer of them open",
    "terminated": "it was terminated",
    "timeout": "its timeout expired; give Sandbox.create a longer timeout=",
}
"""Why a sandbox does not run, by `EndRecord.reason`. An engine that knows more says so in the
record."""


def ended(reason: str, returncode: int, at: float, text: str = "", written: tuple[int, int] = (0, 0)) -> EndRecord:
    """A record with its sentence: the engine's own, or the reason's."""
    return EndRecord(reason, returncode, at, text or sentence(reason, returncode), written)


def sentence(reason: str, returncode: int) -> str:
    """Why a sandbox does not run."""
    if reason == "exited":
        return f"its main command exited with {returncode}"
    return SENTENCES.get(reason, f"it ended ({reason})")


def encode(end: EndRecord, status: str = "") -> str:
    """The record as it is kept; `status`: what the sandbox was."""
    stdout, stderr = end.written
    fields = {
        "reason": end.reason,
        "returncode": end.returncode,
        "written": f"{stdout} {stderr}",
        "ended": end.ended,
        "text": " ".join(end.text.splitlines()),
        **{name: value for name in ("snapshot", "unkept") if (value := getattr(end, name))},
        **({"status": status} if status else {}),
    }
    return "".join(f"{name}={value}\n" for name, value in fields.items())


def fields(record: str) -> dict[str, str]:
    """What a record says, by name."""
    return dict(line.split("=", 1) for line in record.split("\n") if "=" in line)


def decode(record: str) -> EndRecord:
    """A record as `encode` and supervisors write it (docs/protocol.md, section 3)."""
    found = fields(record)
    try:
        end = ended(
            found["reason"],
            int(found["returncode"]),
            float(found.get("ended", 0)),
            found.get("text", ""),
            _pair(found.get("written", "0 0")),
        )
        size = int(found.get("size", 0))
    except (KeyError, ValueError):
        return EndRecord("lost", 137, text="its supervisor left a record that cannot be read")
    text = f"{end.text} (it had {size >> 20} MiB)" if size else end.text
    if unkept := found.get("unkept", ""):
        text += f"; its files were not kept: {unkept}"
    return replace(end, text=text, snapshot=found.get("snapshot", ""), unkept=unkept)


def _pair(text: str) -> tuple[int, int]:
    first, second = map(int, text.split())
    return first, second
