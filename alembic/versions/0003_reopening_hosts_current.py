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
    AND (other.asked_at > run.asked_at OR (other.asked_at = run.asked_at AND other.id > run.id))
)
"""

CELL_RESULT = """
CREATE VIEW cell_result AS
SELECT cell.id AS cell_id, sample.name AS sample, acquisition.path AS file, acquisition.content_id AS content_id,
       acquisition.instrument_id AS instrument_id, acquisition.acquired_at AS acquired_at,
       cell.number AS number, cell.time_index AS time_index, cell.accepted AS accepted, cell.reason AS reason,
       prediction.counted_as AS counted_as, prediction.label AS label, prediction.probability AS probability,
       prediction.flags AS flags,
       cell.volume_fl AS volume_fl, cell.surface_area_um2 AS surface_area_um2, cell.sphericity AS sphericity,
       cell.dry_mass_pg AS dry_mass_pg, cell.protein_density_g_dl AS protein_density_g_dl, cell.mean_ri AS mean_ri,
       cell.volume_uncertainty_fl AS volume_uncertainty_fl, cell.dry_mass_uncertainty_pg AS dry_mass_uncertainty_pg,
       cell.mean_ri_uncertainty AS mean_ri_uncertainty,
       reading.label AS review, reading.reviewer AS reviewer, reading.at AS reviewed_at,
       run.recipe_id AS recipe, run.model_id AS model, run.wbcd_version AS wbcd_version, run.finished_at AS finished_at,
       NOT EXISTS (
         SELECT 1 FROM run AS other
         WHERE other.acquisition_id = run.acquisition_id
           AND (other.asked_at > run.asked_at OR (other.asked_at = run.asked_at AND other.id > run.id))
       ) AS is_current,
       cell.tomogram_path AS tomogram_path
FROM cell
JOIN run ON run.id = cell.run_id
JOIN acquisition ON acquisition.id = run.acquisition_id
JOIN sample ON sample.id = acquisition.sample_id
LEFT JOIN prediction ON prediction.cell_id = cell.id AND prediction.model_id = run.model_id
LEFT JOIN review AS reading ON reading.id = (SELECT MAX(review.id) FROM review WHERE review.cell_id = cell.id)
"""

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
    add_run_columns()
    run("DROP VIEW backlog")  # SQLite would make it follow the renamed table
    rebuild_source_file(keyed_by_host=True)
    for name, table, column in INDEXES:
        where = sa.text(f"{column} IS NOT NULL")
        shown = "id" if column == "waits_for" else "acquisition_id" if column == "reopened_at" else column
        op.create_index(name, table, [shown], unique=False, sqlite_where=where, postgresql_where=where)
    for statement in (BACKLOG, CURRENT_RUN, CELL_RESULT, *guards()):
        run(statement)
    mend_simulated()


def downgrade() -> None:
    """Companions, conditions and versions of runs are forgotten; of two machines' files of one path one is kept."""
    for statement in guards_off():
        run(statement)
    for view in ("cell_result", "current_run", "backlog"):
        run(f"DROP VIEW {view}")
    for name, table, _ in INDEXES:
        op.drop_index(name, table_name=table)
    rebuild_source_file(keyed_by_host=False)
    run(OLD_BACKLOG)
    for column in ("asked_at", "wbcd_version", "companions", "conditions", "reopened_at"):
        run(f"ALTER TABLE run DROP COLUMN {column}")
    for column in ("begun_host", "waits_for", "volumes_root"):
        run(f"ALTER TABLE acquisition DROP COLUMN {column}")


INDEXES = (
    ("ix_acquisition_waits", "acquisition", "waits_for"),
    ("ix_acquisition_volumes", "acquisition", "volumes_root"),
    ("ix_acquisition_instrument_acquisition_id", "acquisition", "instrument_acquisition_id"),
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
    """The flag was read from the top of the card, where no card has it: it lies one level down."""
    if on_postgres():
        run("UPDATE model SET simulated = TRUE WHERE card->'wbcd'->>'simulated' = 'true'")
    else:
        run("UPDATE model SET simulated = 1 WHERE json_extract(card, '$.wbcd.simulated') = 1")


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
