"""The check of links that leave the project."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.external_links import PAGES, links, main


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/there" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    """The address of a server that has one page, ``/there``."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_link_that_leads_nowhere_is_told_with_its_page(
    site: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"[here]({site}/there), [there]({site}/gone), [near](other.md)")
    assert main([page]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{site}/gone in page.md: HTTP 404",
        "2 links, 1 of them broken",
    ]


def test_if_all_lead_somewhere_it_succeeds(site: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"[here]({site}/there)")
    assert main([page]) == 0


def test_the_pages_of_the_project_are_looked_at() -> None:
    assert {"README.md", "enqueue.md"} <= {page.name for page in PAGES}
    assert links(PAGES)
