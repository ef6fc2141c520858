"""One file, once: what `wbcd process` does for each path. The same order and the same store as the daemon's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wbcd.config import Config
from wbcd.daemon.desk import LedgerLike
from wbcd.daemon.identity import unread
from wbcd.daemon.line import process
from wbcd.daemon.stages import Stages
from wbcd.daemon.trial import poison_of, try_in_child
from wbcd.errors import InputError, NotReadable, ReaderDied
from wbcd.records import Acquisition, Outcome, SetAside


class ProcessOnce:
    """Call it with a path: an :class:`Outcome`, or the :class:`wbcd.store.StoredOutcome` of content that is counted already."""

    def __init__(self, config: Config, stages: Stages, ledger: LedgerLike) -> None:
        self._config = config
        self._stages = stages
        self._ledger = ledger

    def __call__(self, path: Path) -> Outcome | Any:
        """Identify, look up, process, commit. Raises only what is not the file's: store, device, configuration."""
        try:
            acquisition = self._stages.identify(path)
        except (InputError, OSError) as error:
            return self._committed(SetAside(unread(path), _named(error, path)))
        self._ledger.sighted(path, acquisition.size_bytes, acquisition.mtime_ns, acquisition.content_id)
        stored = self._ledger.known(acquisition.content_id, self._config.recipe.recipe_id, self._stages.model_id)
        if stored is not None:
            self._note_duplicate(acquisition, stored)
            return stored
        return self._committed(self._worked(acquisition))

    def _worked(self, acquisition: Acquisition) -> Outcome:
        tries = self._ledger.begin(acquisition)
        if tries > self._config.limits.max_tries:
            poison = poison_of(acquisition.path, tries - 1, try_in_child(self._config, acquisition.path))
            if poison is not None:
                return SetAside(acquisition, poison)
        outcome = self._tried(acquisition)
        while _may_pass_at_once(outcome) and tries < self._config.limits.max_tries:
            tries = self._ledger.begin(acquisition)
            outcome = self._tried(acquisition)
        return outcome

    def _tried(self, acquisition: Acquisition) -> Outcome:
        return process(acquisition, self._stages, self._config.recipe, max_batch=self._config.classification.max_batch)

    def _committed(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, SetAside) and self._stages.discard is not None:
            # Of cells found before the error: no row names their volumes.
            self._stages.discard(outcome.acquisition.content_id)
        self._ledger.commit(outcome, self._config.recipe.recipe_id, self._stages.model_id)
        return outcome

    def _note_duplicate(self, acquisition: Acquisition, stored: Any) -> None:
        if str(acquisition.path) != str(stored.path):
            message = f"{acquisition.path.name} has the content of {stored.path}, which is stored already."
            self._ledger.event("duplicate", message, content_id=acquisition.content_id, path=str(acquisition.path))


def _named(error: InputError | OSError, path: Path) -> InputError:
    return error if isinstance(error, InputError) else NotReadable(f"{path.name} cannot be opened: {error.strerror}.")


def _may_pass_at_once(outcome: Outcome) -> bool:
    """True for what another try without waiting can mend; a file that is not whole yet is not among it."""
    return isinstance(outcome, SetAside) and isinstance(outcome.error, (NotReadable, ReaderDied))
