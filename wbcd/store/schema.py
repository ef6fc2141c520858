"""The tables, the same on SQLite and on PostgreSQL 15 or later; the views are in :mod:`wbcd.store.views`.

    sample <- acquisition <- run (one per acquisition x recipe x model) <- cell <- prediction
      `-- sample_label (append-only)    |-> recipe, model                     `-- review (append-only)
    source_file (host, path, state -> content id)      event (append-only)      audit_head (end of each hash chain)

The append-only tables are hash chains: see :mod:`wbcd.store.chain`.

Units are in the column names (um, um2, fL, pg, g/dL, s); refractive indices have none. Times are UTC: ISO 8601 text on
SQLite, ``timestamptz`` on PostgreSQL. A number that is not finite is stored as NULL.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.types import TypeEngine

from wbcd.store.views import UTC_TEXT

SCHEMA_REVISION: Final = "0003"
"""Head of the migrations that this version of wbcd writes to."""

OUTCOMES: Final = ("measured", "rejected", "set_aside")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcTime(TypeDecorator[dt.datetime]):
    """An aware time, stored in UTC."""

    impl = String(27)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(TIMESTAMP(timezone=True))
        return dialect.type_descriptor(String(27))

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        utc = value.astimezone(dt.UTC)
        return utc if dialect.name == "postgresql" else utc.strftime(UTC_TEXT)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> dt.datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        if value is None:
            return None
        if isinstance(value, dt.datetime):
            return value.astimezone(dt.UTC)
        return dt.datetime.strptime(value, UTC_TEXT).replace(tzinfo=dt.UTC)


ROW_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite gives its fast row id only to INTEGER
ANY_JSON = JSON().with_variant(JSONB, "postgresql")


def _id() -> Column[int]:
    return Column("id", ROW_ID, primary_key=True)


def _link(table: str, column: str | None = None, kind: Any = ROW_ID) -> Column[Any]:
    return Column(column or f"{table}_id", kind, ForeignKey(f"{table}.id"), nullable=False)


def _chained() -> tuple[Column[str], Column[str]]:
    """Hashes of the predecessor and of the row. Nullable for the database's sake only: triggers see to them."""
    return Column("previous_hash", Text), Column("row_hash", Text)


sample = Table(
    "sample",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("first_seen_at", UtcTime, nullable=False),
)

recipe = Table(
    "recipe",
    metadata,
    Column("id", Text, primary_key=True),
    Column("parameters", ANY_JSON, nullable=False),
    Column("wbcd_version", Text, nullable=False),
    Column("registered_at", UtcTime, nullable=False),
)

