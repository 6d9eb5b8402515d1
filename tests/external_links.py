"""Whether the links of the README, the documentation and CONTRIBUTING that leave the project lead anywhere.

``python -m tests.external_links`` prints a line for each that does not, and exits with 1 if there is any. It needs the
internet, so no test runs it; links within the project are checked by ``make docs`` and ``tests/test_docs.py``.
"""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.pages import PATHS

PAGES = tuple(PATHS.values())
LINK = re.compile(r"\]\((https?://[^)\s]+)\)")
TIMEOUT_S = 20
MAX_AT_ONCE = 8


def links(pages: Iterable[Path]) -> dict[str, list[str]]:
    """The addresses that pages link to, each with the names of these pages."""
    found: dict[str, list[str]] = {}
    for page in pages:
        for address in LINK.findall(page.read_text(encoding="utf-8")):
            found.setdefault(address, []).append(page.name)
    return found


def problem(address: str) -> str:
    """What is wrong with an address; empty if it answers."""
    request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0 (orcd's check of links)"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            return ""
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except OSError as error:
        return str(error)


def main(pages: Iterable[Path] = PAGES) -> int:
    """Check all links; returns the exit code."""
    found = links(pages)
    with ThreadPoolExecutor(MAX_AT_ONCE) as executor:
        problems = dict(zip(found, executor.map(problem, found), strict=True))
    broken = {address: text for address, text in problems.items() if text}
    for address, text in broken.items():
        print(f"{address} in {', '.join(found[address])}: {text}")
    print(f"{len(found)} links, {len(broken)} of them broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
