"""No file is ever executed: what could do it does not occur in the program."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import wbcd

SOURCES = sorted(Path(wbcd.__file__).parent.rglob("*.py"))
FORBIDDEN = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "monai"}
CALLS = {("torch", "load"), ("torch", "jit"), ("torch", "export"), ("torch", "package")}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_nothing_that_unpickles_or_runs_a_model_file(source: Path) -> None:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN
            assert not {tuple(alias.name.split(".")[:2]) for alias in node.names} & CALLS
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN
            assert not {(node.module, alias.name) for alias in node.names} & CALLS
            assert ".".join((node.module or "").split(".")[:2]) not in {".".join(call) for call in CALLS}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in CALLS
        elif isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle" or (isinstance(node.value, ast.Constant) and node.value.value is False)


def test_the_search_finds_something() -> None:
    assert len(SOURCES) > 100
