"""``python -m orcd``: the command ``orcd``."""

from __future__ import annotations

from orcd.cli.main import main

if __name__ == "__main__":
    main()
