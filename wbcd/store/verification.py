"""Does what is stored still hold: the chains, the recipes, the models and predictions, the kept tomograms.

Each check yields a :class:`Finding` for everything that does not, and for nothing else. What can be found, and what cannot:

- a row of ``event``, ``review`` or ``sample_label`` that was changed, removed, inserted or moved: by its hashes;
- rows cut off the end of a chain: by ``audit_head``, or by a head that was noted elsewhere before (``anchors``);
- a whole chain rewritten by someone who may write everything, ``audit_head`` too: only by an anchor kept elsewhere;
- figures in ``cell`` or ``prediction`` are not chained: a changed figure is found by processing the acquisition again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, select, text

from wbcd.store import chain, schema
from wbcd.store.chain import CHAINED, GENESIS, Head, Link
from wbcd.store.ledger import Ledger
from wbcd.store.rows import raw_text
from wbcd.store.volumes import image_problems, images_under

RETENTION: Final = "retention"
"""Kind of the events that say which tomograms were removed by :mod:`wbcd.store.retention`."""

PAGE_ROWS: Final = 500

Step = Callable[[int], object]
"""Told how many more rows or images have been looked at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not hold. ``check``: chain, recipe, model, prediction, source or tomogram."""

    check: str
    place: str
    message: str


# --- chains ---------------------------------------------------------------------------------------------


def check_chain(ledger: Ledger, table: str, *, anchor: Head | None = None, step: Step = lambda _: None) -> Iterator[Finding]:
    """Walk one chain from its first row to ``audit_head``. ``anchor``: a head that was noted earlier, outside the database.

    The head is read before and after: a chain that grows meanwhile is walked to where it ended at the start.
    """
    head = ledger.read(lambda connection: chain.read_head(connection, table))
    previous, last_id, seen_anchor = GENESIS, 0, anchor is None or anchor.last_id == 0
    while page := _page(ledger, table, last_id, head.last_id):
        for link in page:
            yield from _link_findings(link, previous)
            previous, last_id = link.row_hash or "", link.row_id
            if anchor is not None and link.row_id == anchor.last_id:
                seen_anchor = True
                if link.row_hash != anchor.row_hash:
                    yield Finding("chain", _place(table, link.row_id), "is not the row that was noted as the end of the chain")
        step(len(page))
    if (last_id, previous) != (head.last_id, head.row_hash):
        yield Finding("chain", table, f"ends at row {last_id}; audit_head says {head.last_id}: its end was cut off or replaced")
    if not seen_anchor and anchor is not None:
        yield Finding("chain", _place(table, anchor.last_id), "was noted as the end of the chain and is not there")


def check_beyond(ledger: Ledger, table: str) -> Iterator[Finding]:
    """Rows behind the recorded end: inserted with the triggers switched off."""

    def work(connection: Connection) -> list[int]:
        head = chain.read_head(connection, table)  # in one transaction with the rows: the daemon goes on writing
        query = text(f"SELECT id FROM {table} WHERE id > :last ORDER BY id LIMIT {PAGE_ROWS}")
        return [int(row[0]) for row in connection.execute(query, {"last": head.last_id})]

    for row_id in ledger.read(work):
        yield Finding(
            "chain", _place(table, row_id), "lies behind the end that audit_head knows: it was inserted past the triggers"
        )


def heads(ledger: Ledger) -> dict[str, Head]:
    """The end of each chain now: to be noted elsewhere, and given to :func:`check_chain` the next time."""
    return ledger.read(lambda connection: {table: chain.read_head(connection, table) for table in CHAINED})


def chain_rows(ledger: Ledger) -> int:
    """Rows of all chains, for a progress bar."""
    query = " + ".join(f"(SELECT COUNT(*) FROM {table})" for table in CHAINED)
    return int(ledger.read(lambda connection: connection.execute(text(f"SELECT {query}")).scalar_one()))


def _page(ledger: Ledger, table: str, after: int, last: int) -> list[Link]:
    found = ledger.read(lambda connection: list(chain.links(connection, table, after=after)))
    return [link for link in found if link.row_id <= last]


def _link_findings(link: Link, previous: str) -> Iterator[Finding]:
    place = _place(link.table, link.row_id)
    if link.row_hash is None:
        yield Finding("chain", place, "is not chained: it was inserted past the triggers")
    elif link.row_hash != link.expected_hash():
        yield Finding("chain", place, "was changed: its hash is not that of its values")
    if link.previous_hash != previous:
        yield Finding("chain", place, "does not follow the row before it: a row was removed, inserted or replaced there")


def _place(table: str, row_id: int) -> str:
    return f"{table} {row_id}"


# --- what names the results -------------------------------------------------------------------------------


def check_recipes(ledger: Ledger) -> Iterator[Finding]:
    """A recipe's id is the hash of its parameters."""
    query = select(schema.recipe.c.id, schema.recipe.c.parameters, schema.recipe.c.wbcd_version).order_by(schema.recipe.c.id)
    for recipe_id, parameters, version in ledger.read(lambda connection: connection.execute(query).all()):
        if recipe_hash(parameters) != recipe_id:
            yield Finding("recipe", recipe_id, f"is not the hash of its parameters, which wbcd {version} stored with it")


