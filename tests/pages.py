"""The pages of the README and the documentation, by the names that tests call them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PATHS = {
    **{path.name: path for path in sorted(ROOT.glob("*.md"))},
    **{path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))},
}
"""``README.md``, ``metrics.md``, ``experiments/attention.md`` ..."""
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PATHS.items()}
