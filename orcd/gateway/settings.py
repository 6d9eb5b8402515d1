"""Settings of a gateway; docs/gateway.md lists them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from orcd.settings import ClientSettings, check_whole_numbers


@dataclass(frozen=True, slots=True)
class GatewaySettings(ClientSettings):
    """What a gateway can be told."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    api_key_file: str = ""
    """Path of a TOML file of the keys that callers need; see docs/gateway.md."""
    api_keys: str = field(default="", repr=False)
    """Keys that callers need, divided by commas; without these and a file anybody may call."""
    cors_origins: str = ""
    """Origins whose pages may call from a browser, divided by commas; ``*``: all."""
    max_body_bytes: int = 16 * 1024 * 1024
    """Longest body of a request, files apart."""
    max_file_bytes: int = 200 * 1024 * 1024
    """Longest file that may be uploaded."""
    files_dir: str = ""
    """Folder of uploaded and output files, or fsspec URL, that all gateways share; empty: no files and batches here."""

    def check(self) -> None:
        """Raises `InvalidRequest` naming the variable of a value that cannot be."""
        ClientSettings.check(self)
        check_whole_numbers(self, {"job_ttl_s", "queue_limit_s", "max_body_bytes", "max_file_bytes"})

    def defaults(self) -> GatewaySettings:
        """The settings that have these where nothing else is said."""
        return replace(GatewaySettings())
