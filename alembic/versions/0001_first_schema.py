"""The first schema: samples, acquisitions, runs, cells, predictions, reviews, events; the four views.

Revision: 0001, after nothing.
A migration is frozen: it repeats what it needs and imports nothing of wbcd, so that later changes cannot alter it.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ANY_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
TIME = sa.String(27).with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")

VIEWS = {
    "differential_count": """
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
""",
    "rejection_count": """
CREATE VIEW rejection_count AS
SELECT sample.name AS sample, run.model_id AS model, run.recipe_id AS recipe, run.outcome AS outcome,
       run.reason AS reason, COUNT(*) AS n, MAX(run.finished_at) AS last_at
FROM run
JOIN acquisition ON acquisition.id = run.acquisition_id
JOIN sample ON sample.id = acquisition.sample_id
WHERE run.outcome <> 'measured'
GROUP BY sample.name, run.model_id, run.recipe_id, run.outcome, run.reason
""",
    "cell_rejection_count": """
CREATE VIEW cell_rejection_count AS
SELECT sample.name AS sample, run.model_id AS model, run.recipe_id AS recipe, cell.reason AS reason, COUNT(*) AS n
FROM cell
JOIN run ON run.id = cell.run_id
JOIN acquisition ON acquisition.id = run.acquisition_id
JOIN sample ON sample.id = acquisition.sample_id
WHERE NOT cell.accepted AND cell.time_index = 0
GROUP BY sample.name, run.model_id, run.recipe_id, cell.reason
""",
    "backlog": """
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
""",
}

APPEND_ONLY = ("event", "review")

POSTGRES_GUARD = """
CREATE FUNCTION wbcd_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$
"""

TABLES = ("review", "prediction", "cell", "run", "acquisition", "source_file", "sample", "recipe", "model", "event")
"""Those that refer to others first, as they are dropped."""


def upgrade() -> None:
    make_tables()
    for view in VIEWS.values():
        op.execute(view)
    for trigger in triggers():
        op.execute(trigger)


def downgrade() -> None:
    for view in VIEWS:
        op.execute(f"DROP VIEW {view}")
    for table in TABLES:
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION wbcd_append_only()")


def triggers() -> list[str]:
    """Keep event and review append-only, by the database itself."""
    if op.get_bind().dialect.name == "postgresql":
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


def make_tables() -> None:
    op.create_table(
        "event",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("details", ANY_JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
    )
    op.create_index("ix_event_kind", "event", ["kind", "id"], unique=False)
    op.create_table(
        "model",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("card", ANY_JSON, nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("registered_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model")),
    )
    op.create_table(
        "recipe",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("parameters", ANY_JSON, nullable=False),
        sa.Column("wbcd_version", sa.Text(), nullable=False),
        sa.Column("registered_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recipe")),
    )
    op.create_table(
        "sample",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("first_seen_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sample")),
        sa.UniqueConstraint("name", name=op.f("uq_sample_name")),
    )
    op.create_table(
        "source_file",
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("content_id", sa.Text(), nullable=False),
        sa.Column("seen_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("path", name=op.f("pk_source_file")),
    )
    op.create_index("ix_source_file_content_id", "source_file", ["content_id"], unique=False)
    op.create_table(
        "acquisition",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("content_id", sa.Text(), nullable=False),
        sa.Column("sample_id", ROW_ID, nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("format", sa.Text(), nullable=True),
        sa.Column("instrument_acquisition_id", sa.Text(), nullable=True),
        sa.Column("acquired_at", sa.Text(), nullable=True),
        sa.Column("instrument_id", sa.Text(), nullable=True),
        sa.Column("medium_ri", sa.Double(), nullable=True),
        sa.Column("wavelength_um", sa.Double(), nullable=True),
        sa.Column("objective_na", sa.Double(), nullable=True),
        sa.Column("pixel_size_um", sa.Double(), nullable=True),
        sa.Column("time_points", sa.Integer(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("try_token", sa.Text(), nullable=True),
        sa.Column("begun_at", TIME, nullable=True),
        sa.Column("first_seen_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["sample_id"], ["sample.id"], name=op.f("fk_acquisition_sample_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_acquisition")),
        sa.UniqueConstraint("content_id", name=op.f("uq_acquisition_content_id")),
    )
    op.create_index(
        "ix_acquisition_open",
        "acquisition",
        ["tries"],
        unique=False,
        sqlite_where=sa.text("tries > 0"),
        postgresql_where=sa.text("tries > 0"),
    )
    op.create_index("ix_acquisition_sample_id", "acquisition", ["sample_id"], unique=False)
    op.create_table(
        "run",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("acquisition_id", ROW_ID, nullable=False),
        sa.Column("recipe_id", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("checks", ANY_JSON, nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("finished_at", TIME, nullable=False),
        sa.CheckConstraint("outcome = 'measured' OR reason IS NOT NULL", name=op.f("ck_run_reason")),
        sa.CheckConstraint("outcome IN ('measured', 'rejected', 'set_aside')", name=op.f("ck_run_outcome")),
        sa.ForeignKeyConstraint(["acquisition_id"], ["acquisition.id"], name=op.f("fk_run_acquisition_id")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_run_model_id")),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipe.id"], name=op.f("fk_run_recipe_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run")),
        sa.UniqueConstraint("acquisition_id", "recipe_id", "model_id", name="uq_run_acquisition_recipe_model"),
    )
    op.create_index("ix_run_finished_at", "run", ["finished_at"], unique=False)
    op.create_index("ix_run_outcome", "run", ["outcome"], unique=False)
    op.create_table(
        "cell",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("run_id", ROW_ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("time_index", sa.Integer(), nullable=False),
        sa.Column("centre_z_um", sa.Double(), nullable=True),
        sa.Column("centre_y_um", sa.Double(), nullable=True),
        sa.Column("centre_x_um", sa.Double(), nullable=True),
        sa.Column("volume_fl", sa.Double(), nullable=True),
        sa.Column("surface_area_um2", sa.Double(), nullable=True),
        sa.Column("sphericity", sa.Double(), nullable=True),
        sa.Column("dry_mass_pg", sa.Double(), nullable=True),
        sa.Column("protein_density_g_dl", sa.Double(), nullable=True),
        sa.Column("mean_ri", sa.Double(), nullable=True),
        sa.Column("max_ri", sa.Double(), nullable=True),
        sa.Column("volume_half_contrast_fl", sa.Double(), nullable=True),
        sa.Column("dry_mass_half_contrast_pg", sa.Double(), nullable=True),
        sa.Column("dry_mass_total_pg", sa.Double(), nullable=True),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("checks", ANY_JSON, nullable=False),
        sa.Column("tomogram_path", sa.Text(), nullable=True),
        sa.Column("thumbnail_png", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint("accepted OR reason IS NOT NULL", name=op.f("ck_cell_reason")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_cell_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cell")),
        sa.UniqueConstraint("run_id", "number", name="uq_cell_run_number"),
    )
    op.create_index(
        "ix_cell_refused",
        "cell",
        ["run_id", "time_index", "reason"],
        unique=False,
        sqlite_where=sa.text("NOT accepted"),
        postgresql_where=sa.text("NOT accepted"),
    )
    op.create_index("ix_cell_run_id_accepted_time_index", "cell", ["run_id", "accepted", "time_index"], unique=False)
    op.create_table(
        "prediction",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("cell_id", ROW_ID, nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("probability", sa.Double(), nullable=False),
        sa.Column("probabilities", ANY_JSON, nullable=False),
        sa.Column("flags", ANY_JSON, nullable=False),
        sa.Column("counted_as", sa.Text(), nullable=False),
        sa.CheckConstraint("probability BETWEEN 0 AND 1", name=op.f("ck_prediction_probability")),
        sa.ForeignKeyConstraint(["cell_id"], ["cell.id"], name=op.f("fk_prediction_cell_id")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_prediction_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prediction")),
        sa.UniqueConstraint("cell_id", "model_id", name="uq_prediction_cell_model"),
    )
    op.create_index("ix_prediction_counting", "prediction", ["cell_id", "model_id", "counted_as"], unique=False)
    op.create_table(
        "review",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("cell_id", ROW_ID, nullable=False),
        sa.Column("reviewer", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["cell_id"], ["cell.id"], name=op.f("fk_review_cell_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_review")),
    )
    op.create_index("ix_review_cell_id", "review", ["cell_id"], unique=False)