def recipe_hash(parameters: Mapping[str, Any]) -> str:
    """The id of stored parameters, whichever version wrote them: its fields need not be those of today's recipe."""
    text_form = json.dumps(parameters, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text_form.encode(), digest_size=8).hexdigest()


def check_models(ledger: Ledger, digest_of: Callable[[Mapping[str, Any]], str | None]) -> Iterator[Finding]:
    """A model's id ends in the digest of its card; ``digest_of`` gives that of a card, or None where it has none."""
    query = select(schema.model.c.id, schema.model.c.card).order_by(schema.model.c.id)
    for model_id, card in ledger.read(lambda connection: connection.execute(query).all()):
        digest = digest_of(card)
        if digest is None or not _names(model_id, digest):
            shown = "has no digest" if digest is None else f"gives {digest[:12]}"
            yield Finding("model", model_id, f"is not what its stored card says: the card {shown}")


def check_predictions(ledger: Ledger) -> Iterator[Finding]:
    """A prediction's cell and model are known."""
    query = text(
        "SELECT prediction.id, prediction.model_id, prediction.cell_id, cell.id AS known_cell, model.id AS known_model "
        "FROM prediction LEFT JOIN cell ON cell.id = prediction.cell_id LEFT JOIN model ON model.id = prediction.model_id "
        f"WHERE cell.id IS NULL OR model.id IS NULL ORDER BY prediction.id LIMIT {PAGE_ROWS}"
    )
    for row in ledger.read(lambda connection: connection.execute(query).all()):
        missing = f"cell {row.cell_id}" if row.known_cell is None else f"model {row.model_id}"
        yield Finding("prediction", f"prediction {row.id}", f"names {missing}, which is not in the database")


def _names(model_id: str, digest: str) -> bool:
    stated = model_id.rpartition("@")[2]
    return bool(stated) and digest.startswith(stated)


# --- tomograms --------------------------------------------------------------------------------------------


def check_tomograms(ledger: Ledger, root: Path, *, step: Step = lambda _: None) -> Iterator[Finding]:
    """Each image that a row names is there and whole, or was removed by retention; and no image is there that none names."""
    removed = removed_by_retention(ledger)
    named: set[str] = set()
    for cell_id, stated in tomogram_rows(ledger):
        image = locate(root, stated)
        named.add(key_of(image))
        wrong = image_problems(image)
        if not (wrong == ["is missing"] and key_of(image) in removed):
            yield from (Finding("tomogram", str(image), f"{clause} (cell {cell_id})") for clause in wrong)
        step(1)
    for image in images_under(root):
        if key_of(image) not in named and not _named_now(ledger, image):
            yield Finding("tomogram", str(image), "is named by no row")


