"""The views and the triggers, as text: one wording of each view for SQLite and PostgreSQL alike.

The limits are Wilson's (J. Am. Stat. Assoc. 22:209, 1927; Newcombe 1998, method 3) at 95 %: with k of N and z = 1.95996

    (k + z^2/2 -+ z sqrt(k (N - k)/N + z^2/4)) / (N + z^2)

The root is taken by Newton's iteration in a recursive query: ``sqrt`` is absent from an SQLite built without
SQLITE_ENABLE_MATH_FUNCTIONS, and any ``sqlite3`` program must be able to read the view. It starts above the root, so it
descends monotonically: at most log2(root) halvings and then six quadratic steps; 40 reach 1e11 cells.

Of a time lapse only the first time point is counted: the same cell at fifty moments is one cell of the sample, not fifty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

Z_95: Final = 1.959963984540054
"""Standard normal quantile of 0.975."""

UTC_TEXT: Final = "%Y-%m-%dT%H:%M:%S.%fZ"
"""How SQLite holds a time: of fixed width, so that text order is time order."""

DIFFERENTIAL_COUNT: Final = """
CREATE VIEW differential_count AS
WITH RECURSIVE counted AS (
  SELECT sample.name AS sample, prediction.model_id AS model, run.recipe_id AS recipe,
         prediction.counted_as AS label, COUNT(*) AS n
  FROM run
  JOIN cell ON cell.run_id = run.id AND cell.accepted AND cell.time_index = 0
  JOIN prediction ON prediction.cell_id = cell.id
  JOIN acquisition ON acquisition.id = run.acquisition_id
  JOIN sample ON sample.id = acquisition.sample_id
  WHERE run.outcome = 'measured'
  GROUP BY sample.name, prediction.model_id, run.recipe_id, prediction.counted_as
), totalled AS (
  SELECT sample, model, recipe, label, n,
         CAST(SUM(n) OVER (PARTITION BY sample, model, recipe) AS BIGINT) AS total
  FROM counted
), newton (n, total, square, root, step) AS (
  SELECT n, total, square, 1.0 + square / 2.0, 0
  FROM (
    SELECT DISTINCT n, total,
           CAST(n AS DOUBLE PRECISION) * (total - n) / total + 0.9603647051735313 AS square
    FROM totalled
  ) AS pairs
  UNION ALL
  SELECT n, total, square, (root + square / root) / 2.0, step + 1 FROM newton WHERE step < 40
)
SELECT totalled.sample, totalled.model, totalled.recipe, totalled.label, totalled.n, totalled.total,
       CAST(totalled.n AS DOUBLE PRECISION) / totalled.total AS fraction,
       CASE WHEN totalled.n = 0 THEN 0.0
            ELSE (totalled.n + 1.9207294103470627 - 1.959963984540054 * newton.root)
                 / (totalled.total + 3.8414588206941255) END AS ci_low,
       CASE WHEN totalled.n = totalled.total THEN 1.0
            ELSE (totalled.n + 1.9207294103470627 + 1.959963984540054 * newton.root)
                 / (totalled.total + 3.8414588206941255) END AS ci_high
FROM totalled
JOIN newton ON newton.n = totalled.n AND newton.total = totalled.total AND newton.step = 40
"""

REJECTION_COUNT: Final = """
CREATE VIEW rejection_count AS
SELECT sample.name AS sample, run.model_id AS model, run.recipe_id AS recipe, run.outcome AS outcome,
       run.reason AS reason, COUNT(*) AS n, MAX(run.finished_at) AS last_at
