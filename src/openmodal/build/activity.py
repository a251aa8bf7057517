"""What a step does now, and how much of that is done, read from what it prints: apt, dpkg, pip, uv
and our own downloads. Pure.

Nothing is asked of the commands: a Dockerfile's own `RUN apt-get install` is understood as well.
"""

from __future__ import annotations

import re

_UNITS = {"": 1e-6, "k": 1e-3, "M": 1.0, "G": 1e3}
_SIZE = r"([\d.,]+) ?([kMG]?)i?B"

_NEED = re.compile(rf"Need to get (?:{_SIZE}/)?{_SIZE} of archives")
_NOTHING = re.compile(r"Need to get 0 B")
_COUNT = re.compile(r"(\d+) upgraded, (\d+) newly installed")
_GET = re.compile(rf"Get:\d+ .*\[{_SIZE}\]$")
_PACKAGE = re.compile(r"(Unpacking|Setting up) (\S+) \(")
_TRIGGER = re.compile(r"Processing triggers for (\S+) ")
_FETCHED = re.compile(rf"(?:Downloading|Using cached) (\S+) \({_SIZE}\)")
_COLLECTING = re.compile(r"Collecting (\S+)")
_BUILDING = re.compile(r"Building wheels? for (?:collected packages: )?(\S+)")
_INSTALLING = re.compile(r"Installing collected packages: (.+)")
_PART = re.compile(rf"downloaded {_SIZE} of {_SIZE}$")


class Activity:
    """`doing` says it in words, "" if nothing is understood; `part` is how much of the step is
    done, 0 to 1, None if that cannot be known."""

    def __init__(self) -> None:
        self.doing = ""
        self.part: float | None = None
        self._wanted = self._got = 0.0  # megabytes
        self._packages = self._unpacked = self._set_up = 0
        self._collected = 0

    def hear(self, line: str) -> bool:
        """Take one line; whether it tells of progress only, and need not be shown."""
        if found := _PART.fullmatch(line):
            done, whole = megabytes(found[1], found[2]), megabytes(found[3], found[4])
            self.doing = f"downloading {done:.1f} of {whole:.1f} MB"
            self.part = done / whole if whole else None
            return True
        if not (self._apt(line) or self._dpkg(line)):
            self._pip(line)
        return False

    # ------------------------------------------------------------------------------------ apt, dpkg

    def _apt(self, line: str) -> bool:
        if found := _COUNT.search(line):
            self._packages += int(found[1]) + int(found[2])
        elif found := _NEED.search(line):
            sizes = [(found[1], found[2]), (found[3], found[4])]
            value, unit = next(size for size in sizes if size[0])
            self._got = self._got if self._wanted else 0.0  # what came before were lists
            self._wanted += 0.0 if _NOTHING.search(line) else megabytes(value, unit)
        elif found := _GET.match(line):
            self._got += megabytes(found[1], found[2])
            if self._wanted:
                self.doing = f"downloading packages, {min(self._got, self._wanted):.1f} of {self._wanted:.1f} MB"
            else:
                self.doing = f"downloading lists of packages, {self._got:.1f} MB"
                return True
        else:
            return False
        self._look()
        return True

    def _dpkg(self, line: str) -> bool:
        if found := _PACKAGE.match(line):
            if found[1] == "Unpacking":
                self._unpacked, done, what = self._unpacked + 1, self._unpacked + 1, "unpacking"
            else:
                self._set_up, done, what = self._set_up + 1, self._set_up + 1, "setting up"
            of = f", {done} of {self._packages}" if done <= self._packages else ""
            self.doing = f"{what} {found[2].partition(':')[0]}{of}"
            self._look()
        elif found := _TRIGGER.match(line):
            self.doing = f"finishing {found[1].partition(':')[0]}"
        else:
            return False
        return True

    def _look(self) -> None:
        """Fetching, unpacking and setting up count alike. It never goes back: apt may run twice."""
        done = [min(1.0, self._got / self._wanted)] if self._wanted else []
        if self._packages:
            done += [min(1.0, count / self._packages) for count in (self._unpacked, self._set_up)]
        if done:
            self.part = max(self.part or 0.0, sum(done) / len(done))

    # ------------------------------------------------------------------------------------------ pip

    def _pip(self, line: str) -> None:
        line = line.strip()
        if found := _FETCHED.match(line):
            size = megabytes(found[2], found[3])
            self.doing = f"downloading {found[1]}, {size:.1f} MB"
        elif found := _COLLECTING.match(line):
            self._collected += 1
            self.doing = f"collecting {found[1]}, {self._collected} so far"
        elif found := _BUILDING.match(line):
            self.doing = f"building {found[1].rstrip(',')}"
        elif found := _INSTALLING.match(line):
            count = found[1].count(",") + 1
            self.doing = f"installing {count} Python package{'s' * (count > 1)}"


def megabytes(value: str, unit: str) -> float:
    """A size as package managers write it, in megabytes."""
    return float(value.replace(",", "")) * _UNITS[unit]
