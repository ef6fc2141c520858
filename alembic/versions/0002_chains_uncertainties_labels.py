"""Hash chains of the append-only tables, labels of whole samples, uncertainties of cells.

Revision: 0002, after 0001.
A migration is frozen: it repeats what it needs and imports nothing of wbcd, so that later changes cannot alter it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.String(27).with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")

UNCERTAINTIES = ("mean_ri_uncertainty", "volume_uncertainty_fl", "dry_mass_uncertainty_pg")
OLD_CHAINS = ("event", "review")
CHAINED = {
    "event": {"at": "time", "kind": "text", "code": "text", "message": "text", "details": "json"},
    "review": {"cell_id": "number", "reviewer": "text", "label": "text", "note": "text", "at": "time"},
    "sample_label": {
        "sample_id": "number",
        "label": "text",
        "purity": "double",
        "labelled_by": "text",
        "note": "text",
        "at": "time",
    },
}
GENESIS = "0" * 64
PAGE_ROWS = 1000

CELL_LABEL = """
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

SQLITE_CHAIN = (
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

POSTGRES_CHAIN = (
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

POSTGRES_VALUES = {
    "text": "NEW.{column}",
    "number": "CAST(NEW.{column} AS TEXT)",
    "double": "encode(float8send(NEW.{column}), 'hex')",
    "time": "to_char(NEW.{column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    "json": "CAST(NEW.{column} AS TEXT)",
}


def upgrade() -> None:
    add_uncertainties()
    make_tables()
    for statement in guards_off(OLD_CHAINS):
        run(statement)
    for table in CHAINED:
        head = chain_rows(table) if table in OLD_CHAINS else (0, GENESIS)
        statement = sa.text("INSERT INTO audit_head (name, last_id, row_hash) VALUES (:name, :last_id, :row_hash)")
        op.get_bind().execute(statement, {"name": table, "last_id": head[0], "row_hash": head[1]})
    for table in CHAINED:
        for statement in guards_on(table) + chain_on(table):
            run(statement)
    run(CELL_LABEL)


def downgrade() -> None:
    """The labels of samples are lost, and the hashes; reviews and events stay."""
    run("DROP VIEW cell_label")
    for table in CHAINED:
        for statement in chain_off(table):
            run(statement)
    op.drop_table("sample_label")  # its guards go with it
    op.drop_table("audit_head")
    for table in OLD_CHAINS:
        for column in ("previous_hash", "row_hash"):
            run(f"ALTER TABLE {table} DROP COLUMN {column}")
    for column in UNCERTAINTIES:
        run(f"ALTER TABLE cell DROP COLUMN {column}")


def run(statement: str) -> None:
    """As it stands: ``op.execute`` would take a colon for a parameter."""
    op.get_bind().exec_driver_sql(statement)


def on_postgres() -> bool:
    return bool(op.get_bind().dialect.name == "postgresql")


def add_uncertainties() -> None:
    for column in UNCERTAINTIES:
        op.add_column("cell", sa.Column(column, sa.Double(), nullable=True))
    # The picture should be last, else SQLite walks its pages to reach a number behind it (but no NULL, as old rows hold). With
    # rows there the move would copy each twice: four times the size of the file at its peak, with 20,000 cells.
    if not on_postgres() and op.get_bind().exec_driver_sql("SELECT 1 FROM cell LIMIT 1").first() is None:
        run("ALTER TABLE cell ADD COLUMN moved_png BLOB")
        run("ALTER TABLE cell DROP COLUMN thumbnail_png")
        run("ALTER TABLE cell RENAME COLUMN moved_png TO thumbnail_png")


def make_tables() -> None:
    for table in OLD_CHAINS:
        for column in ("previous_hash", "row_hash"):
            op.add_column(table, sa.Column(column, sa.Text(), nullable=True))
    op.create_table(
        "sample_label",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("sample_id", ROW_ID, nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("purity", sa.Double(), nullable=True),
        sa.Column("labelled_by", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("at", TIME, nullable=False),
        sa.Column("previous_hash", sa.Text(), nullable=True),
        sa.Column("row_hash", sa.Text(), nullable=True),
        sa.CheckConstraint("purity > 0 AND purity <= 1", name=op.f("ck_sample_label_purity")),
        sa.ForeignKeyConstraint(["sample_id"], ["sample.id"], name=op.f("fk_sample_label_sample_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sample_label")),
    )
    op.create_index("ix_sample_label_sample_id", "sample_label", ["sample_id"], unique=False)
    op.create_table(
        "audit_head",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("last_id", sa.BigInteger(), nullable=False),
        sa.Column("row_hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_audit_head")),
    )


def guards_off(tables: tuple[str, ...]) -> list[str]:
    if on_postgres():
        return [f"DROP TRIGGER {table}_append_only ON {table}" for table in tables]
    return [f"DROP TRIGGER {table}_append_only_{verb}" for table in tables for verb in ("update", "delete")]


def guards_on(table: str) -> list[str]:
    if on_postgres():
        return [
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION wbcd_append_only()"
        ]
    return [
        f"CREATE TRIGGER {table}_append_only_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for verb in ("UPDATE", "DELETE")
    ]


def chain_on(table: str) -> list[str]:
    if not on_postgres():
        return [statement.format(table=table) for statement in SQLITE_CHAIN]
    schema = op.get_bind().exec_driver_sql("SELECT current_schema()").scalar_one()
    values = ", ".join(POSTGRES_VALUES[kind].format(column=column) for column, kind in CHAINED[table].items())
    return [statement.format(table=table, values=values, schema=schema) for statement in POSTGRES_CHAIN]


def chain_off(table: str) -> list[str]:
    if on_postgres():
        return [f"DROP TRIGGER {table}_chained ON {table}", f"DROP FUNCTION wbcd_chain_{table}()"]
    return [f"DROP TRIGGER {table}_chained", f"DROP TRIGGER {table}_head"]


def chain_rows(table: str) -> tuple[int, str]:
    """Chain what is there already, in the order of the ids; gives the last id and its hash."""
    last_id, last_hash = 0, GENESIS
    update = sa.text(f"UPDATE {table} SET previous_hash = :previous_hash, row_hash = :row_hash WHERE id = :id")
    for page in pages(table):
        changes = []
        for row_id, *values in page:
            text = json.dumps([table, str(row_id), last_hash, *values], ensure_ascii=False)
            own = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
            changes.append({"id": row_id, "previous_hash": last_hash, "row_hash": own})
            last_id, last_hash = row_id, own
        op.get_bind().execute(update, changes)
    return last_id, last_hash


def pages(table: str) -> Iterator[list[sa.Row]]:
    time = "to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')" if on_postgres() else "{0}"
    shown = {"text": "{0}", "number": "CAST({0} AS TEXT)", "time": time, "json": "CAST({0} AS TEXT)"}
    columns = ", ".join(shown[kind].format(f'"{column}"') for column, kind in CHAINED[table].items())
    query = f"SELECT id, {columns} FROM {table} WHERE id > %d ORDER BY id LIMIT {PAGE_ROWS}"
    after = 0
    while found := op.get_bind().exec_driver_sql(query % after).fetchall():
        yield found
        after = found[-1][0]
