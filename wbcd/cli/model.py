"""`wbcd model`: bundles, shipped or one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wbcd.cli.common import EXAMPLES, Verbs, to_json
from wbcd.cli.modeltools import bench, calibrate, export, import_, instruments, strangers
from wbcd.cli.printing import SIMULATED_MODEL, say
from wbcd.cli.training import compare


@click.group(cls=Verbs, epilog=EXAMPLES["model"])
def model() -> None:
    """Show, compare, calibrate, time, export and import model bundles."""


model.add_command(compare)


@model.command("list", epilog=EXAMPLES["model list"])
@click.option("--json", "as_json", is_flag=True, help="A JSON list.")
def list_(as_json: bool) -> None:
    """The bundles shipped with wbcd."""
    found = [_summary(path) for path in shipped()]
    if as_json:
        click.echo(to_json(found))
        return
    for item in found:
        learnt = f"  ({SIMULATED_MODEL})" if item["simulated"] else ""
        say(f"{item['name']}  {item['model_id']}  classes: {', '.join(item['classes'])}{learnt}")


@model.command(epilog=EXAMPLES["model show"])
@click.argument("name_or_path", default="reference")
@click.option("--json", "as_json", is_flag=True, help="The whole metadata as one JSON object.")
def show(name_or_path: str, as_json: bool) -> None:
    """The card of a bundle: what it was trained on, how it was measured, what it must not be used for."""
    from wbcd.classification import load_bundle

    bundle = load_bundle(name_or_path)
    if as_json:
        click.echo(to_json({"model_id": bundle.model_id, **dict(bundle.card)}))
        return
    say(bundle.model_id)
    card = bundle.path / "README.md"
    for line in (card.read_text(encoding="utf-8") if card.is_file() else to_json(bundle.card)).splitlines():
        say(line)


for tool in (calibrate, strangers, instruments, bench, export, import_):
    model.add_command(tool)


def shipped() -> list[Path]:
    """Folders of the shipped bundles."""
    import wbcd.classification.bundle as home

    return sorted(path for path in home.MODELS.glob("*") if path.is_dir())


def _summary(path: Path) -> dict[str, Any]:
    from wbcd.classification import load_bundle

    bundle = load_bundle(path)
    return {
        "name": path.name,
        "model_id": bundle.model_id,
        "classes": list(bundle.classes),
        "simulated": bundle.model.simulated,
    }
