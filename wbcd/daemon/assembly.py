"""The real stages, put together as the configuration says. The only module of the daemon that imports the heavy rooms."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import structlog

from wbcd.acquisition import ReadDefaults, identify, read
from wbcd.acquisition.companions import companions_of, look
from wbcd.acquisition.isolate import IsolatedReader, IsolationLimits
from wbcd.classification import Classifier, load_bundle
from wbcd.config import Config, LimitSettings
from wbcd.daemon.instruments import Instruments
from wbcd.daemon.stages import Stages
from wbcd.morphology import find_cells, measure
from wbcd.quality import judge_cell, judge_fields, judge_fringes, judge_tomogram, settle_medium
from wbcd.reconstruction import measure_fringes, reconstruct, retrieve_fields
from wbcd.records import Acquisition, Cell, Payload, Prediction
from wbcd.report.figures import thumbnail_png
from wbcd.store import Ledger
from wbcd.store.engine import Retry
from wbcd.store.modelcard import learnt_simulated
from wbcd.store.volumes import Window, clean_stale, demand_volumes, discard_tomograms, write_tomogram

_log = structlog.get_logger(__name__)


def make_stages(config: Config) -> Stages:
    """Load the model, warm it up, and bind every stage to its site settings. Raises ModelError."""
    bundle = load_bundle(config.classification.model)
    classifier = Classifier(
        bundle,
        device=config.classification.device,
        max_batch=config.classification.max_batch,
        min_probability=config.recipe.classification.min_probability,
        keep_features=False,
        backend=config.classification.backend,
    )
    classifier.warm_up()
    device = str(classifier.device)
    defaults = ReadDefaults(
        medium_ri=config.recipe.reconstruction.default_medium_ri,
        sample_id=config.defaults.sample_id,
        max_logical_bytes=config.limits.max_logical_bytes,
        accept_own_tomograms=config.recipe.quality.accept_own_tomograms,
    )
    # Below the watch folder no link is followed: what is swapped in after the scan is refused.
    root = config.watch.dir.absolute() if config.watch.dir else None
    readers = ReaderPool(config.limits, root) if config.limits.isolate else None
    read_file = readers.read if readers else partial(read, root=root)
    return Stages(
        look=look,
        identify=partial(identify, root=root, max_bytes=config.limits.max_file_bytes),
        read=lambda acquisition: read_file(acquisition, defaults=defaults),
        measure_fringes=measure_fringes,
        judge_fringes=judge_fringes,
        retrieve_fields=lambda stack, fringes, recipe: retrieve_fields(stack, recipe, fringes=fringes, device=device),
        judge_fields=judge_fields,
        reconstruct=lambda fields, recipe: reconstruct(fields, recipe, device=device),
        judge_tomogram=judge_tomogram,
        find_cells=lambda tomogram, recipe, first: find_cells(tomogram, recipe, first_number=first),
        measure=measure,
        judge_cell=judge_cell,
        predict=classifier.predict,
        picture=thumbnail_png,
        keep=_keeper(config),
        model_id=bundle.model_id,
        model_card=dict(bundle.card),
        companions=partial(companions_of, root=root),
        volumes_root=config.output.dir if config.output.keep_tomograms else None,
        discard=_discarder(config),
        demand_volumes=lambda paths: demand_volumes(config.output.dir, paths),
        close=readers.close if readers else lambda: None,
        settle_medium=settle_medium,
        judge_instrument=Instruments(config.output.dir).judge,
    )


class ReaderPool:
    """Isolated readers, each lent to one file at a time: a series keeps its own until its last volume is taken.

    One more is started when all are busy. The line holds three payloads at most (one is read, one waits, one is examined),
    and a payload of holograms needs its reader no longer once it is handed over; so there are seldom more than two.
    """

    def __init__(self, limits: LimitSettings, root: Path | None = None) -> None:
        self._root = root
        self._bounds = IsolationLimits.for_arrays(limits.max_logical_bytes)
        self._readers: list[IsolatedReader] = []
        self._lock = threading.Lock()

    def read(self, acquisition: Acquisition, *, defaults: ReadDefaults) -> tuple[Acquisition, Payload]:
        """As :func:`wbcd.acquisition.read`, in a child process that no open series is served by."""
        with self._lock:  # choosing a reader and making it busy are one step
            return self._free().read(acquisition, defaults)

    def _free(self) -> IsolatedReader:
        free = next((reader for reader in self._readers if not reader.busy), None)
        if free is None:
            free = IsolatedReader(self._bounds, root=self._root)
            self._readers.append(free)
        return free

    def close(self) -> None:
        """End their processes."""
        for reader in self._readers:
            reader.close()


def _keeper(config: Config) -> Callable[[Cell, Acquisition, Prediction | None], str | None]:
    # Absolute: a row is read by programs that were not started where the daemon was.
    root, recipe_id = config.output.dir.absolute(), config.recipe.recipe_id
    window = cast(Window, config.output.tomogram_window)  # one of the two: the configuration is checked

    def keep(cell: Cell, acquisition: Acquisition, prediction: Prediction | None) -> str | None:
        if not config.output.keep_tomograms:
            return None
        written = write_tomogram(root, cell, acquisition=acquisition, recipe_id=recipe_id, prediction=prediction, window=window)
        return str(written)

    return keep


def _discarder(config: Config) -> Callable[[str, Sequence[str]], object]:
    """Also where none are kept now: a daemon that kept them may have left some."""
    root = config.output.dir
    return lambda content_id, named: discard_tomograms(root, content_id=content_id, named=named)


def clean_output(config: Config) -> None:
    """Remove the half-written volumes of killed daemons from the output folder; a folder that refuses is left as it is."""
    try:
        removed = clean_stale(config.output.dir)
    except OSError as error:
        _log.warning("output.not_cleaned", folder=str(config.output.dir), reason=error.strerror)
        return
    if removed:
        _log.info("output.cleaned", folder=str(config.output.dir), removed=removed)


def open_ledger(config: Config, stages: Stages, *, retry: Retry | None = None) -> Ledger:
    """Open (and migrate) the database and name the recipe and the model that results will carry."""
    ledger = Ledger.open(config.database_url(), host=config.host, retry=retry)
    ledger.register(config.recipe, stages.model_id, stages.model_card)
    if learnt_simulated(stages.model_card):
        _log.warning("model.simulated", model=stages.model_id, message="model trained on simulated cells")
    return ledger
