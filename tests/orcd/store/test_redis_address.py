"""What ``ORCD_REDIS_URL`` may look like, and that none of the password in it is shown."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from orcd.errors import InvalidRequest
from orcd.store.redis_address import RedisAddress

PASSWORD = "a/b@c#d?e:f%g&h=i,j k"


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("redis://h", {"hosts": (("h", 6379),), "db": 0, "login": {}}),
        ("redis://h:7/3", {"hosts": (("h", 7),), "db": 3}),
        ("redis://:7/", {"hosts": (("127.0.0.1", 7),), "db": 0}),
        ("redis://h?db=4", {"hosts": (("h", 6379),), "db": 4}),
        ("redis://[::1]:7/1", {"hosts": (("::1", 7),), "db": 1}),
        ("redis://me:pw@h", {"login": {"username": "me", "password": "pw"}}),
        ("redis://:pw@h", {"login": {"password": "pw"}}),
        ("redis://h?username=me&password=p%26w", {"login": {"username": "me", "password": "p&w"}}),
        ("rediss://h", {"uses_tls": True, "hosts": (("h", 6379),)}),
        ("unix:///run/redis.sock?db=2", {"path": "/run/redis.sock", "db": 2, "hosts": ()}),
        ("unix://me:pw@/run/a%20b", {"path": "/run/a b", "login": {"username": "me", "password": "pw"}}),
        ("redis+sentinel://a,b:7/main", {"hosts": (("a", 26379), ("b", 7)), "master": "main", "db": 0}),
        ("rediss+sentinel://:pw@a/main/3", {"uses_tls": True, "master": "main", "db": 3, "login": {"password": "pw"}}),
        (
            "redis+sentinel://a/main?sentinel_username=u&sentinel_password=p",
            {"sentinel_login": {"username": "u", "password": "p"}},
        ),
    ],
)
def test_a_url_says_where_redis_is_and_who_asks(url: str, parts: dict[str, object]):
    address = RedisAddress.parse(url)
    assert {name: getattr(address, name) for name in parts} == parts


@pytest.mark.parametrize(
    "written", [PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD)], ids=["raw", "encoded", "half"]
)
@pytest.mark.parametrize("url", ["redis://u:{}@h:7/3", "unix://u:{}@/s?db=3", "redis+sentinel://u:{}@h,i/m/3"])
def test_a_password_may_hold_any_character_raw_or_encoded(url: str, written: str):
    address = RedisAddress.parse(url.format(written))
    assert (address.username, address.password, address.db) == ("u", PASSWORD, 3)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h",
        "localhost:6379",
        "http://h",
        "redis:h",
        "redis://h:port/0",
        "redis://h:0",
        "redis://h:70000",
        "redis://h/zero",
        "redis://h/0/1",
        "redis://a,b/0",
        "redis://a..b",
        "redis://a b",
        "unix://run/redis.sock",
        "unix:///s?db=x",
        "redis+sentinel://a",
        "redis+sentinel://a//3",
        "redis+sentinel://a/main/db",
    ],
)
def test_what_is_no_address_is_refused_with_the_forms_there_are(url: str):
    with pytest.raises(InvalidRequest, match="redis_url: must look like redis://HOST:PORT/DB, rediss://"):
        RedisAddress.parse(url)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("ssl_cert=x", "the options behind . may be db, password, ssl_ca_certs"),
        ("protocol=2", "the options behind . may be"),
        ("ssl_ca_certs=/nowhere", "ssl_ca_certs names no file"),
        ("ssl_ca_path=/etc/hostname", "ssl_ca_path names no folder"),
        ("ssl_cert_reqs=maybe", "ssl_cert_reqs must be required, optional or none"),
        ("ssl_check_hostname=maybe", "ssl_check_hostname must be true or false"),
    ],
)
def test_options_that_cannot_be_are_refused_without_quoting_them(query: str, words: str):
    with pytest.raises(InvalidRequest, match=words):
        RedisAddress.parse(f"rediss://h?{query}")


def test_options_for_tls_are_those_of_redis_py(tmp_path: Path):
    file = tmp_path / "a+b@c.pem"
    file.touch()
    query = f"ssl_ca_certs={quote(str(file))}&ssl_cert_reqs=CERT_NONE&ssl_check_hostname=false"
    tls = {"ssl_ca_certs": str(file), "ssl_cert_reqs": "none", "ssl_check_hostname": False}
    assert RedisAddress.parse(f"rediss://h?{query}").tls == tls
    with pytest.raises(InvalidRequest, match=r"with redis:// the options behind . may be db, password, username"):
        RedisAddress.parse(f"redis://h?{query}")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h/1", "redis://h:6379/1"),
        ("redis://:{}@h:7/1", "redis://:**@h:7/1"),
        ("redis://me:{}@h/1", "redis://me:**@h:6379/1"),
        ("redis://{}@h", "redis://**@h:6379/0"),
        ("rediss://me:{}@[::1]?ssl_cert_reqs=none", "rediss://me:**@[::1]:6379/0"),
        ("unix://me:{}@/run/s?db=3", "unix://me:**@/run/s?db=3"),
        ("redis+sentinel://:{}@a,b:7/main/2?sentinel_password={}", "redis+sentinel://:**@a:26379,b:7/main/2"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str):
    address = RedisAddress.parse(url.format(*["se%40cr/et"] * 2))
    assert str(address) == repr(address) == shown


@pytest.mark.parametrize(
    "url", ["redis://:can/ary", "redis://:can?ary@h:x", "redis://:p@h:can/ary", "can://ary", "redis://h?can=ary"]
)
def test_a_url_that_is_refused_is_not_quoted(url: str):
    with pytest.raises(InvalidRequest) as refused:
        RedisAddress.parse(url)
    assert "can" not in str(refused.value).replace("cannot", "") and "ary" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown", "scheme", "path"),
    [
        ("redis://me:{}@h/1", "redis://h:6379/1", "redis", "/1"),
        ("rediss://me:{}@h/1", "rediss://h:6379/1", "rediss", "/1"),
        ("unix://me:{}@/run/s?db=1", "redis+socket:///run/s", "redis+socket", "/run/s"),
        ("redis+sentinel://me:{}@h:6379,i/main/1", "sentinel://h:6379/1", "sentinel", "/1"),
    ],
)
def test_kombu_and_flower_are_told_in_their_own_way(url: str, shown: str, scheme: str, path: str):
    address = RedisAddress.parse(url.format(PASSWORD))
    assert address.kombu_url() == shown
    parts = urlsplit(address.kombu_url(with_login=True))
    assert (parts.scheme, parts.username, parts.password, parts.path) == (scheme, "me", quote(PASSWORD, safe=""), path)
