"""When an instrument begins to drift from its calibration, and when it is back: said once each, not at each acquisition."""

from __future__ import annotations

from wbcd.records import Outcome

DRIFT = "instrument_drift"
UNNAMED = "instrument"
WARNING = 1.0
"""Tolerances of :mod:`wbcd.reconstruction.instrument`."""


class DriftWatch:
    """Tells when an instrument begins to drift and when it is back: one event a change, not one an acquisition."""

    def __init__(self) -> None:
        self._drifting: set[str] = set()

    def message(self, outcome: Outcome) -> str | None:
        """What to write of this outcome, or None."""
        if outcome.kind == "set_aside":
            return None
        check = next((one for one in outcome.verdict.checks if one.code == DRIFT), None)
        if check is None:
            return None
        name = outcome.acquisition.instrument_id or UNNAMED
        if (check.value > WARNING) == (name in self._drifting):
            return None
        if check.value > WARNING:
            self._drifting.add(name)
            return (
                f"{name} departs from its calibration by {check.value:.1f} tolerances "
                f"(from {outcome.acquisition.path.name} on); look at it with wbcd calibrate."
            )
        self._drifting.discard(name)
        return f"{name} agrees with its calibration again (from {outcome.acquisition.path.name} on)."