model = Table(
    "model",
    metadata,
    Column("id", Text, primary_key=True),
    Column("card", ANY_JSON, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("registered_at", UtcTime, nullable=False),
)

acquisition = Table(
    "acquisition",
    metadata,
    _id(),
    Column("content_id", Text, nullable=False, unique=True),
    Column("sample_id", ROW_ID, ForeignKey("sample.id"), nullable=False),
    Column("path", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("format", Text),
    Column("instrument_acquisition_id", Text),
    Column("acquired_at", Text),  # as the instrument wrote it: some give no zone
    Column("instrument_id", Text),
    Column("medium_ri", Double),
    Column("wavelength_um", Double),
    Column("objective_na", Double),
    Column("pixel_size_um", Double),
    Column("time_points", Integer, nullable=False),
    Column("tries", Integer, nullable=False),  # begun since the last outcome; 0 when nothing is open
    Column("try_token", Text),  # makes a repeated count after a lost acknowledgement harmless
    Column("begun_at", UtcTime),
    Column("begun_host", Text),  # the machine that has it in hand: no other closes what it began
    Column("waits_for", Text),  # a sentence, while it waits for a file that belongs to it
    Column("volumes_root", Text),  # output folder that may hold volumes of it which no row names (yet)
    Column("volumes_tries", Integer, nullable=False, server_default="0"),  # tries that kept volumes since that was settled
    Column("first_seen_at", UtcTime, nullable=False),
    Index("ix_acquisition_sample_id", "sample_id"),
)
Index(
    "ix_acquisition_open",
    acquisition.c.tries,
    sqlite_where=acquisition.c.tries > 0,
    postgresql_where=acquisition.c.tries > 0,
)

Index(
    "ix_acquisition_waits",
    acquisition.c.id,
    sqlite_where=acquisition.c.waits_for.is_not(None),
    postgresql_where=acquisition.c.waits_for.is_not(None),
)
Index(
    "ix_acquisition_volumes",
    acquisition.c.volumes_root,
    sqlite_where=acquisition.c.volumes_root.is_not(None),
    postgresql_where=acquisition.c.volumes_root.is_not(None),
)
Index(
    "ix_acquisition_instrument_acquisition_id",
    acquisition.c.instrument_acquisition_id,
    sqlite_where=acquisition.c.instrument_acquisition_id.is_not(None),
    postgresql_where=acquisition.c.instrument_acquisition_id.is_not(None),
)

run = Table(
    "run",
    metadata,
    _id(),
    _link("acquisition"),
    _link("recipe", kind=Text),
    _link("model", kind=Text),
    Column("outcome", Text, nullable=False),
    Column("reason", Text),
    Column("message", Text),
    Column("checks", ANY_JSON, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("seconds", Double),
    Column("finished_at", UtcTime, nullable=False),
    Column("asked_at", UtcTime),  # when this result was last asked for: of one acquisition the newest is the current one
    Column("wbcd_version", Text, nullable=False, server_default="unknown"),
    Column("companions", ANY_JSON),  # name -> digest of each file beside it that it was read with; null: it was absent
    Column("conditions", ANY_JSON),  # of what was set aside: the site's limits that judged it
    Column("companions_changed_at", UtcTime),  # since then they are not those in `companions`; it counts until it is replaced
    Column("reopened_at", UtcTime),  # to be made again; until then the row stands
    UniqueConstraint("acquisition_id", "recipe_id", "model_id", name="uq_run_acquisition_recipe_model"),
    CheckConstraint(f"outcome IN {OUTCOMES!r}", name="outcome"),
    CheckConstraint("outcome = 'measured' OR reason IS NOT NULL", name="reason"),
    Index("ix_run_outcome", "outcome"),
    Index("ix_run_finished_at", "finished_at"),
)
Index(
    "ix_run_companions_changed",
    run.c.id,
    sqlite_where=run.c.companions_changed_at.is_not(None),
    postgresql_where=run.c.companions_changed_at.is_not(None),
)
Index(
    "ix_run_reopened",
    run.c.acquisition_id,
    sqlite_where=run.c.reopened_at.is_not(None),
    postgresql_where=run.c.reopened_at.is_not(None),
)

cell = Table(
    "cell",
    metadata,
    _id(),
    _link("run"),
    Column("number", Integer, nullable=False),
    Column("time_index", Integer, nullable=False),
    Column("centre_z_um", Double),
    Column("centre_y_um", Double),
    Column("centre_x_um", Double),
    Column("volume_fl", Double),
    Column("surface_area_um2", Double),
    Column("sphericity", Double),
    Column("dry_mass_pg", Double),
    Column("protein_density_g_dl", Double),
    Column("mean_ri", Double),
    Column("max_ri", Double),
    Column("volume_half_contrast_fl", Double),
    Column("dry_mass_half_contrast_pg", Double),
    Column("dry_mass_total_pg", Double),
    Column("accepted", Boolean, nullable=False),
    Column("reason", Text),
    Column("checks", ANY_JSON, nullable=False),
    Column("tomogram_path", Text),
    Column("mean_ri_uncertainty", Double),  # standard uncertainties (one sigma) of the columns above
    Column("volume_uncertainty_fl", Double),
    Column("dry_mass_uncertainty_pg", Double),
    Column("thumbnail_png", LargeBinary),  # last: SQLite need not walk the picture to reach the numbers
    UniqueConstraint("run_id", "number", name="uq_cell_run_number"),
    CheckConstraint("accepted OR reason IS NOT NULL", name="reason"),
    Index("ix_cell_run_id_accepted_time_index", "run_id", "accepted", "time_index"),  # the counts are read from indexes alone
)

Index(
    "ix_cell_refused",
    cell.c.run_id,
    cell.c.time_index,
    cell.c.reason,
    sqlite_where=text("NOT accepted"),  # as the view says it: SQLite does not see that "accepted = 0" is the same
    postgresql_where=text("NOT accepted"),
)

prediction = Table(
    "prediction",
    metadata,
    _id(),
    _link("cell"),
    _link("model", kind=Text),
    Column("label", Text, nullable=False),
    Column("probability", Double, nullable=False),
    Column("probabilities", ANY_JSON, nullable=False),
    Column("flags", ANY_JSON, nullable=False),
    Column("counted_as", Text, nullable=False),  # the label, or "unclassified" when the flags say so
    UniqueConstraint("cell_id", "model_id", name="uq_prediction_cell_model"),
    CheckConstraint("probability BETWEEN 0 AND 1", name="probability"),
    Index("ix_prediction_counting", "cell_id", "model_id", "counted_as"),
)

review = Table(
    "review",
    metadata,
    _id(),
    _link("cell"),
    Column("reviewer", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("note", Text),
    Column("at", UtcTime, nullable=False),
    *_chained(),
    Index("ix_review_cell_id", "cell_id"),
)

sample_label = Table(
    "sample_label",
    metadata,
    _id(),
    _link("sample"),
    Column("label", Text, nullable=False),
    Column("purity", Double),  # the fraction of the sample's cells that the label holds for, where it was measured
    Column("labelled_by", Text, nullable=False),
    Column("note", Text),
    Column("at", UtcTime, nullable=False),
    *_chained(),
    CheckConstraint("purity > 0 AND purity <= 1", name="purity"),
    Index("ix_sample_label_sample_id", "sample_id"),
)

event = Table(
    "event",
    metadata,
    _id(),
    Column("at", UtcTime, nullable=False),
    Column("kind", Text, nullable=False),
    Column("code", Text),
    Column("message", Text, nullable=False),
    Column("details", ANY_JSON, nullable=False),
    *_chained(),
    Index("ix_event_kind", "kind", "id"),
)

audit_head = Table(
    "audit_head",
    metadata,
    Column("name", Text, primary_key=True),  # of the chained table
    Column("last_id", BigInteger, nullable=False),
    Column("row_hash", Text, nullable=False),
)

source_file = Table(
    "source_file",
    metadata,
    Column("host", Text, primary_key=True),  # the machine whose path it is; empty on SQLite, which is one machine's
    Column("path", Text, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("state", Text, nullable=False, server_default=""),  # change time, inode and companions; empty: not known
    Column("content_id", Text, nullable=False),
    Column("companions", ANY_JSON),  # as in run, at the last look
    Column("seen_at", UtcTime, nullable=False),
    Index("ix_source_file_content_id", "content_id"),
)

MORPHOLOGY_COLUMNS: Final = (
    "volume_fl",
    "surface_area_um2",
    "sphericity",
    "dry_mass_pg",
    "protein_density_g_dl",
    "mean_ri",
    "max_ri",
    "volume_half_contrast_fl",
    "dry_mass_half_contrast_pg",
    "dry_mass_total_pg",
    "mean_ri_uncertainty",
    "volume_uncertainty_fl",
    "dry_mass_uncertainty_pg",
)
