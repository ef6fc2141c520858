"""Quality as measured on simulated acquisitions: half of them with a defect of each kind in turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_quality import judged, table

ACQUISITIONS = 120
SEED = 7


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_defective_acquisitions_are_refused_and_good_ones_are_not(tmp_path: Path) -> None:
    rows = []
    for row in judged(tmp_path, ACQUISITIONS, 0.5, SEED):
        rows.append(row)
        print(f"{row.name} {row.kind:14s} {row.defect!s:16s} {row.strength:7.3f} -> {row.reason}", flush=True)
        print("   ", {code: round(value, 4) for code, value in row.values.items()}, flush=True)
    for line in table(rows):
        print(line)
    bad = [row for row in rows if row.defect is not None]
    good = [row for row in rows if row.defect is None]
    print(f"defective: {sum(r.rejected_rightly for r in bad)} of {len(bad)} refused for the right reason")
    print(f"good: {sum(r.reason is not None for r in good)} of {len(good)} refused")
    assert sum(row.rejected_rightly for row in bad) >= 0.9 * len(bad)
    assert sum(row.reason is not None for row in good) <= 0.05 * len(good)
