"""Where model files for tests are: the small ones of this folder, and the conformance kit's, which no clone brings."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent
_KITS = [root / "shared" / "conformance" / "models" for root in (_FOLDER.parents[1], _FOLDER.parents[2])]

SMALL = {path.stem: path for path in sorted(_FOLDER.glob("*.gguf"))}
KIT = {path.stem: path for folder in _KITS for path in sorted(folder.glob("*.gguf"))}
