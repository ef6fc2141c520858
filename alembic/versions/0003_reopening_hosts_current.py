"""Outcomes that can be opened again, files of several machines, the current result, one row a cell.

Revision: 0003, after 0002.
A migration is frozen: it repeats what it needs and imports nothing of wbcd, so that later changes cannot alter it.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TIME = sa.String(27).with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
ANY_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

BACKLOG = """
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

OLD_BACKLOG = """
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
"""

CURRENT_RUN = """
CREATE VIEW current_run AS
SELECT run.id AS run_id, run.acquisition_id AS acquisition_id, run.recipe_id AS recipe, run.model_id AS model,
       run.outcome AS outcome
FROM run
WHERE NOT EXISTS (
  SELECT 1 FROM run AS other
  WHERE other.acquisition_id = run.acquisition_id
    AND (COALESCE(other.asked_at, other.finished_at) > COALESCE(run.asked_at, run.finished_at)
         OR (COALESCE(other.asked_at, other.finished_at) = COALESCE(run.asked_at, run.finished_at) AND other.id > run.id))
)
"""

CURRENT_COUNT = """
CREATE VIEW current_count AS
WITH RECURSIVE counted AS (
  SELECT sample.name AS sample, prediction.model_id AS model, run.recipe_id AS recipe,
         prediction.counted_as AS label, COUNT(*) AS n
  FROM run
  JOIN cell ON cell.run_id = run.id AND cell.accepted AND cell.time_index = 0
  JOIN prediction ON prediction.cell_id = cell.id
  JOIN acquisition ON acquisition.id = run.acquisition_id
  JOIN sample ON sample.id = acquisition.sample_id
  WHERE run.outcome = 'measured' AND NOT EXISTS (
  SELECT 1 FROM run AS other
  WHERE other.acquisition_id = run.acquisition_id
    AND (COALESCE(other.asked_at, other.finished_at) > COALESCE(run.asked_at, run.finished_at)
         OR (COALESCE(other.asked_at, other.finished_at) = COALESCE(run.asked_at, run.finished_at) AND other.id > run.id))
)
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

CURRENT_CELL_COUNT = """
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

RUN_RESULT = """
CREATE VIEW run_result AS
SELECT run.id AS run_id, sample.name AS sample, acquisition.path AS file, acquisition.content_id AS content_id,
       acquisition.instrument_id AS instrument_id, acquisition.acquired_at AS acquired_at,
       run.outcome AS outcome, run.reason AS reason, run.message AS message, run.tries AS tries, run.seconds AS seconds,
       run.recipe_id AS recipe, run.model_id AS model, model.simulated AS simulated_model, run.wbcd_version AS wbcd_version,
       run.finished_at AS finished_at, run.asked_at AS asked_at, run.companions_changed_at AS companions_changed_at,
       NOT EXISTS (
  SELECT 1 FROM run AS other
  WHERE other.acquisition_id = run.acquisition_id
    AND (COALESCE(other.asked_at, other.finished_at) > COALESCE(run.asked_at, run.finished_at)
         OR (COALESCE(other.asked_at, other.finished_at) = COALESCE(run.asked_at, run.finished_at) AND other.id > run.id))
) AS is_current
FROM run
JOIN acquisition ON acquisition.id = run.acquisition_id
JOIN sample ON sample.id = acquisition.sample_id
JOIN model ON model.id = run.model_id
"""

CELL_RESULT = """
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
       NOT EXISTS (
  SELECT 1 FROM run AS other
  WHERE other.acquisition_id = run.acquisition_id
    AND (COALESCE(other.asked_at, other.finished_at) > COALESCE(run.asked_at, run.finished_at)
         OR (COALESCE(other.asked_at, other.finished_at) = COALESCE(run.asked_at, run.finished_at) AND other.id > run.id))
) AS is_current,
       cell.tomogram_path AS tomogram_path
FROM cell
JOIN run ON run.id = cell.run_id
JOIN acquisition ON acquisition.id = run.acquisition_id
JOIN sample ON sample.id = acquisition.sample_id
JOIN model ON model.id = run.model_id
LEFT JOIN prediction ON prediction.cell_id = cell.id AND prediction.model_id = run.model_id
LEFT JOIN review AS reading ON reading.id = (SELECT MAX(review.id) FROM review WHERE review.cell_id = cell.id)
"""