FROM run
JOIN acquisition ON acquisition.id = run.acquisition_id
JOIN sample ON sample.id = acquisition.sample_id
WHERE run.outcome <> 'measured'
GROUP BY sample.name, run.model_id, run.recipe_id, run.outcome, run.reason
"""

CELL_REJECTION_COUNT: Final = """
CREATE VIEW cell_rejection_count AS
SELECT sample.name AS sample, run.model_id AS model, run.recipe_id AS recipe, cell.reason AS reason, COUNT(*) AS n
FROM cell
JOIN run ON run.id = cell.run_id
JOIN acquisition ON acquisition.id = run.acquisition_id
JOIN sample ON sample.id = acquisition.sample_id
WHERE NOT cell.accepted AND cell.time_index = 0
GROUP BY sample.name, run.model_id, run.recipe_id, cell.reason
"""

BACKLOG: Final = """
CREATE VIEW backlog AS
SELECT 'waiting' AS state, COUNT(DISTINCT source_file.content_id) AS n, MIN(source_file.seen_at) AS oldest, 0 AS max_tries
FROM source_file
WHERE NOT EXISTS (SELECT 1 FROM acquisition WHERE acquisition.content_id = source_file.content_id)
UNION ALL
SELECT 'begun', COUNT(*), MIN(acquisition.begun_at), COALESCE(MAX(acquisition.tries), 0)
FROM acquisition WHERE acquisition.tries > 0 AND acquisition.tries = 1
UNION ALL
SELECT 'retried', COUNT(*), MIN(acquisition.begun_at), COALESCE(MAX(acquisition.tries), 0)
FROM acquisition WHERE acquisition.tries > 0 AND acquisition.tries > 1
UNION ALL
SELECT 'companion', COUNT(*), MIN(acquisition.begun_at), 0
FROM acquisition WHERE acquisition.waits_for IS NOT NULL
"""

_IS_CURRENT: Final = """NOT EXISTS (
  SELECT 1 FROM run AS other
  WHERE other.acquisition_id = run.acquisition_id
    AND (COALESCE(other.asked_at, other.finished_at) > COALESCE(run.asked_at, run.finished_at)
         OR (COALESCE(other.asked_at, other.finished_at) = COALESCE(run.asked_at, run.finished_at) AND other.id > run.id))
)"""
"""Of one acquisition the result that was asked for last. One whose asking nobody wrote down was asked for when it was made."""

CURRENT_RUN: Final = f"""
CREATE VIEW current_run AS
SELECT run.id AS run_id, run.acquisition_id AS acquisition_id, run.recipe_id AS recipe, run.model_id AS model,
       run.outcome AS outcome
FROM run
WHERE {_IS_CURRENT}
"""
"""The one result that holds of each acquisition: that of the recipe and the model which were asked for last."""

CURRENT_COUNT: Final = DIFFERENTIAL_COUNT.replace("VIEW differential_count", "VIEW current_count").replace(
    "WHERE run.outcome = 'measured'", f"WHERE run.outcome = 'measured' AND {_IS_CURRENT}"
)
"""As ``differential_count``, of current results alone: no acquisition is in two rows of one class."""

CURRENT_CELL_COUNT: Final = """
CREATE VIEW current_cell_count AS
SELECT sample.name AS sample, counted.model AS model, counted.recipe AS recipe, counted.accepted AS accepted,
       counted.reason AS reason, counted.n AS n
FROM (
  SELECT acquisition.sample_id AS sample_id, current_run.model AS model, current_run.recipe AS recipe,
         cell.accepted AS accepted, CAST(NULL AS TEXT) AS reason, COUNT(*) AS n
  FROM current_run
  JOIN acquisition ON acquisition.id = current_run.acquisition_id
  JOIN cell ON cell.run_id = current_run.run_id AND cell.accepted AND cell.time_index = 0
  WHERE current_run.outcome = 'measured'
  GROUP BY acquisition.sample_id, current_run.model, current_run.recipe, cell.accepted
  UNION ALL
  SELECT acquisition.sample_id, current_run.model, current_run.recipe, cell.accepted, cell.reason, COUNT(*)
  FROM current_run
  JOIN acquisition ON acquisition.id = current_run.acquisition_id
  JOIN cell ON cell.run_id = current_run.run_id AND NOT cell.accepted AND cell.time_index = 0
  GROUP BY acquisition.sample_id, current_run.model, current_run.recipe, cell.accepted, cell.reason
) AS counted
JOIN sample ON sample.id = counted.sample_id
"""
"""Cells of current results, of the first time point: those that count (accepted, of a measured acquisition; ``reason`` is NULL)
and those that were refused, by reason."""

RUN_RESULT: Final = f"""
CREATE VIEW run_result AS
SELECT run.id AS run_id, sample.name AS sample, acquisition.path AS file, acquisition.content_id AS content_id,
       acquisition.instrument_id AS instrument_id, acquisition.acquired_at AS acquired_at,
       run.outcome AS outcome, run.reason AS reason, run.message AS message, run.tries AS tries, run.seconds AS seconds,
       run.recipe_id AS recipe, run.model_id AS model, model.simulated AS simulated_model, run.wbcd_version AS wbcd_version,
       run.finished_at AS finished_at, run.asked_at AS asked_at, run.companions_changed_at AS companions_changed_at,
       {_IS_CURRENT} AS is_current
