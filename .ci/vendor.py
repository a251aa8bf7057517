"""Fetch the page's libraries from their npm packages, as vendor.toml names them, and note their hashes."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    table = folder / "vendor.toml"
    text = table.read_text("utf-8")
    for package in tomllib.loads(text)["package"]:
        for name, data in files(package).items():
            (folder / name).write_bytes(data)
            text = with_hash(text, name, hashlib.sha256(data).hexdigest())
    table.write_text(text, "utf-8")


def files(package: dict[str, Any]) -> dict[str, bytes]:
    """What is taken from a package, by the names that it has here."""
    with tempfile.TemporaryDirectory() as folder:
        spec = f"{package['name']}@{package['version']}"
        said = subprocess.run(
            ["npm", "pack", "--silent", spec], cwd=folder, check=True, stdout=subprocess.PIPE, text=True
        )
        with tarfile.open(Path(folder) / said.stdout.strip()) as archive:
            return {file["name"]: read(archive, file["path"]) for file in package["files"]}


def read(archive: tarfile.TarFile, path: str) -> bytes:
    found = archive.extractfile(f"package/{path}")
    assert found, path
    # Maps to sources that are not here would be asked for by the browser's tools.
    return re.sub(rb"\n//# sourceMappingURL=\S+\s*$", b"\n", found.read())


def with_hash(text: str, name: str, digest: str) -> str:
    return re.sub(rf'(name = "{re.escape(name)}", .*sha256 = )"[0-9a-f]*"', rf'\g<1>"{digest}"', text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
