"""Does one acquisition kill the process that works on it? Asked of a child process, which may die of it.

A file that was begun several times without an outcome may be poison, or only have been in hand when the machine was switched
off. Counting alone cannot tell the two apart; a trial can: the child does the whole work and throws the result away.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from wbcd.config import Config
from wbcd.errors import Poison

TIMEOUT_S: Final = 600.0
LOOK_S: Final = 0.5
SURVIVED: Final = "survived"

Trial = Callable[[Path], str | None]
"""Path -> how the child ended, or None when it survived."""


def try_in_child(
    config: Config, path: Path, *, beat: Callable[[], None] = lambda: None, timeout_s: float = TIMEOUT_S
) -> str | None:
    """How the child ended, for a message; None when it lived. ``beat`` is called while it works."""
    command = [sys.executable, "-m", "wbcd.daemon.trial", str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        try:
            _there(child.stdin).write(json.dumps(flat(config)) + "\n")
            _there(child.stdin).flush()  # it stays open: its end tells the child that we are gone
            deadline = time.monotonic() + timeout_s
            while child.poll() is None:
                beat()
                if time.monotonic() > deadline:
                    return f"did not end within {timeout_s:g} s"
                with suppress(subprocess.TimeoutExpired):
                    child.wait(LOOK_S)
            said = _there(child.stdout).read()
        except BrokenPipeError:
            said = ""
        finally:
            child.kill()
    return None if child.returncode == 0 and SURVIVED in said else _obituary(child.returncode)


def poison_of(path: Path, tries: int, ended: str | None) -> Poison | None:
    """The error that sets a deadly file aside; None when the trial was survived."""
    if ended is None:
        return None
    return Poison(f"{path.name}: begun {tries} times without an outcome; a process that worked on it alone {ended}.")


def _there(stream: Any) -> Any:
    """The stream, which Popen's types hold to be optional."""
    if stream is None:
        raise BrokenPipeError
    return stream


def flat(config: Config) -> dict[str, Any]:
    """The configuration as the overrides of :meth:`Config.load`, JSON-ready."""
    values: dict[str, Any] = {}
    for section in dataclasses.fields(config):
        inner = getattr(config, section.name)
        names = [part.name for part in dataclasses.fields(inner)]
        parts = (
            {f"recipe.{name}": getattr(inner, name) for name in names} if section.name == "recipe" else {section.name: inner}
        )
        for prefix, part in parts.items():
            values |= {f"{prefix}.{item.name}": _plain(getattr(part, item.name)) for item in dataclasses.fields(part)}
    return values


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _obituary(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def main(path: Path, overrides: Mapping[str, Any]) -> None:
    """The child: the whole work on one file, nothing kept. An exception with a name is no death."""
    from wbcd.daemon.assembly import make_stages
    from wbcd.daemon.line import process
    from wbcd.errors import InputError, WbcdError

    config = Config.load(None, {}, {**overrides, "output.keep_tomograms": False})
    try:
        stages = make_stages(config)
    except WbcdError:  # the model was moved meanwhile, say: that says nothing of the file, so it is not condemned
        sys.stdout.write(SURVIVED + "\n")
        return
    try:
        process(stages.identify(path), stages, config.recipe, max_batch=config.classification.max_batch)
    except InputError:
        pass
    finally:
        stages.close()
    sys.stdout.write(SURVIVED + "\n")


def _end_with_parent() -> None:
    """A thread waits for the end of standard input: when the daemon is gone, so is its child."""
    import os
    import threading

    def watch() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    _end_with_parent()
    main(Path(sys.argv[1]), given)
