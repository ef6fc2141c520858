"""An instrument that departs from its calibration: told once when it begins and once when it ends, refused far off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from helpers_line import MemoryLedger, RecordingLog, fake_stages, identify, quick_config

from wbcd.daemon.pipeline import Pipeline
from wbcd.records import Acquisition, Check, FringeReport, HologramStack, Optics, Tomogram, Verdict

STACK = HologramStack(np.zeros((1, 2, 2), np.uint8), None, None, 0, Optics(0.532, 1.2, 1.337, 0.0625))
FRINGES = FringeReport((30.0, 30.0), *(np.ones(1) for _ in range(4)))
SHARP = Tomogram(np.ones((2, 2, 2), np.float32), (0.2, 0.1, 0.1), 1.337)


def test_drift_is_an_event_when_it_begins_and_when_it_ends(tmp_path: Path) -> None:
    def judged(acquisition: Acquisition, *_: object) -> Verdict:
        drift = {"a": 0.2, "b": 3.0, "c": 4.0, "d": 30.0, "e": 0.1}[acquisition.path.stem]
        return Verdict((Check("instrument_drift", drift, 10.0, "max", "tolerances"),))

    nothing = Verdict()
    stages = fake_stages(
        read=lambda acquisition: (replace(acquisition, instrument_id="rig 1"), STACK),
        measure_fringes=lambda *_: FRINGES,
        judge_fringes=lambda *_: nothing,
        judge_fields=lambda *_: nothing,
        judge_instrument=judged,
        reconstruct=lambda *_: [SHARP],
    )
    log, ledger = RecordingLog(), MemoryLedger()
    pipeline = Pipeline(quick_config(tmp_path), stages, lambda: ledger, log=log)
    pipeline.start()
    try:
        for count, name in enumerate("abcde", start=1):  # one after another: the order is what matters here
            path = tmp_path / f"{name}.h5"
            path.write_text(f"1 {name}")
            assert identify(path)
            assert pipeline.offer(path)
            log.wait_for("outcome", count)
    finally:
        pipeline.stop(20.0)
    told = [message for kind, message, _ in ledger.events if kind == "instrument_drift"]
    assert len(told) == 2
    assert "rig 1 departs from its calibration by 3.0 tolerances (from b.h5 on)" in told[0]
    assert "agrees with its calibration again (from e.h5 on)" in told[1]
    refused = [outcome for outcome in ledger.outcomes.values() if outcome.kind == "rejected"]
    assert [(one.acquisition.path.name, one.reason) for one in refused] == [("d.h5", "instrument_drift")]
    checks = {one.acquisition.path.name: one.verdict.checks[0].value for one in ledger.outcomes.values()}
    assert checks["c.h5"] == 4.0
