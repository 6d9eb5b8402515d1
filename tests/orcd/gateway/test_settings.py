from __future__ import annotations

import pytest

from orcd.errors import InvalidRequest
from orcd.gateway.settings import GatewaySettings
from orcd.settings import read_environment


def test_settings_come_from_the_environment_and_flags_win() -> None:
    environment = {"ORCD_PORT": "1", "ORCD_FILES_DIR": "files", "ORCD_MODEL": "worker.gguf"}
    settings = read_environment(GatewaySettings, environment, port=2)
    assert (settings.port, settings.files_dir, settings.host) == (2, "files", "127.0.0.1")


def test_what_a_container_platform_says_of_a_service_called_orcd_is_none_of_them() -> None:
    settings = read_environment(GatewaySettings, {"ORCD_PORT": "tcp://10.0.0.7:80", "ORCD_SERVICE_HOST": "10.0.0.7"})
    assert (settings.port, settings.host) == (8000, "127.0.0.1")


@pytest.mark.parametrize(
    ("variable", "text"),
    [("ORCD_PORT", "65536"), ("ORCD_PORT", "-1"), ("ORCD_PORT", "x"), ("ORCD_MAX_BODY_BYTES", "0")],
)
def test_a_value_that_cannot_be_is_refused_by_its_variable(variable: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match=variable):
        read_environment(GatewaySettings, {variable: text})
