"""The shipped configuration, unit and container files agree with the program."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wbcd.config import Config, known_keys

ROOT = Path(__file__).parents[2]


def test_the_example_configuration_is_the_defaults_and_shows_every_site_setting() -> None:
    path = ROOT / "deploy" / "wbcd.example.toml"
    config, defaults = Config.load(path, {}), Config()
    assert config.classification == defaults.classification
    assert config.limits == defaults.limits
    assert config.service == defaults.service
    assert config.recipe == defaults.recipe
    text = path.read_text()
    missing = [key for key in known_keys() if not key.startswith("recipe.") and key.split(".")[1] not in text]
    assert missing == []


def test_the_unit_promises_what_the_daemon_keeps() -> None:
    unit = (ROOT / "systemd" / "wbcd.service").read_text()
    for line in ("Type=notify", "WatchdogSec=", "Restart=always", "LoadCredential=database-password:", "DevicePolicy=closed"):
        assert line in unit
    assert "RestartPreventExitStatus=78" in unit
    assert not re.search(r"^MemoryDenyWriteExecute=", unit, re.MULTILINE)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_the_unit_is_hardened() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(ROOT / "systemd" / "wbcd.service")]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"Overall exposure level.*?: ([\d.]+)", text)
    assert found is not None
    assert float(found[1]) <= 1.5


def test_the_documentation_is_whole() -> None:
    checked = subprocess.run([sys.executable, ROOT / "docs" / "build.py"], capture_output=True, text=True, check=False)
    assert checked.stderr == ""
