"""Prints the requirements of one extra of pyproject.toml, for pip."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def requirements(extra: str) -> list[str]:
    """The entries of `extra = [...]`; read without tomllib, which Python 3.10 lacks."""
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text()
    match = re.search(rf"^{re.escape(extra)} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    if not match:
        raise SystemExit(f"pyproject.toml has no extra {extra!r}")
    return re.findall(r'"([^"]+)"', match[1])


if __name__ == "__main__":
    print(" ".join(requirements(sys.argv[1])))