CELL_PICTURE = """
CREATE VIEW cell_picture AS
SELECT cell.id AS cell_id, cell.thumbnail_png AS thumbnail_png FROM cell
"""

KNOWN_MODEL = """
CREATE VIEW known_model AS
SELECT model.id AS model, model.simulated AS simulated, model.registered_at AS registered_at FROM model
"""

LABELLED_SAMPLE = """
CREATE VIEW labelled_sample AS
SELECT sample_label.id AS label_id, sample.name AS sample, sample_label.label AS label, sample_label.purity AS purity,
       sample_label.labelled_by AS labelled_by, sample_label.note AS note, sample_label.at AS at
FROM sample_label
JOIN sample ON sample.id = sample_label.sample_id
"""

JOURNAL = """
CREATE VIEW journal AS
SELECT event.id AS event_id, event.at AS at, event.kind AS kind, event.code AS code, event.message AS message FROM event
"""

KNOWN_CLASS = {
    "sqlite": """
CREATE VIEW known_class AS
SELECT item.value AS label, 'model' AS source, model.id AS model FROM model JOIN json_each(model.card, '$.wbcd.classes') AS item
UNION
SELECT sample_label.label, 'sample', CAST(NULL AS TEXT) FROM sample_label
UNION
SELECT review.label, 'review', CAST(NULL AS TEXT) FROM review
""",
    "postgresql": """
CREATE VIEW known_class AS
SELECT item.label AS label, 'model' AS source, model.id AS model FROM model CROSS JOIN LATERAL jsonb_array_elements_text(
  CASE WHEN jsonb_typeof(model.card->'wbcd'->'classes') = 'array' THEN model.card->'wbcd'->'classes'
       ELSE CAST('[]' AS JSONB) END) AS item (label)
UNION
SELECT sample_label.label, 'sample', CAST(NULL AS TEXT) FROM sample_label
UNION
SELECT review.label, 'review', CAST(NULL AS TEXT) FROM review
""",
}

VIEWS = (
    BACKLOG,
    CURRENT_RUN,
    CURRENT_COUNT,
    CURRENT_CELL_COUNT,
    RUN_RESULT,
    CELL_RESULT,
    CELL_PICTURE,
    KNOWN_MODEL,
    LABELLED_SAMPLE,
    JOURNAL,
)

STANDING = ("acquisition_id", "recipe_id", "model_id", "outcome", "reason", "tries", "finished_at", "wbcd_version")

POSTGRES_RESULT_GUARD = """
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


def upgrade() -> None:
    for column in ("begun_host", "waits_for", "volumes_root"):
        op.add_column("acquisition", sa.Column(column, sa.Text(), nullable=True))
    op.add_column("acquisition", sa.Column("volumes_tries", sa.Integer(), nullable=False, server_default="0"))
    add_run_columns()
    run("DROP VIEW backlog")  # SQLite would make it follow the renamed table
    rebuild_source_file(keyed_by_host=True)
    for name, table, column in INDEXES:
        where = sa.text(f"{column} IS NOT NULL")
        shown = (
            "id"
            if column in ("waits_for", "companions_changed_at")
            else "acquisition_id"
            if column == "reopened_at"
            else column
        )
        op.create_index(name, table, [shown], unique=False, sqlite_where=where, postgresql_where=where)
    for statement in (*VIEWS, KNOWN_CLASS[op.get_bind().dialect.name], *guards()):
        run(statement)
    mend_simulated()


def downgrade() -> None:
    """Companions, conditions and versions of runs are forgotten; of two machines' files of one path one is kept."""
    for statement in guards_off():
        run(statement)
    for statement in reversed((*VIEWS, KNOWN_CLASS["sqlite"])):
        run(f"DROP VIEW {statement.split()[2]}")
    for name, table, _ in INDEXES:
        op.drop_index(name, table_name=table)
    rebuild_source_file(keyed_by_host=False)
    run(OLD_BACKLOG)
    for column in ("asked_at", "wbcd_version", "companions", "conditions", "companions_changed_at", "reopened_at"):
        run(f"ALTER TABLE run DROP COLUMN {column}")
    for column in ("begun_host", "waits_for", "volumes_root", "volumes_tries"):
        run(f"ALTER TABLE acquisition DROP COLUMN {column}")


