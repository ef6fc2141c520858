"""One file, once: what `wbcd process` does for each path. The same order and the same store as the daemon's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from wbcd.config import Config
from wbcd.daemon.desk import LedgerLike
from wbcd.daemon.identity import UNREAD, unread
from wbcd.daemon.line import process
from wbcd.daemon.pipeline import volumes_of
from wbcd.daemon.reopening import BY_HAND, conditions_of, is_open_again
from wbcd.daemon.stages import Stages, with_companions
from wbcd.daemon.trial import poison_of, try_in_child
from wbcd.errors import InputError, MissingCompanion, NotReadable, ReaderDied, VolumeGone
from wbcd.records import Acquisition, Outcome, Payload, SetAside, differ


class ProcessOnce:
    """Call it with a path: an :class:`Outcome`, or the :class:`wbcd.store.StoredOutcome` of content that is counted already."""

    def __init__(self, config: Config, stages: Stages, ledger: LedgerLike, *, replace_changed: bool = False) -> None:
        """``replace_changed``: what was counted with other companions than lie there now is made again, and replaced."""
        self._config = config
        self._stages = stages
        self._ledger = ledger
        self._replace_changed = replace_changed
        self._key = config.recipe.recipe_id, stages.model_id

    def __call__(self, path: Path) -> Outcome | Any:
        """Identify, look up, process, commit. Raises only what is not the file's: store, device, configuration."""
        before = self._ledger.remembered(path)
        others = () if before is None else tuple(before.companions)
        try:
            acquisition = self._identified(path, others)
        except (InputError, OSError) as error:
            return self._committed(SetAside(unread(path, self._config.host), _named(error, path)))
        if before is not None and before.content_id.startswith(UNREAD):
            self._ledger.retire_unread(before.content_id, path)
        self._sight(acquisition)
        stored = self._known(acquisition)
        if stored is not None and self._is_open_again(stored, acquisition):
            stored = self._known(acquisition)
        if stored is not None:
            self._ledger.ask(acquisition.content_id, *self._key)
            self._note_duplicate(acquisition, stored)
            return stored
        outcome = self._committed(self._worked(acquisition))
        return self._known(acquisition) if outcome is None else outcome

    def _identified(self, path: Path, others: tuple[str, ...]) -> Acquisition:
        found = self._stages.look(path, others)
        acquisition = self._stages.identify(path)
        companions = self._stages.companions(path, others)
        return replace(acquisition, companions=companions, state="" if found is None else found.token)

    def _sight(self, acquisition: Acquisition) -> None:
        self._ledger.sighted(
            acquisition.path,
            acquisition.size_bytes,
            acquisition.mtime_ns,
            acquisition.content_id,
            state=acquisition.state,
            companions=acquisition.companions,
        )

    def _known(self, acquisition: Acquisition) -> Any:
        return self._ledger.known(acquisition.content_id, *self._key)

    def _is_open_again(self, stored: Any, acquisition: Acquisition) -> bool:
        """A person asks by hand: what might pass now is tried again, and with ``replace_changed`` what changed is replaced."""
        if stored.outcome == "set_aside":
            again = stored.reason in BY_HAND or is_open_again(stored.reason, stored.conditions, conditions_of(self._config))
        else:
            again = self._replace_changed and differ(stored.companions, dict(acquisition.companions))
        why = f"{acquisition.path.name} was asked for by hand"
        return again and bool(self._ledger.reopen([stored.run_id], why, ended=(stored.outcome,)))

    def _worked(self, acquisition: Acquisition) -> Outcome:
        tries = self._begun(acquisition)
        if tries > self._config.limits.max_tries:
            poison = poison_of(acquisition.path, tries - 1, try_in_child(self._config, acquisition.path))
            if poison is not None:
                return SetAside(acquisition, poison)
        outcome = self._tried(acquisition)
        while _may_pass_at_once(outcome) and tries < self._config.limits.max_tries:
            tries = self._begun(acquisition)
            outcome = self._tried(acquisition)
        return outcome

    def _begun(self, acquisition: Acquisition) -> int:
        return self._ledger.begin(acquisition, volumes_root=self._stages.volumes_root)

    def _tried(self, acquisition: Acquisition) -> Outcome:
        stages = replace(self._stages, read=self._read)
        outcome = process(acquisition, stages, self._config.recipe, max_batch=self._config.classification.max_batch)
        if isinstance(outcome, SetAside) and isinstance(outcome.error, MissingCompanion) and outcome.error.companion:
            awaited = replace(acquisition, companions=((outcome.error.companion, None),))
            return replace(outcome, acquisition=self._with_companions(acquisition, awaited))
        return outcome

    def _read(self, acquisition: Acquisition) -> tuple[Acquisition, Payload]:
        read, payload = self._stages.read(acquisition)
        return self._with_companions(acquisition, read), payload

    def _with_companions(self, before: Acquisition, read: Acquisition) -> Acquisition:
        ticket = with_companions(self._stages, before, read)
        if ticket.companions != before.companions:
            self._sight(ticket)
        return ticket

    def _committed(self, outcome: Outcome) -> Outcome | None:
        for _ in range(self._config.limits.max_tries - 1):
            try:
                return self._stored(outcome)
            except VolumeGone:  # removed by another process before its row was there: made again
                self._begun(outcome.acquisition)
                outcome = self._tried(outcome.acquisition)
        return self._stored(outcome)

    def _stored(self, outcome: Outcome) -> Outcome | None:
        root, content_id = self._config.output.dir, outcome.acquisition.content_id
        stored = self._ledger.commit(
            outcome,
            *self._key,
            conditions=conditions_of(self._config),
            once_per_acquisition=self._config.watch.same_acquisition == "duplicate",
            check=lambda: self._stages.demand_volumes(volumes_of(outcome)),
        )
        if self._ledger.volumes_to_settle(root, content_id):  # volumes of cells that no row came to name
            self._ledger.discard_volumes(content_id, root, lambda named: self._stages.discard(content_id, named))
        return stored

    def _note_duplicate(self, acquisition: Acquisition, stored: Any) -> None:
        if str(acquisition.path.absolute()) != str(stored.path):
            message = f"{acquisition.path.name} has the content of {stored.path}, which is stored already."
            self._ledger.event("duplicate", message, content_id=acquisition.content_id, path=str(acquisition.path))


def _named(error: InputError | OSError, path: Path) -> InputError:
    return error if isinstance(error, InputError) else NotReadable(f"{path.name} cannot be opened: {error.strerror}.")


def _may_pass_at_once(outcome: Outcome) -> bool:
    """True for what another try without waiting can mend; a file that is not whole yet is not among it."""
    return isinstance(outcome, SetAside) and isinstance(outcome.error, (NotReadable, ReaderDied))