FROM run
JOIN acquisition ON acquisition.id = run.acquisition_id
JOIN sample ON sample.id = acquisition.sample_id
JOIN model ON model.id = run.model_id
"""
"""One row an outcome with everything about it; ``is_current`` as in current_run."""

CELL_RESULT: Final = f"""
CREATE VIEW cell_result AS
SELECT cell.id AS cell_id, sample.name AS sample, acquisition.path AS file, acquisition.content_id AS content_id,
       acquisition.instrument_id AS instrument_id, acquisition.acquired_at AS acquired_at,
       run.outcome AS outcome,
       cell.number AS number, cell.time_index AS time_index, cell.accepted AS accepted, cell.reason AS reason,
       prediction.counted_as AS counted_as, prediction.label AS label, prediction.probability AS probability,
       prediction.flags AS flags,
       cell.volume_fl AS volume_fl, cell.surface_area_um2 AS surface_area_um2, cell.sphericity AS sphericity,
       cell.dry_mass_pg AS dry_mass_pg, cell.protein_density_g_dl AS protein_density_g_dl, cell.mean_ri AS mean_ri,
       cell.volume_uncertainty_fl AS volume_uncertainty_fl, cell.dry_mass_uncertainty_pg AS dry_mass_uncertainty_pg,
       cell.mean_ri_uncertainty AS mean_ri_uncertainty,
       reading.label AS review, reading.reviewer AS reviewer, reading.at AS reviewed_at,
       run.recipe_id AS recipe, run.model_id AS model, model.simulated AS simulated_model,
       run.wbcd_version AS wbcd_version, run.finished_at AS finished_at,
       {_IS_CURRENT} AS is_current,
       cell.tomogram_path AS tomogram_path
FROM cell
JOIN run ON run.id = cell.run_id
JOIN acquisition ON acquisition.id = run.acquisition_id
JOIN sample ON sample.id = acquisition.sample_id
JOIN model ON model.id = run.model_id
LEFT JOIN prediction ON prediction.cell_id = cell.id AND prediction.model_id = run.model_id
LEFT JOIN review AS reading ON reading.id = (SELECT MAX(review.id) FROM review WHERE review.cell_id = cell.id)
"""
"""One row a cell with everything about it; ``review`` is the newest reading of a person, ``is_current`` as in current_run."""

CELL_PICTURE: Final = """
CREATE VIEW cell_picture AS
SELECT cell.id AS cell_id, cell.thumbnail_png AS thumbnail_png FROM cell
"""
"""The picture of each cell, for those who may not read the tables."""

KNOWN_MODEL: Final = """
CREATE VIEW known_model AS
SELECT model.id AS model, model.simulated AS simulated, model.registered_at AS registered_at FROM model
"""
"""The models that were at work, without their cards, which may name donors."""

LABELLED_SAMPLE: Final = """
CREATE VIEW labelled_sample AS
SELECT sample_label.id AS label_id, sample.name AS sample, sample_label.label AS label, sample_label.purity AS purity,
       sample_label.labelled_by AS labelled_by, sample_label.note AS note, sample_label.at AS at
