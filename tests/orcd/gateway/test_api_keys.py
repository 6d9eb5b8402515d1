from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from orcd.errors import InvalidRequest
from orcd.gateway.api_keys import ANYBODY, ApiKeys
from orcd.gateway.settings import GatewaySettings


def keys_of(tmp_path: Path, text: str) -> ApiKeys:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    return ApiKeys.load(GatewaySettings(api_key_file=str(path)))


def test_without_keys_anybody_may_call() -> None:
    keys = ApiKeys.load(GatewaySettings())
    assert not keys.are_needed
    assert keys.find(None) is ANYBODY
    assert ANYBODY.may_use("any")
    assert ANYBODY.tag == ""


def test_keys_of_the_environment_are_needed_and_found() -> None:
    keys = ApiKeys.load(GatewaySettings(api_keys="sk-one, sk-two"))
    assert keys.are_needed
    one, two = keys.find("Bearer sk-one"), keys.find("bearer sk-two")
    assert one is not None and two is not None
    assert one.tag != two.tag
    for authorization in (None, "", "Bearer", "Bearer sk-on", "Basic sk-one", "sk-one", "Bearer sk-one, sk-two"):
        assert keys.find(authorization) is None


def test_a_key_file_says_what_each_key_may_do(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"sk-b").hexdigest()
    a_may = 'name = "a"\nkey = "sk-a"\nmodels = ["m1"]\nrequests_per_minute = 3\n'
    text = f'[[keys]]\n{a_may}[[keys]]\nname="b"\nsha256="{digest}"'
    keys = keys_of(tmp_path, text)
    a, b = keys.find("Bearer sk-a"), keys.find("Bearer sk-b")
    assert a is not None and b is not None
    assert a.may_use("m1")
    assert not a.may_use("m2")
    assert a.requests_per_minute == 3
    assert b.may_use("m2")
    assert b.name == "b"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"has no \[\[keys\]\]"),
        ("keys = 1", r"has no \[\[keys\]\]"),
        ("keys = [1]", r"keys\[0\]: must be a table"),
        ("[[keys", "is not valid TOML"),
        ('[[keys]]\nname = "a"', "give one of key and sha256"),
        ('[[keys]]\nkey = "x"', "name: is needed"),
        ('[[keys]]\nname = "a"\nkey = "x"\nsha256 = "y"', "give one of key and sha256"),
        ('[[keys]]\nname = "a"\nsha256 = "abc"', "sha256: must be 64 hex digits"),
        ('[[keys]]\nname = "a"\nkey = 5', "key: must be a str"),
        ('[[keys]]\nname = "a"\nkey = "x"\nmodels = [1]', "models: must be a list of names"),
        ('[[keys]]\nname = "a"\nkey = "x"\nrequests_per_minute = true', "requests_per_minute: must be a int"),
        ('[[keys]]\nname = "a"\nkey = "x"\nrequests_per_minute = -1', "requests_per_minute: must be at least 0"),
        ('[[keys]]\nname = "a"\nkey = "x"\nmodel = "m"', "unknown field"),
        ('[[keys]]\nname = "a"\nkey = "x"\n[[keys]]\nname = "b"\nkey = "x"', "a key is given twice"),
    ],
)
def test_a_key_file_that_cannot_be_used_is_refused_by_its_place_without_a_key_in_the_message(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(InvalidRequest, match=complaint) as caught:
        keys_of(tmp_path, text.replace('"x"', '"CANARY"'))
    assert "CANARY" not in caught.value.message


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"keys\.toml: No such file"):
        ApiKeys.load(GatewaySettings(api_key_file=str(tmp_path / "keys.toml")))


def test_keys_are_in_no_representation() -> None:
    settings = GatewaySettings(api_keys="CANARY")
    assert "CANARY" not in repr(settings)
    assert "CANARY" not in repr(ApiKeys.load(settings).find("Bearer CANARY"))
