"""Where Redis is and who asks: what ``ORCD_REDIS_URL`` says. Nobody else parses the URL, kombu and Celery neither.

======================================================== ============================================================
``redis://[USER:PASSWORD@]HOST:PORT/DB``                 a server
``rediss://[USER:PASSWORD@]HOST:PORT/DB``                a server, over TLS
``unix://[USER:PASSWORD@]/PATH?db=DB``                   a server on this machine, over its socket
``redis+sentinel://[U:P@]HOST:PORT,HOST:PORT/MASTER/DB`` the master of that name, which these sentinels know
``rediss+sentinel://...``                                the same, master and sentinels over TLS
======================================================== ============================================================

Options follow behind ``?``, named as in redis-py: ``db``, ``username``, ``password``; with TLS ``ssl_ca_certs``,
``ssl_ca_path``, ``ssl_certfile``, ``ssl_keyfile`` (files), ``ssl_cert_reqs`` (required, optional, none) and
``ssl_check_hostname`` (true, false); with sentinels ``sentinel_username`` and ``sentinel_password``.

A password may hold any character as it is, as the last ``@`` ends it; only ``%`` before two hexadecimal digits must be
written ``%25``, since percent-encoded characters are understood, and ``@`` in an option ``%40``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from orcd.errors import InvalidRequest

FORMS = (
    "redis_url: must look like redis://HOST:PORT/DB, rediss://HOST:PORT/DB, unix:///PATH?db=DB "
    "or redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DB (see ORCD_REDIS_URL)"
)
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
PORT = 6379
SENTINEL_PORT = 26379

_OPTIONS = {"db", "username", "password"}
_TLS_FILES = {"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"}
_TLS_OPTIONS = _TLS_FILES | {"ssl_cert_reqs", "ssl_check_hostname"}
_SENTINEL_OPTIONS = {"sentinel_username", "sentinel_password"}
_HOST = re.compile(r"(?:\[(?P<ip6>[0-9A-Fa-f:.]+)\]|(?P<name>[\w.-]*))(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True, slots=True, repr=False)
class RedisAddress:
    """One Redis and how to get in. As text, and in what Python shows of it, it is without the password.

    ``hosts`` are those of the sentinels where there is a ``master`` name, none where there is a ``path``, else one.
    ``tls`` has redis-py's options, empty for its defaults.
    """

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    master: str = ""
    db: int = 0
    username: str = ""
    password: str = ""
    tls: Mapping[str, Any] = field(default_factory=dict)
    sentinel_login: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Raises `InvalidRequest`, which quotes nothing of the URL: it may be a piece of the password."""
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in SCHEMES:
            raise InvalidRequest(FORMS)
        credentials, _, place = rest.rpartition("@")
        username, _, password = credentials.partition(":")
        place, _, query = place.partition("?")
        options = _options(query, scheme)
        parts = {"path": unquote(place)} if scheme == "unix" else _server(place, scheme.endswith("+sentinel"))
        if scheme == "unix" and not place.startswith("/"):
            raise InvalidRequest(FORMS)
        return cls(
            scheme=scheme,
            **parts | {"db": _number(options.get("db", parts.get("db", "")) or "0")},
            username=options.get("username", unquote(username)),
            password=options.get("password", unquote(password)),
            tls=_tls(options),
            sentinel_login={name.removeprefix("sentinel_"): options[name] for name in _SENTINEL_OPTIONS & set(options)},
        )

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.scheme.startswith("rediss")

    @property
    def login(self) -> dict[str, str]:
        """The user's name and password, as far as given."""
        given = {"username": self.username, "password": self.password}
        return {name: value for name, value in given.items() if value}

    def __str__(self) -> str:
        """The URL without password and options."""
        user = f"{self.username}:**@" if self.password else "**@" if self.username else ""
        if self.path:
            return f"{self.scheme}://{user}{self.path}?db={self.db}"
        master = f"{self.master}/" if self.master else ""
        return f"{self.scheme}://{user}{','.join(map(_host_text, self.hosts))}/{master}{self.db}"

    __repr__ = __str__

    def kombu_url(self, *, with_login: bool = False) -> str:
        """The address as kombu and Flower write it, for what they show, and what Flower connects to by itself."""
        login = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}@" if self.login and with_login else ""
        if self.path:
            return f"redis+socket://{login}{quote(self.path)}"
        scheme = "sentinel" if self.master else self.scheme
        return f"{scheme}://{login}{_host_text(self.hosts[0])}/{self.db}"


def _options(query: str, scheme: str) -> dict[str, str]:
    pairs = [option.partition("=") for option in query.split("&") if option]
    known = _OPTIONS | (_TLS_OPTIONS if scheme.startswith("rediss") else set())
    if scheme.endswith("+sentinel"):
        known |= _SENTINEL_OPTIONS
    if any(name not in known for name, _, _ in pairs):
        raise InvalidRequest(f"redis_url: with {scheme}:// the options behind ? may be {', '.join(sorted(known))}")
    return {name: unquote(value) for name, _, value in pairs}


def _server(place: str, is_sentinel: bool) -> dict[str, Any]:
    """Hosts, master and database of ``HOST:PORT[,...]/[MASTER/]DB``."""
    hosts, _, path = place.partition("/")
    master, _, db = path.partition("/") if is_sentinel else ("", "", path)
    if is_sentinel != bool(master) or (not is_sentinel and "," in hosts):
        raise InvalidRequest(FORMS)
    port = SENTINEL_PORT if is_sentinel else PORT
    return {"hosts": tuple(_host(host, port) for host in hosts.split(",")), "master": unquote(master), "db": db}


def _host(text: str, default_port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None:
        raise InvalidRequest(FORMS)
    name, port = match["ip6"] or match["name"] or "127.0.0.1", int(match["port"] or default_port)
    try:
        name.encode("idna")
    except UnicodeError:
        raise InvalidRequest(FORMS) from None
    if not 0 < port < 2**16:
        raise InvalidRequest(FORMS)
    return name, port


def _host_text(host: tuple[str, int]) -> str:
    name, port = host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def _number(text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text):
        raise InvalidRequest(FORMS)
    return int(text)


def _tls(options: Mapping[str, str]) -> dict[str, Any]:
    """redis-py's options for TLS. Raises `InvalidRequest` for files that are not there and words it does not know."""
    tls: dict[str, Any] = {name: options[name] for name in _TLS_FILES & set(options)}
    for name, file in tls.items():
        if not (Path(file).is_dir() if name == "ssl_ca_path" else Path(file).is_file()):
            raise InvalidRequest(f"redis_url: {name} names no {'folder' if name == 'ssl_ca_path' else 'file'}")
    if "ssl_cert_reqs" in options:
        tls["ssl_cert_reqs"] = options["ssl_cert_reqs"].removeprefix("CERT_").lower()  # Celery writes CERT_REQUIRED
        if tls["ssl_cert_reqs"] not in ("required", "optional", "none"):
            raise InvalidRequest("redis_url: ssl_cert_reqs must be required, optional or none")
    if "ssl_check_hostname" in options:
        words = {"true": True, "1": True, "false": False, "0": False}
        if options["ssl_check_hostname"].lower() not in words:
            raise InvalidRequest("redis_url: ssl_check_hostname must be true or false")
        tls["ssl_check_hostname"] = words[options["ssl_check_hostname"].lower()]
    return tls