FROM sample_label
JOIN sample ON sample.id = sample_label.sample_id
"""
"""Every label ever given to a sample; the newest of a sample, by ``label_id``, holds."""

JOURNAL: Final = """
CREATE VIEW journal AS
SELECT event.id AS event_id, event.at AS at, event.kind AS kind, event.code AS code, event.message AS message FROM event
"""
"""The events as sentences."""

_KNOWN_CLASS: Final = """
CREATE VIEW known_class AS
SELECT {label} AS label, 'model' AS source, model.id AS model FROM model {classes}
UNION
SELECT sample_label.label, 'sample', CAST(NULL AS TEXT) FROM sample_label
UNION
SELECT review.label, 'review', CAST(NULL AS TEXT) FROM review
"""

KNOWN_CLASS: Final[Mapping[str, str]] = {
    "sqlite": _KNOWN_CLASS.format(label="item.value", classes="JOIN json_each(model.card, '$.wbcd.classes') AS item"),
    "postgresql": _KNOWN_CLASS.format(
        label="item.label",
        classes="""CROSS JOIN LATERAL jsonb_array_elements_text(
  CASE WHEN jsonb_typeof(model.card->'wbcd'->'classes') = 'array' THEN model.card->'wbcd'->'classes'
       ELSE CAST('[]' AS JSONB) END) AS item (label)""",
    ),
}
"""Every class that a model has, or that a person named. The one view in two wordings: the databases read JSON differently,
and an SQLite before 3.38, which knows neither ``->`` nor ``->>``, could open no database with a view that has them."""

CELL_LABEL: Final = """
CREATE VIEW cell_label AS
SELECT cell.id AS cell_id, review.label AS label, 'review' AS source, CAST(NULL AS DOUBLE PRECISION) AS purity
FROM (SELECT MAX(id) AS id FROM review GROUP BY cell_id) AS newest
JOIN review ON review.id = newest.id
JOIN cell ON cell.id = review.cell_id AND cell.accepted
UNION ALL
SELECT cell.id, sample_label.label, 'sample', sample_label.purity
FROM (SELECT MAX(id) AS id FROM sample_label GROUP BY sample_id) AS newest
JOIN sample_label ON sample_label.id = newest.id
JOIN acquisition ON acquisition.sample_id = sample_label.sample_id
JOIN run ON run.acquisition_id = acquisition.id
JOIN cell ON cell.run_id = run.id AND cell.accepted
WHERE NOT EXISTS (SELECT 1 FROM review WHERE review.cell_id = cell.id)
"""
"""The label that holds of each accepted cell that has one: a person's newest reading of it, else its sample's newest label."""

VIEWS: Final = {
    "differential_count": DIFFERENTIAL_COUNT,
    "rejection_count": REJECTION_COUNT,
    "cell_rejection_count": CELL_REJECTION_COUNT,
    "backlog": BACKLOG,
    "cell_label": CELL_LABEL,
    "current_run": CURRENT_RUN,
    "current_count": CURRENT_COUNT,
    "current_cell_count": CURRENT_CELL_COUNT,
    "run_result": RUN_RESULT,
    "cell_result": CELL_RESULT,
    "cell_picture": CELL_PICTURE,
    "known_model": KNOWN_MODEL,
    "labelled_sample": LABELLED_SAMPLE,
    "journal": JOURNAL,
}
"""Those that have one wording for both databases."""

VIEW_NAMES: Final = (*VIEWS, "known_class")


def views(dialect: str) -> dict[str, str]:
    """The statement that makes each view, on "sqlite" or "postgresql"."""
    return {**VIEWS, "known_class": KNOWN_CLASS[dialect]}


APPEND_ONLY: Final = ("event", "review", "sample_label")
"""Tables whose rows are never changed or removed; the database itself refuses."""

POSTGRES_GUARD: Final = """
CREATE FUNCTION wbcd_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$
"""


def append_only_triggers(dialect: str) -> list[str]:
    """Statements that make :data:`APPEND_ONLY` so, on one dialect."""
    if dialect == "postgresql":
        return [POSTGRES_GUARD] + [
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION wbcd_append_only()"
            for table in APPEND_ONLY
        ]
    return [
        f"CREATE TRIGGER {table}_append_only_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for table in APPEND_ONLY
        for verb in ("UPDATE", "DELETE")
    ]


_STANDING: Final = ("acquisition_id", "recipe_id", "model_id", "outcome", "reason", "tries", "finished_at", "wbcd_version")
"""Columns of ``run`` that change only where the outcome was opened again."""

_POSTGRES_RESULT_GUARD: Final = """
CREATE FUNCTION wbcd_result_stands() RETURNS trigger LANGUAGE plpgsql AS
$$
BEGIN
  IF TG_TABLE_NAME = 'run' THEN
    IF OLD.reopened_at IS NOT NULL THEN
      IF TG_OP = 'DELETE' THEN
        RETURN OLD;
      END IF;
      RETURN NEW;
    END IF;
    RAISE EXCEPTION 'run % stands: its outcome was not opened again', OLD.id;
  END IF;
  IF TG_TABLE_NAME = 'cell' THEN
    IF EXISTS (SELECT 1 FROM run WHERE run.id = OLD.run_id AND run.reopened_at IS NOT NULL) THEN
      RETURN OLD;
    END IF;
  ELSIF EXISTS (SELECT 1 FROM cell JOIN run ON run.id = cell.run_id
                WHERE cell.id = OLD.cell_id AND run.reopened_at IS NOT NULL) THEN
    RETURN OLD;
  END IF;
  RAISE EXCEPTION 'a row of % stands: its outcome was not opened again', TG_TABLE_NAME;