def tomogram_rows(ledger: Ledger) -> Iterator[tuple[int, str]]:
    """Cell id and stated path of every cell whose tomogram was kept, in the order in which they were stored."""
    table = schema.cell.c
    after = 0
    while True:
        query = select(table.id, table.tomogram_path).where(table.tomogram_path.is_not(None), table.id > after)
        limited = query.order_by(table.id).limit(PAGE_ROWS)
        page = ledger.read(lambda connection, limited=limited: connection.execute(limited).all())  # type: ignore[misc]
        if not page:
            return
        yield from ((int(row.id), str(row.tomogram_path)) for row in page)
        after = page[-1].id


def tomogram_count(ledger: Ledger) -> int:
    """How many rows name a tomogram, for a progress bar."""
    query = text("SELECT COUNT(*) FROM cell WHERE tomogram_path IS NOT NULL")
    return int(ledger.read(lambda connection: connection.execute(query).scalar_one()))


def locate(root: Path, stated: str) -> Path:
    """Where an image lies now: rows state the path of the day on which it was written, and output folders move."""
    here = root / key_of(Path(stated))
    return here if here.is_dir() or not Path(stated).is_absolute() else _first_that_is_there(here, Path(stated))


def key_of(image: Path) -> str:
    """``ab/NAME.ome.zarr``: what stays the same when the output folder moves."""
    return "/".join(image.parts[-2:])


def removed_by_retention(ledger: Ledger) -> set[str]:
    """Keys of the images that retention has removed, by its events."""
    query = select(schema.event.c.details).where(schema.event.c.kind == RETENTION)
    found = ledger.read(lambda connection: connection.execute(query).scalars().all())
    return {str(name) for details in found for name in details.get("removed", [])}


def _named_now(ledger: Ledger, image: Path) -> bool:
    """A daemon writes the image first and its row afterwards: ask again, by the path's end, before it is called an orphan."""
    content_id = image.name.partition("-")[0]
    query = (
        select(schema.cell.c.tomogram_path)
        .join(schema.run, schema.run.c.id == schema.cell.c.run_id)
        .join(schema.acquisition, schema.acquisition.c.id == schema.run.c.acquisition_id)
        .where(schema.acquisition.c.content_id == content_id, schema.cell.c.tomogram_path.is_not(None))
    )
    open_now = select(schema.acquisition.c.id).where(
        schema.acquisition.c.content_id == content_id, schema.acquisition.c.tries > 0
    )

    def work(connection: Connection) -> bool:
        paths = connection.execute(query).scalars().all()
        in_hand = connection.execute(open_now).first() is not None
        return in_hand or any(key_of(Path(path)) == key_of(image) for path in paths)

    return ledger.read(work)


def _first_that_is_there(here: Path, stated: Path) -> Path:
    return stated if stated.is_dir() else here


# --- source files -----------------------------------------------------------------------------------------


def check_sources(
    ledger: Ledger, content_id_of: Callable[[Path], str | None], *, step: Step = lambda _: None
) -> Iterator[Finding]:
    """The files that were counted still hold what was counted; ``content_id_of`` gives None for one that is not there."""
    table = schema.source_file.c
    after = ""
    while True:
        query = (
            select(table.path, table.content_id)
            .where(table.path > after, table.host.in_(("", ledger.host)))
            .order_by(table.path)
            .limit(PAGE_ROWS)
        )
        page = ledger.read(lambda connection, query=query: connection.execute(query).all())  # type: ignore[misc]
        if not page:
            return
        for path, stated in page:
            found = content_id_of(Path(raw_text(path)))
            if found is not None and found != stated and not str(stated).startswith("unread-"):
                yield Finding(
                    "source", path, f"changed since it was counted: its content is {found}, that of the count {stated}"
                )
            step(1)
        after = page[-1].path


def source_count(ledger: Ledger) -> int:
    """How many paths are known, for a progress bar."""
    return int(ledger.read(lambda connection: connection.execute(text("SELECT COUNT(*) FROM source_file")).scalar_one()))
