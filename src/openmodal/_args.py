"""The user's arguments, checked: each function returns the value in its canonical form or raises
InvalidError naming argument and remedy.

Pure, and called before anything is created, so that a mistake costs nothing.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeGuard

from openmodal import _units
from openmodal._spec import Network
from openmodal.errors import InvalidError

Pairs = tuple[tuple[str, str], ...]

COMMAND_BYTES = 2 << 20
"""argv and environment of one command together, with 8 bytes for each string: what Linux takes where a stack has its usual 8 MiB."""
ARGUMENT_BYTES = 128 << 10
"""One argument or variable, with the NUL at its end (the kernel's MAX_ARG_STRLEN)."""

YEAR = 366 * 24 * 3600

CONTROLS = ("limits", "network", "seccomp")
"""What `allow_degraded=` may name: limits of memory, processes and CPU; a network; the filter of system calls."""

MOST_PORTS = 16  # of a sandbox: four of them take a process of its supervisor
OFFSET_MOST = (1 << 63) - 1
"""The last byte of a file or stream."""

_ALIAS = re.compile(r"[a-zA-Z0-9_]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9_])?")
_OWN_NAMES = ("localhost", "ip6-localhost", "ip6-loopback")
MOST_OF_ALIASES = 150
"""Characters: with an address and a host name they are a line of /etc/hosts (native/member.c)."""

_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}"
_TAG = r"[A-Za-z0-9._-]{1,63}"
_HOST = r"(?=.{1,253}\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_GPU = r"([A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)(?::([1-9][0-9]{0,2}))?"
_SANDBOX_ID = r"(?=.{1,40}\Z)[a-z0-9]+(-[a-z0-9]+)*"
_COMMAND_ID = r"[0-9a-f]{32}"
_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def name(argument: str, value: object) -> str:
    """A name of an app, sandbox, secret…: it becomes part of file names, so the rule is strict."""
    if not isinstance(value, str) or not re.fullmatch(_NAME, value):
        raise InvalidError(
            f"{argument} cannot be {value!r}; use 1 to 63 letters, digits, '_', '.' and '-', with a letter or digit first"
        )
    return value


def command_id(value: object) -> bytes:
    """The id of a command, as `Process.id` gives it."""
    if not re.fullmatch(_COMMAND_ID, string("id", value)):
        raise InvalidError(f"id must be a Process.id, 32 hexadecimal digits, not {value!r}")
    return bytes.fromhex(str(value))


def string(argument: str, value: object) -> str:
    """A string that the kernel can take: no NUL."""
    if not isinstance(value, str):
        instead = (
            "write its items one by one, as in *argv" if isinstance(value, list | tuple) else "convert it with str()"
        )
        raise InvalidError(f"{argument} must be a string, not {type(value).__name__}; {instead}")
    if "\0" in value:
        raise InvalidError(f"{argument} contains a NUL character, which no argument or path can; remove it")
    if not value.isascii() and _SURROGATE.search(value):
        raise InvalidError(f"{argument} contains half of a surrogate pair, which cannot be encoded; remove it")
    return value


def path(argument: str, value: object) -> str:
    """A path inside a sandbox; a relative one counts from its working folder."""
    text = string(argument, value)
    if not text:
        raise InvalidError(f"{argument} is empty; write a path in the sandbox, '.' for its working folder")
    return text


def absolute(argument: str, value: object) -> str:
    """A path in an image, from its root on."""
    text = string(argument, value)
    if not text.startswith("/"):
        raise InvalidError(f"{argument} must be an absolute path in the image, not {text!r}; write it from '/' on")
    return text


def count(argument: str, value: object, most: int) -> int:
    """A number of bytes, from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InvalidError(f"{argument} must be a whole number of bytes from 0 to {most}, not {value!r}")
    return value


def optional_count(argument: str, value: object) -> int | None:
    """A number of bytes; None: as the argument says."""
    return None if value is None else count(argument, value, OFFSET_MOST)


def seconds(argument: str, value: object) -> float:
    """A duration, more than nothing."""
    number = _number(argument, value, "seconds", _units.seconds, 300)
    if number <= 0 or number > YEAR:
        raise InvalidError(f"{argument} must be more than 0 and at most a year of seconds, not {_shown(value)}")
    return number


def optional_seconds(argument: str, value: object) -> float | None:
    return None if value is None else seconds(argument, value)


def sandbox_id(value: object) -> str:
    """An id for a new sandbox, which every engine can give its boxes as a name; None is ""."""
    if value is None:
        return ""
    if not re.fullmatch(_SANDBOX_ID, string("id", value)):
        raise InvalidError(
            f"id must be at most 40 lower-case letters, digits and single hyphens between them, not {_shown(value)}"
        )
    return str(value)


def owner(value: object) -> int:
    """A process of this machine: "process" is this one, None none (0)."""
    if value is None:
        return 0
    pid = os.getpid() if value == "process" else value
    if not _is_whole(pid) or not 0 < pid < 1 << 31:
        raise InvalidError(f"owner must be 'process', for this one, or a process id, not {_shown(value)}")
    if not os.path.exists(f"/proc/{pid}"):
        raise InvalidError(f"owner is {pid}, and there is no such process; use one that runs")
    return pid


def cores(value: object) -> float | None:
    """A number of CPU cores."""
    if value is None:
        return None
    number = _number("cpu", value, "cores", _units.number, 2)
    if not 0.01 <= number <= 4096:
        raise InvalidError(f"cpu must be a number of cores from 0.01 to 4096, not {_shown(value)}")
    return number


def mebibytes(argument: str, value: object, least: int) -> int | None:
    """A size in MiB."""
    if value is None:
        return None
    if not _is_whole(value) or not least <= value < 1 << 24:
        instead = "" if _is_whole(value) else f"; {_write(argument, value, _units.mebibytes, 2048)}"
        raise InvalidError(
            f"{argument} must be a whole number of MiB, {least} or more and less than 16 TiB, not {_shown(value)}{instead}"
        )
    return value


def whole(argument: str, value: object, least: int, most: int) -> int:
    """A count."""
    if not _is_whole(value) or not least <= value <= most:
        raise InvalidError(f"{argument} must be a whole number from {least} to {most}, not {_shown(value)}")
    return value


def ports(**arguments: Iterable[object]) -> tuple[int, ...]:
    """Ports of several arguments, each once."""
    found: dict[int, None] = {}
    for argument, values in arguments.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            instead = _write(argument, values, lambda text: f"[{text}]" if text.isdecimal() else None, "[8000]")
            raise InvalidError(f"{argument} must be a list of ports, not {_shown(values)}; {instead}")
        found |= dict.fromkeys(whole(f"each port of {argument}", value, 1, 65535) for value in values)
    if len(found) > MOST_PORTS:
        raise InvalidError(
            f"ports has {len(found)} ports; a sandbox can have {MOST_PORTS}, so let one server serve more"
        )
    return tuple(found)


def local_ports(value: object) -> dict[int, int]:
    """The ports of this machine that a dict of ports asks for; 0: any."""
    if not isinstance(value, Mapping):
        return {}
    return {port: whole("each value of ports", local, 0, 65535) for port, local in value.items()}


def age(argument: str, value: object) -> float:
    """Seconds ago: what a negative one would mean is everything, and what deletes must not guess."""
    number = _number(argument, value, "seconds", _units.seconds, 86400)
    if not 0 <= number <= 100 * YEAR:
        raise InvalidError(f"{argument} must be from 0 seconds to a hundred years, not {_shown(value)}")
    return number


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def gpu(value: object) -> tuple[int, str]:
    """GPUs: how many, and of which type; "" is any."""
    if value is None:
        return 0, ""
    counted = isinstance(value, int) and not isinstance(value, bool)
    given = re.fullmatch(_GPU, f"any:{value}" if counted else value if isinstance(value, str) else "")
    if not given:
        raise InvalidError(
            f"gpu must be a number of GPUs, or a type like 'T4' or 'A100:2' ('any': whatever there is), not {value!r}"
        )
    kind, count = given.groups()
    return int(count or 1), "" if kind.lower() == "any" else kind


def runtime(value: object) -> str:
    """What runs a sandbox's processes."""
    if value not in (None, "default", "native", "gvisor"):
        raise InvalidError(f'runtime must be "native" or "gvisor", not {value!r}')
    return "gvisor" if value == "gvisor" else "native"


def on_idle(value: object, idle_timeout: float | None, lease: float | None) -> str:
    """What becomes of an idle sandbox."""
    if value not in ("end", "pause"):
        raise InvalidError(f'on_idle must be "end" or "pause", not {value!r}')
    if value == "pause" and idle_timeout is None:
        raise InvalidError('on_idle="pause" needs idle_timeout=, the seconds after which it is idle')
    if value == "pause" and lease is not None:
        raise InvalidError('a sandbox that is paused keeps no lease; leave lease= out, or on_idle="pause"')
    return str(value)


def _number(argument: str, value: object, unit: str, read: Callable[[str], float | None], example: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        instead = _write(argument, value, read, example)
        raise InvalidError(f"{argument} must be a number of {unit}, not {_shown(value)}; {instead}")
    return float(value)


def _write(argument: str, value: object, read: Callable[[str], object], example: object) -> str:
    """The remedy for a wrong value: the right one, where it means something, else an example."""
    meant = read(_shown(value).strip("'"))
    return f"write {argument}={meant:g}" if isinstance(meant, float) else f"write {argument}={meant or example}"


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def _shown(value: object) -> str:
    """A wrong value for an error's text; Python refuses to print the longest ints."""
    return (
        f"an int of {value.bit_length()} bits" if isinstance(value, int) and value.bit_length() > 128 else repr(value)
    )


def network(
    block: object, cidrs: object, domains: object, shared: object = None, aliases: str | Iterable[str] = ()
) -> Network:
    """What a sandbox may reach."""
    found = Network(
        block=bool(block),
        cidrs=_networks("outbound_cidr_allowlist", cidrs),
        domains=_domains("outbound_domain_allowlist", domains),
        shared=name("network", shared) if shared is not None else "",
        aliases=_aliases(aliases),
    )
    if found.aliases and not found.shared:
        raise InvalidError("network_alias= is a name in a network that sandboxes share; say which: network='NAME'")
    if found.shared and found.listed:
        raise InvalidError(
            "an allow list cannot be kept in a network that sandboxes share; leave network= or the list out, or cut the "
            "sandbox off from all but its neighbours with block_network=True"
        )
    if found.block and found.listed:
        raise InvalidError("block_network=True leaves nothing for an allow list to allow; leave one of them out")
    return found


def _aliases(value: str | Iterable[str]) -> tuple[str, ...]:
    """Names by which others find a sandbox."""
    found = (value,) if isinstance(value, str) else tuple(value)
    for alias in found:
        if not isinstance(alias, str) or not _ALIAS.fullmatch(alias) or alias in _OWN_NAMES:
            raise InvalidError(
                f"network_alias must be a host name like 'db' (letters, digits, '-', '_' and '.'), not {_shown(alias)}"
            )
    if len(" ".join(found)) > MOST_OF_ALIASES:
        raise InvalidError(f"the names in network_alias have more than {MOST_OF_ALIASES} characters; use fewer names")
    return found


def _networks(argument: str, value: object) -> tuple[str, ...] | None:
    """A list of IP networks."""
    import ipaddress

    def checked(text: str) -> str:
        try:
            return str(ipaddress.ip_network(text))
        except ValueError:
            pass
        try:
            meant = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise InvalidError(
                f"{argument} cannot contain {text!r}; write a network like '203.0.113.0/24' or an address like '203.0.113.7'"
            ) from None
        raise InvalidError(
            f"{argument} has {text!r}, an address within a network; write {str(meant)!r} for the network"
        )

    return _each(argument, value, checked)


def _domains(argument: str, value: object) -> tuple[str, ...] | None:
    """A list of host names in ASCII form; `*.` before one stands for all below it."""
    return _each(argument, value, lambda text: _domain(argument, text))


def _domain(argument: str, text: str) -> str:
    name = text.removeprefix("*.")
    try:
        found = name.removesuffix(".").encode("idna").decode("ascii").lower()
    except UnicodeError:
        found = ""
    if not re.fullmatch(_HOST, found) or found.replace(".", "").isdigit():
        raise InvalidError(
            f"{argument} cannot contain {text!r}; write a host name like 'example.com', or '*.example.com' for all names below "
            "it, without scheme, port, path or address"
        )
    return text[: len(text) - len(name)] + found


def _each(argument: str, value: object, checked: Callable[[str], str]) -> tuple[str, ...] | None:
    """The strings of a list, checked, sorted, each once; None stays None."""
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidError(f"{argument} must be a list of strings, not {value!r}; put it in brackets")
    return tuple(sorted({checked(string(f"each item of {argument}", item)) for item in value}))


def variables(argument: str, value: Mapping[str, str] | None) -> Pairs:
    """Environment variables."""
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise InvalidError(
            f"{argument} must be a dict of strings, not {type(value).__name__}; write {argument}={{'NAME': 'value'}}"
        )
    for key, text in value.items():
        if not string(f"a name in {argument}", key) or "=" in key:
            raise InvalidError(f"{argument} has the name {key!r}; a variable's name is not empty and has no '='")
        string(f"{argument}[{key!r}]", text)
    return tuple(value.items())


def tags(value: Mapping[str, str] | None) -> Pairs:
    """Tags of a sandbox, sorted; names that begin with "openmodal" are ours."""
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise InvalidError(f"tags must be a dict of strings, not {type(value).__name__}; write tags={{'key': 'value'}}")
    for key, text in value.items():
        for part in (key, text):
            if not isinstance(part, str) or not re.fullmatch(_TAG, part):
                raise InvalidError(f"tags cannot contain {part!r}; use 1 to 63 letters, digits, '.', '_' and '-'")
        if key.lower().startswith("openmodal"):
            raise InvalidError(f"the tag {key!r} is reserved; use a name that does not begin with 'openmodal'")
    return tuple(sorted(value.items()))


def controls(value: Iterable[str]) -> tuple[str, ...]:
    """Names of controls that a sandbox may lack."""
    if isinstance(value, str):
        raise InvalidError(f"allow_degraded must be a list of names, not a string; put {value!r} into [ ]")
    names = tuple(value)
    for found in names:
        if found not in CONTROLS:
            raise InvalidError(f"allow_degraded cannot contain {found!r}; the controls are {', '.join(CONTROLS)}")
    return tuple(sorted(set(names)))


def argv(function: str, values: Iterable[object]) -> tuple[str, ...]:
    """A command's arguments, the executable first."""
    result = tuple(string(f"{function}() argument {n}", value) for n, value in enumerate(values, 1))
    if not result or not result[0]:
        raise InvalidError(f'{function}() needs a command, for example {function}("ls", "-l")')
    return result


def command_size(function: str, argv: tuple[str, ...], env: Pairs) -> None:
    """Refuse what the kernel would refuse later (execve(2))."""
    words = [*argv, *(f"{key}={text}" for key, text in env)]
    sizes = [len(word.encode("utf-8", "surrogateescape")) + 1 for word in words]
    if (longest := max(sizes, default=0)) > ARGUMENT_BYTES:
        what = f"one argument or variable of {function}() has {longest} bytes, more than {ARGUMENT_BYTES}"
    elif (size := sum(sizes) + 8 * len(words)) > COMMAND_BYTES:
        what = f"the arguments and variables of {function}() have {size} bytes, more than {COMMAND_BYTES}"
    else:
        return
    raise InvalidError(f"{what}, which Linux does not take; give the data by stdin= or a file")