END
$$
"""


def result_guards(dialect: str) -> list[str]:
    """Statements that let an outcome and its cells be replaced only while it is opened again (``run.reopened_at``)."""
    if dialect == "postgresql":
        columns = ", ".join(_STANDING)
        return [
            _POSTGRES_RESULT_GUARD,
            f"CREATE TRIGGER run_stands BEFORE UPDATE OF {columns} ON run FOR EACH ROW EXECUTE FUNCTION wbcd_result_stands()",
            *(
                f"CREATE TRIGGER {table}_stands BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION wbcd_result_stands()"
                for table in ("cell", "prediction")
            ),
            "CREATE TRIGGER run_kept BEFORE DELETE ON run FOR EACH ROW EXECUTE FUNCTION wbcd_result_stands()",
        ]
    return [
        f"CREATE TRIGGER run_stands BEFORE UPDATE OF {', '.join(_STANDING)} ON run WHEN OLD.reopened_at IS NULL "
        "BEGIN SELECT RAISE(ABORT, 'the outcome stands: it was not opened again'); END",
        "CREATE TRIGGER run_kept BEFORE DELETE ON run WHEN OLD.reopened_at IS NULL "
        "BEGIN SELECT RAISE(ABORT, 'the outcome stands: it was not opened again'); END",
        "CREATE TRIGGER cell_stands BEFORE DELETE ON cell "
        "WHEN NOT EXISTS (SELECT 1 FROM run WHERE run.id = OLD.run_id AND run.reopened_at IS NOT NULL) "
        "BEGIN SELECT RAISE(ABORT, 'the cell stands: its outcome was not opened again'); END",
        "CREATE TRIGGER prediction_stands BEFORE DELETE ON prediction "
        "WHEN NOT EXISTS (SELECT 1 FROM cell JOIN run ON run.id = cell.run_id "
        "WHERE cell.id = OLD.cell_id AND run.reopened_at IS NOT NULL) "
        "BEGIN SELECT RAISE(ABORT, 'the prediction stands: its outcome was not opened again'); END",
    ]


_SQLITE_CHAIN: Final = (
    """
CREATE TRIGGER {table}_chained BEFORE INSERT ON {table}
WHEN NEW.row_hash IS NULL
  OR NEW.id IS NOT (SELECT last_id + 1 FROM audit_head WHERE name = '{table}')
  OR NEW.previous_hash IS NOT (SELECT row_hash FROM audit_head WHERE name = '{table}')
BEGIN SELECT RAISE(ABORT, '{table} is a hash chain: rows are added by wbcd only'); END
""",
    """
CREATE TRIGGER {table}_head AFTER INSERT ON {table}
BEGIN UPDATE audit_head SET last_id = NEW.id, row_hash = NEW.row_hash WHERE name = '{table}'; END
""",
)

_POSTGRES_CHAIN: Final = (
    """
CREATE FUNCTION wbcd_chain_{table}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "{schema}", pg_temp AS
$$
BEGIN
  UPDATE audit_head SET last_id = last_id + 1 WHERE name = '{table}' RETURNING last_id, row_hash INTO NEW.id, NEW.previous_hash;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'audit_head has no row for {table}';
  END IF;
  NEW.at := COALESCE(NEW.at, clock_timestamp());
  NEW.row_hash := encode(sha256(convert_to(CAST(
    jsonb_build_array('{table}', CAST(NEW.id AS TEXT), NEW.previous_hash, {values}) AS TEXT), 'UTF8')), 'hex');
  UPDATE audit_head SET row_hash = NEW.row_hash WHERE name = '{table}';
  RETURN NEW;
END
$$
""",
    """
CREATE TRIGGER {table}_chained BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION wbcd_chain_{table}()
""",
)

_POSTGRES_VALUES: Final = {
    "text": "NEW.{column}",
    "number": "CAST(NEW.{column} AS TEXT)",
    "double": "encode(float8send(NEW.{column}), 'hex')",
    "time": "to_char(NEW.{column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    "json": "CAST(NEW.{column} AS TEXT)",
}


def chain_triggers(dialect: str, table: str, columns: Mapping[str, str], schema: str = "public") -> list[str]:
    """Statements that make ``table`` a hash chain (:mod:`wbcd.store.chain`); ``columns``: name -> kind.

    On PostgreSQL the function runs with its owner's rights, for whoever may insert must not be able to move the head; the row
    of ``audit_head`` that it updates stays locked until the end of the transaction, which makes the order of the ids the order
    of the chain.
    """
    if dialect == "sqlite":
        return [statement.format(table=table) for statement in _SQLITE_CHAIN]
    values = ", ".join(_POSTGRES_VALUES[kind].format(column=column) for column, kind in columns.items())
    return [statement.format(table=table, values=values, schema=schema) for statement in _POSTGRES_CHAIN]
