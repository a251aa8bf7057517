"""The page's libraries are what vendor.toml says, and nothing else is there."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any

import openmodal.web

FOLDER = Path(openmodal.web.__file__).parent / "vendor"


def test_the_libraries_are_those_of_the_table() -> None:
    table: dict[str, Any] = tomllib.loads((FOLDER / "vendor.toml").read_text("utf-8"))
    files = {file["name"]: file["sha256"] for package in table["package"] for file in package["files"]}
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in FOLDER.iterdir() if p.name != "vendor.toml"}
    assert found == files
    for package in table["package"]:
        assert package["licence"] in ("MIT", "Apache-2.0")
        assert any(file["name"].endswith(".LICENSE") for file in package["files"])
