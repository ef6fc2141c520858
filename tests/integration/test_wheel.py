"""The wheel, installed: documentation, unit and example configuration, and the commands of the installation page."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from wbcd.config import Config

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "install-the-service.md"
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a file beside the shipped ones that must stay behind: the passwords of the containers lie there."""
    folder = tmp_path_factory.mktemp("wheel")
    secret = ROOT / "deploy" / "test-password"
    secret.write_text("hush\n")
    try:
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    finally:
        secret.unlink()
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def prefix(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What /opt/wbcd is on a machine of its own."""
    place = tmp_path_factory.mktemp("opt") / "wbcd"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*pip, "--disable-pip-version-check", "--prefix", str(place), str(wheel)], check=True, capture_output=True)
    return place


def commands(heading: str | None = None) -> list[str]:
    """The lines of the page's shell blocks, of one section or of what stands before the first."""
    parts = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    text = parts[0] if heading is None else next(part for part in parts if part.startswith(heading))
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line.partition("  #")[0] for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def there(line: str, prefix: Path, root: Path) -> str:
    """The line with the paths of a machine put below ``root``; its group and the programs of systemd are not here."""
    line = re.sub(r"&& systemd-\S+.*", "", line).replace("-g wbcd ", "")
    line = line.replace("/opt/wbcd", str(prefix))
    return re.sub(r"(?<=\s)/(?=etc|usr/local|var)", f"{root}/", line)


def test_what_the_unit_names_as_its_documentation_is_installed(prefix: Path) -> None:
    unit = (prefix / "share" / "wbcd" / "systemd" / "wbcd.service").read_text()
    named = re.findall(r"^Documentation=file:///opt/wbcd/(\S+)$", unit, re.MULTILINE)
    assert len(named) == 2
    assert [name for name in named if not (prefix / name).is_file()] == []


def test_every_link_of_the_installed_documentation_leads_somewhere(prefix: Path) -> None:
    pages = list((prefix / "share" / "doc" / "wbcd").rglob("*.md"))
    assert len(pages) > 40
    broken = [
        f"{page.relative_to(prefix)}: {target}"
        for page in pages
        for target in LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
        if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists()
    ]
    assert broken == []


def test_no_password_lies_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if "password" in name] == []


def test_the_commands_of_the_page_install_it_and_take_it_away_again(prefix: Path, tmp_path: Path) -> None:
    """On a machine that has none of the folders; what needs systemd or the network is not run here."""
    steps = [line for line in commands() if line.startswith(("install ", "cd "))]
    assert sum("install -D" in line for line in steps) == 5
    script = "\n".join(there(line, prefix, tmp_path) for line in steps)
    subprocess.run(["sh", "-euc", script], check=True, capture_output=True, cwd=tmp_path)
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir() or path.is_symlink()}
    assert made == {
        "etc/sysusers.d/wbcd.conf",
        "etc/tmpfiles.d/wbcd.conf",
        "etc/wbcd/wbcd.toml",
        "etc/systemd/system/wbcd.service",
        "etc/systemd/system/wbcd.service.d/cpu-only.conf",
        "usr/local/bin/wbcd",
    }
    assert Config.load(tmp_path / "etc" / "wbcd" / "wbcd.toml", {}).recipe == Config().recipe
    assert (tmp_path / "usr" / "local" / "bin" / "wbcd").resolve() == (prefix / "bin" / "wbcd").resolve()
    upgrade = [line for line in commands("Upgrade") if line.startswith("install ")]
    subprocess.run(["sh", "-euc", there(upgrade[0], prefix, tmp_path)], check=True, capture_output=True)
    removal = [line for line in commands("Uninstall") if line.startswith("rm ")]
    for line in removal[:2]:  # the package; the results are another block
        subprocess.run(["sh", "-euc", there(line, tmp_path / "opt", tmp_path)], check=True, capture_output=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir() or path.is_symlink()}
    assert left == {"etc/wbcd/wbcd.toml"}


def test_the_page_names_only_verbs_that_there_are() -> None:
    from wbcd.cli import VERBS

    lines = "\n".join([*commands(), *commands("Upgrade"), *commands("Uninstall")])
    used = set(re.findall(r"(?:^|-- |bin/)wbcd ([a-z]+)", lines, re.MULTILINE))
    assert {"doctor", "config", "db"} <= used <= set(VERBS)
