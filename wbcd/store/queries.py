"""The statements that read, one verb per intention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, column, select, table

from wbcd.store import schema


def runs(content_id: str | None = None, recipe_id: str | None = None, model_id: str | None = None) -> Select[Any]:
    """Outcomes with their acquisition and sample, in the order in which they were stored; ``run_id`` comes first."""
    run, acquisition, sample = schema.run.c, schema.acquisition.c, schema.sample.c
    query = (
        select(
            run.id.label("run_id"),
            acquisition.content_id,
            acquisition.path,
            sample.name.label("sample"),
            run.recipe_id,
            run.model_id,
            run.outcome,
            run.reason,
            run.message,
            run.checks,
            run.tries,
            run.seconds,
            run.finished_at,
            run.companions,
            run.conditions,
        )
        .select_from(schema.run)
        .join(schema.acquisition, acquisition.id == run.acquisition_id)
        .join(schema.sample, sample.id == acquisition.sample_id)
        .order_by(run.id)
    )
    wanted = ((acquisition.content_id, content_id), (run.recipe_id, recipe_id), (run.model_id, model_id))
    return query.where(*(column == value for column, value in wanted if value is not None))


def counted_files(host: str, paths: Sequence[str], recipe_id: str, model_id: str) -> Select[Any]:
    """Those files whose content has its outcome under this recipe and model, as :class:`wbcd.store.rows.SourceFile`.

    Left out, to be looked at again: files whose bytes could not be read (``unread-...`` stands for their content), and
    outcomes that were opened again.
    """
    run, acquisition = schema.run.c, schema.acquisition.c
    return (
        files(host)
        .join(schema.acquisition, acquisition.content_id == schema.source_file.c.content_id)
        .join(schema.run, run.acquisition_id == acquisition.id)
        .where(run.recipe_id == recipe_id, run.model_id == model_id, run.reopened_at.is_(None))
        .where(schema.source_file.c.path.in_(paths))
        .where(~schema.source_file.c.content_id.startswith("unread-"))
    )


def files(host: str) -> Select[Any]:
    """The files of one machine; those of before machines were told apart count as its own."""
    file = schema.source_file.c
    columns = (file.path, file.size_bytes, file.mtime_ns, file.state, file.content_id, file.companions)
    # Its own row last: where both are there it is the one that stays in a mapping.
    return select(*columns).select_from(schema.source_file).where(file.host.in_(("", host))).order_by(file.host)


def cells(*, with_thumbnails: bool = False) -> Select[Any]:
    """Cells with the prediction of their run's model, in the order in which they were stored."""
    cell, run, acquisition, prediction = schema.cell.c, schema.run.c, schema.acquisition.c, schema.prediction.c
    numbers = [column for column in cell if column.name not in ("id", "run_id", "thumbnail_png")]
    picture = [cell.thumbnail_png] if with_thumbnails else []
    return (
        select(
            cell.id.label("cell_id"),
            acquisition.content_id,
            acquisition.path,
            schema.sample.c.name.label("sample"),
            run.recipe_id,
            run.model_id,
            *numbers,
            prediction.label,
            prediction.probability,
            prediction.probabilities,
            prediction.flags,
            prediction.counted_as,
            *picture,
        )
        .select_from(schema.cell)
        .join(schema.run, run.id == cell.run_id)
        .join(schema.acquisition, acquisition.id == run.acquisition_id)
        .join(schema.sample, schema.sample.c.id == acquisition.sample_id)
        .outerjoin(schema.prediction, (prediction.cell_id == cell.id) & (prediction.model_id == run.model_id))
        .order_by(cell.id)
    )


def cells_of_run(run_id: int) -> Select[Any]:
    """Cells of one outcome."""
    return cells().where(schema.cell.c.run_id == run_id)


def cell_labels(sample: str | None = None) -> Select[Any]:
    """Rows of the view ``cell_label``, of one sample or of all."""
    view = table("cell_label", column("cell_id"), column("label"), column("source"), column("purity"))
    query = select(view.c.cell_id, view.c.label, view.c.source, view.c.purity).order_by(view.c.cell_id)
    if sample is None:
        return query
    cell, run, acquisition = schema.cell, schema.run, schema.acquisition
    return (
        query.join(cell, cell.c.id == view.c.cell_id)
        .join(run, run.c.id == cell.c.run_id)
        .join(acquisition, acquisition.c.id == run.c.acquisition_id)
        .join(schema.sample, schema.sample.c.id == acquisition.c.sample_id)
        .where(schema.sample.c.name == sample)
    )
