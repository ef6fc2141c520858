"""The limits in the SQL views against the closed formula and against scipy, on both databases and without SQL functions."""

from __future__ import annotations

import math
import shutil
import sqlite3
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
from helpers_store import KEY
from scipy.stats import binomtest, norm

from wbcd.records import LINEAGE
from wbcd.report.counts import lineage_counts, read_differential, wilson_limits
from wbcd.store import Ledger
from wbcd.store.views import DIFFERENTIAL_COUNT, Z_95
from wbcd.testing import make_cell, make_measured

CASES = [(0, 1), (1, 1), (1, 2), (0, 17), (17, 17), (3, 17), (250, 1000), (999, 1000), (1, 100_000), (123_456, 1_000_000)]


def exact_limits(n: int, total: int) -> tuple[float, float]:
    """Roots of (p - q)^2 = z^2 q (1 - q) / total in q, with the root taken of an exact rational."""
    z2 = Fraction(Z_95) ** 2
    centre = n + z2 / 2
    square = z2 * (Fraction(n * (total - n), total) + z2 / 4)
    scale = 2**120  # integer square root with 60 binary places
    half = Fraction(math.isqrt(int(square * scale)), 2**60)
    return float((centre - half) / (total + z2)), float((centre + half) / (total + z2))


def insert_counts(path: Path, counts: dict[str, int]) -> None:
    """As many cells as wanted beside the one that is there, straight by SQL: commits would take a while."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN")
    for label, n in counts.items():
        connection.execute(
            "WITH RECURSIVE i (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < ?) "
            "INSERT INTO cell (run_id, number, time_index, accepted, checks) "
            "SELECT 1, n + (SELECT COUNT(*) FROM cell), 0, 1, '[]' FROM i",
            (n,),
        )
        connection.execute(
            "INSERT INTO prediction (cell_id, model_id, label, probability, probabilities, flags, counted_as) "
            "SELECT id, 'model@1', ?1, 1, '{}', '[]', ?1 FROM cell WHERE id > 1 AND id NOT IN (SELECT cell_id FROM prediction)",
            (label,),
        )
    connection.execute("COMMIT")
    connection.close()


def test_the_quantile() -> None:
    assert float(norm.ppf(0.975)) == pytest.approx(Z_95, abs=1e-15)


@pytest.mark.parametrize(("n", "total"), CASES)
def test_formula_in_python(n: int, total: int) -> None:
    scipy = binomtest(n, total).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_limits(n, total) == pytest.approx((scipy.low, scipy.high), abs=1e-12)
    assert wilson_limits(n, total) == pytest.approx(exact_limits(n, total), abs=1e-14)


def test_nothing_counted_is_nothing_known() -> None:
    assert wilson_limits(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("counts", [{"a": 1}, {"a": 3, "b": 14}, {"a": 1, "b": 2, "c": 997}, {"a": 5, "b": 40_000}])
def test_view_on_sqlite(sqlite_ledger: Ledger, tmp_path: Path, counts: dict[str, int]) -> None:
    sqlite_ledger.commit(make_measured("x", make_cell(None)), *KEY)
    sqlite_ledger.close()
    insert_counts(tmp_path / "wbcd.db", counts)
    rows = read_differential(tmp_path / "wbcd.db")
    assert {row.label: row.n for row in rows} == counts
    for row in rows:
        assert row.total == sum(counts.values())
        assert row.fraction == row.n / row.total
        assert (row.ci_low, row.ci_high) == pytest.approx(exact_limits(row.n, row.total), abs=1e-14)


def test_view_on_both_databases(any_ledger: Ledger, any_url: str) -> None:
    labels = ["b_lymphocyte"] * 5 + ["t_lymphocyte"] * 11 + ["monocyte"] + ["myelocyte"] * 3
    for number, label in enumerate(labels):
        any_ledger.commit(make_measured(f"{number}", make_cell(label), sample="S1" if number % 2 else "S2"), *KEY)
    rows = read_differential(any_url)
    order = [row.label for row in rows if row.sample == "S2"]
    assert order == ["b_lymphocyte", "t_lymphocyte", "monocyte", "myelocyte"]
    assert sum(row.n for row in rows) == 20
    for row in rows:
        assert (row.ci_low, row.ci_high) == pytest.approx(exact_limits(row.n, row.total), abs=1e-14)
    assert read_differential(any_url, "S2") == [row for row in rows if row.sample == "S2"]


def test_lineages_have_limits_of_their_own(any_ledger: Ledger, any_url: str) -> None:
    for number, label in enumerate(["b_lymphocyte", "t_lymphocyte", "t_lymphocyte", "monocyte", "erythroblast"]):
        any_ledger.commit(make_measured(f"{number}", make_cell(label)), *KEY)
    lymphoid, myeloid = lineage_counts(read_differential(any_url))
    assert (lymphoid.label, lymphoid.n, lymphoid.total, lymphoid.fraction) == ("lymphoid", 3, 5, 0.6)
    assert (lymphoid.ci_low, lymphoid.ci_high) == pytest.approx(exact_limits(3, 5), abs=1e-14)
    assert (myeloid.label, myeloid.n) == ("myeloid", 1)


def test_the_view_needs_no_mathematical_function_of_sqlite(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    sqlite_ledger.commit(make_measured("x"), *KEY)
    connection = sqlite3.connect(tmp_path / "wbcd.db")
    for name, arguments in (("sqrt", 1), ("pow", 2), ("power", 2), ("exp", 1), ("ln", 1)):
        connection.create_function(name, arguments, None)  # as in a build without SQLITE_ENABLE_MATH_FUNCTIONS
    with pytest.raises(sqlite3.OperationalError):
        connection.execute("SELECT sqrt(2)")
    assert connection.execute("SELECT n, ci_high FROM differential_count").fetchone() == (1, 1.0)
    connection.close()
    assert "sqrt" not in DIFFERENTIAL_COUNT


def test_the_sqlite3_program_reads_the_view(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    program = shutil.which("sqlite3")
    if program is None:
        pytest.skip("the sqlite3 program is not here")
    sqlite_ledger.commit(make_measured("x"), *KEY)
    said = subprocess.run(
        [program, tmp_path / "wbcd.db", "select * from differential_count"], capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("S1|model@1|")
    assert "|b_lymphocyte|1|1|1.0|0.2065" in said.stdout


def test_the_counts_sum_what_a_model_of_two_classes_learns(any_ledger: Ledger, any_url: str) -> None:
    """One table of lineages: with two, a plasma cell was of one in training and of neither in the counts."""
    labels = ["nk_cell", "plasma_cell", "lymphocyte", "t_lymphocyte", "metamyelocyte", "promyelocyte", "granulocyte"]
    for number, label in enumerate(labels):
        any_ledger.commit(make_measured(f"{number}", make_cell(label)), *KEY)
    assert [(row.label, row.n) for row in lineage_counts(read_differential(any_url))] == [("lymphoid", 4), ("myeloid", 3)]
    assert {LINEAGE[label] for label in labels} == {"lymphoid", "myeloid"}