INDEXES = (
    ("ix_acquisition_waits", "acquisition", "waits_for"),
    ("ix_acquisition_volumes", "acquisition", "volumes_root"),
    ("ix_acquisition_instrument_acquisition_id", "acquisition", "instrument_acquisition_id"),
    ("ix_run_companions_changed", "run", "companions_changed_at"),
    ("ix_run_reopened", "run", "reopened_at"),
)


def run(statement: str) -> None:
    """As it stands: ``op.execute`` would take a colon for a parameter."""
    op.get_bind().exec_driver_sql(statement)


def on_postgres() -> bool:
    return bool(op.get_bind().dialect.name == "postgresql")


def add_run_columns() -> None:
    """An outcome of before is asked for when it was made, by a version that nobody wrote down."""
    op.add_column("run", sa.Column("wbcd_version", sa.Text(), nullable=False, server_default="unknown"))
    op.add_column("run", sa.Column("companions", ANY_JSON, nullable=True))
    op.add_column("run", sa.Column("conditions", ANY_JSON, nullable=True))
    op.add_column("run", sa.Column("companions_changed_at", TIME, nullable=True))
    op.add_column("run", sa.Column("reopened_at", TIME, nullable=True))
    op.add_column("run", sa.Column("asked_at", TIME, nullable=True))
    run("UPDATE run SET asked_at = finished_at")


def rebuild_source_file(*, keyed_by_host: bool) -> None:
    """The key of a table is changed by a copy, on both databases."""
    op.drop_index("ix_source_file_content_id", table_name="source_file")
    run("ALTER TABLE source_file RENAME TO old_source_file")
    if on_postgres():
        run("ALTER TABLE old_source_file DROP CONSTRAINT pk_source_file")
    columns = [
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("content_id", sa.Text(), nullable=False),
        sa.Column("seen_at", TIME, nullable=False),
    ]
    added = [
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, server_default=""),
        sa.Column("companions", ANY_JSON, nullable=True),
    ]
    key = ["host", "path"] if keyed_by_host else ["path"]
    op.create_table(
        "source_file",
        *(added + columns if keyed_by_host else columns),
        sa.PrimaryKeyConstraint(*key, name=op.f("pk_source_file")),
    )
    names = "path, size_bytes, mtime_ns, content_id, seen_at"
    if keyed_by_host:
        run(f"INSERT INTO source_file (host, {names}) SELECT '', {names} FROM old_source_file")
    else:
        run(
            f"INSERT INTO source_file ({names}) SELECT {names} FROM old_source_file AS one WHERE NOT EXISTS "
            "(SELECT 1 FROM old_source_file AS other WHERE other.path = one.path AND other.host < one.host)"
        )
    op.drop_table("old_source_file")
    op.create_index("ix_source_file_content_id", "source_file", ["content_id"], unique=False)


def mend_simulated() -> None:
    """The flag was read from the top of the card, where no card has it: it lies one level down, and holds unless it says no."""
    if on_postgres():
        run("UPDATE model SET simulated = COALESCE(CAST(card->'wbcd'->>'simulated' AS BOOLEAN), TRUE)")
    else:
        run("UPDATE model SET simulated = COALESCE(json_extract(card, '$.wbcd.simulated'), 1)")


def guards() -> list[str]:
    if on_postgres():
        columns = ", ".join(STANDING)
        return [
            POSTGRES_RESULT_GUARD.replace("%", "%%"),  # the driver takes one for a placeholder
            f"CREATE TRIGGER run_stands BEFORE UPDATE OF {columns} ON run FOR EACH ROW EXECUTE FUNCTION wbcd_result_stands()",
            *(
                f"CREATE TRIGGER {table}_stands BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION wbcd_result_stands()"
                for table in ("cell", "prediction")
            ),
            "CREATE TRIGGER run_kept BEFORE DELETE ON run FOR EACH ROW EXECUTE FUNCTION wbcd_result_stands()",
        ]
    return [
        f"CREATE TRIGGER run_stands BEFORE UPDATE OF {', '.join(STANDING)} ON run WHEN OLD.reopened_at IS NULL "
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


def guards_off() -> list[str]:
    tables = ("run", "cell", "prediction")
    if on_postgres():
        dropped = [f"DROP TRIGGER {table}_stands ON {table}" for table in tables]
        return [*dropped, "DROP TRIGGER run_kept ON run", "DROP FUNCTION wbcd_result_stands()"]
    return [*(f"DROP TRIGGER {table}_stands" for table in tables), "DROP TRIGGER run_kept"]
