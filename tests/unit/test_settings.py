"""The settings, and where they come from."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from datetime import timedelta

import pytest

from async_task_state import NEVER_EXPIRE, InvalidArgumentError, Settings, SettingsError
from async_task_state.settings import allowed_protocols, load_settings, retention_seconds

NUMBERS = ("max_delay", "outage_timeout", "exit_timeout", "max_value_bytes", "max_state_bytes")
DAY = 86400.0


def test_the_defaults():
    settings = Settings(dsn="memory:")
    assert [getattr(settings, name) for name in NUMBERS] == [1, 60, 5, 1024 * 1024, 256 * 1024 * 1024]
    assert settings.default_retention == 30 * DAY


def test_no_password_in_the_repr():
    shown = repr(Settings(dsn="postgresql://scott:hunter2@host/db", max_delay=0.5))
    assert "hunter2" not in shown
    assert "max_delay=0.5" in shown


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", None, True], ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_g8_a_number_out_of_range_is_named(name, value):
    with pytest.raises(SettingsError) as caught:
        Settings(dsn="memory:", **{name: value})
    assert str(caught.value) == f"[async_task_state] {name} must be a number above 0, not {value!r}"


@pytest.mark.parametrize("value", ["S3", "s3://", "s3 gs", "s3;gs", "3s", "s3,gs,:", None, ["s3"]], ids=repr)
def test_g8_a_protocol_that_is_none_is_named(value):
    with pytest.raises(
        SettingsError, match="allowed_protocols must be names of protocols with commas between"
    ):
        Settings(dsn="memory:", allowed_protocols=value)


def test_the_allowed_protocols_are_read_alone(environment):
    environment(dsn="memory:", conn_id="both", allowed_protocols=" memory,sftp ,webdav+http,")
    assert allowed_protocols() == {"memory", "sftp", "webdav+http"}
    with pytest.raises(SettingsError, match="both set"):
        load_settings()


@pytest.mark.parametrize("value", [-1, float("nan"), "1", None], ids=repr)
def test_g8_a_retention_out_of_range_is_named(value):
    with pytest.raises(SettingsError, match="default_retention_days must be a number of at least 0, not"):
        Settings(dsn="memory:", default_retention_days=value)


def test_a_default_retention_of_zero_is_for_ever():
    assert Settings(dsn="memory:", default_retention_days=0).default_retention is None


def test_never_expire_is_airflows():
    from airflow.sdk import NEVER_EXPIRE as AIRFLOWS  # noqa: PLC0415 - takes a second

    assert NEVER_EXPIRE is AIRFLOWS


@pytest.mark.parametrize(
    ("retention", "seconds"),
    [
        (None, None),
        (timedelta(days=1), DAY),
        (timedelta(microseconds=1), 1e-6),
        (NEVER_EXPIRE, math.inf),
        (timedelta.max, math.inf),
    ],
    ids=str,
)
def test_how_long_a_key_is_kept(retention, seconds):
    assert retention_seconds(retention) == seconds


@pytest.mark.parametrize("retention", [timedelta(0), timedelta(seconds=-1), 5, "1 day"], ids=repr)
def test_g8_a_retention_that_cannot_be_one_is_named(retention):
    with pytest.raises(
        InvalidArgumentError, match="retention must be a timedelta above 0, NEVER_EXPIRE or None, not"
    ):
        retention_seconds(retention)


@pytest.fixture
def environment(monkeypatch, _settings_read_anew):
    """Sets options as environment variables."""

    def environment(**options):
        for name, value in options.items():
            monkeypatch.setenv(f"AIRFLOW__ASYNC_TASK_STATE__{name.upper()}", value)

    return environment


def test_without_any_option_the_defaults_hold(environment):
    assert load_settings() == Settings(dsn=f"sqlite:///{os.environ['AIRFLOW_HOME']}/async_task_state.db")


def test_options_come_from_environment_variables(environment):
    environment(
        dsn="memory:x",
        max_delay="0.25",
        outage_timeout="7",
        exit_timeout="2.5",
        max_value_bytes="2048",
        max_state_bytes="4096",
        default_retention_days="0",
    )
    settings = load_settings()
    assert settings == Settings("memory:x", 0.25, 7, 2.5, 2048, 4096, 0)
    assert isinstance(settings.max_value_bytes, int)


def test_options_are_read_once(environment):
    first = load_settings()
    environment(max_delay="0.25")
    assert load_settings() is first


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_delay", "soon"),
        ("max_delay", ""),
        ("max_value_bytes", "1.5"),
        ("max_value_bytes", "1MiB"),
        ("exit_timeout", "-1.0"),
        ("max_delay", "nan"),
    ],
)
def test_g8_an_option_that_is_no_number_is_named(environment, name, value):
    environment(**{name: value})
    with pytest.raises(
        SettingsError, match=rf"^\[async_task_state\] {name} must be a (whole )?number.*, not '?{value}'?$"
    ):
        load_settings()


def test_options_come_from_airflow_cfg(tmp_path):
    """Environment variables go before the file, as everywhere in Airflow."""
    (tmp_path / "airflow.cfg").write_text(
        "[async_task_state]\ndsn = memory:file\nmax_delay = 0.5\nexit_timeout = 3\n", encoding="utf-8"
    )
    code = "from async_task_state.settings import load_settings as l; s = l(); print(s.dsn, s.max_delay, s.exit_timeout)"
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__ASYNC_TASK_STATE__EXIT_TIMEOUT": "4",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["memory:file 0.5 4.0"], done.stderr
