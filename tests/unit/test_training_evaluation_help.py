"""What `wbcd model` and its verbs say of themselves."""

from __future__ import annotations

import click
import pytest

from wbcd.cli import cli
from wbcd.cli.model import model


@pytest.mark.parametrize("name", sorted(model.commands))
def test_each_verb_has_an_example_of_its_own(name: str) -> None:
    lines = (model.commands[name].epilog or "").replace("\b", "").split("\n")
    examples = [line for line in lines if line.startswith("  ")]
    assert examples
    for line in examples:
        assert line.startswith(f"  wbcd model {name} ")


def test_the_examples_of_the_group_are_verbs_of_it() -> None:
    examples = [line.split() for line in (model.epilog or "").split("\n") if line.startswith("  wbcd")]
    assert {words[2] for words in examples} <= set(model.commands)


def test_the_help_names_what_the_verbs_do() -> None:
    help_text = model.get_help(click.Context(model, parent=click.Context(cli)))
    for word in ("compare", "calibrate", "export"):
        assert word in help_text.split("Options")[0]
    assert "--held-out" in (model.commands["calibrate"].help or "")
