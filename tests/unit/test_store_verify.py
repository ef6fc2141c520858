"""What `wbcd verify` finds: every kind of tampering that it says it finds, on both databases, and nothing where all holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers_store import KEY, opened
from sqlalchemy import Connection, create_engine

from wbcd.records import Cell
from wbcd.store import Ledger, chain, verification
from wbcd.store.chain import CHAINED, GENESIS
from wbcd.store.manifest import MANIFEST
from wbcd.store.urls import parse_url
from wbcd.store.verification import Finding
from wbcd.store.volumes import tomogram_path, write_tomogram
from wbcd.testing import make_acquisition, make_cell, make_measured


@pytest.fixture
def audited(any_url: str) -> Iterator[Ledger]:
    """Three reviews, four events and two labels of samples."""
    with opened(any_url) as ledger:
        ledger.commit(make_measured("a", make_cell(), make_cell(number=2)), *KEY)
        first, second = (cell.cell_id for cell in ledger.cells())
        ledger.review(first, "R", "monocyte")
        ledger.review(second, 'Ü "quoted" \\ / \t', "b_lymphocyte", "two\nlines \x01 \U0001f52c")
        ledger.review(first, "S", "neutrophil")
        for number in range(4):
            ledger.event("note", f"event {number}", value=0.1 * number, text="é", nested={"b": [None, True], "a": 1e-7})
        ledger.label_sample("S1", "monocyte", purity=0.1 + 0.2, by="R")
        ledger.label_sample("S1", "monocyte", by="R", note="x")
        yield ledger


@contextmanager
def behind_the_triggers(url: str, table: str) -> Iterator[Connection]:
    """As the owner of the file or of the schema could: with the guards off, and on again afterwards."""
    engine = create_engine(parse_url(url).sqlalchemy_url)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER USER")
            yield connection
            connection.exec_driver_sql(f"ALTER TABLE {table} ENABLE TRIGGER USER")
        else:
            found = connection.exec_driver_sql(
                f"SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = '{table}'"
            )
            triggers = found.all()
            for name, _ in triggers:
                connection.exec_driver_sql(f"DROP TRIGGER {name}")
            yield connection
            for _, sql in triggers:
                connection.exec_driver_sql(sql)
    engine.dispose()


def chains(ledger: Ledger) -> list[Finding]:
    found: list[Finding] = []
    for table in CHAINED:
        found += verification.check_chain(ledger, table)
        found += verification.check_beyond(ledger, table)
    return found


def test_nothing_is_found_where_all_holds(audited: Ledger) -> None:
    assert chains(audited) == []
    assert verification.chain_rows(audited) == 9
    assert list(verification.check_recipes(audited)) == []
    assert list(verification.check_predictions(audited)) == []


def test_a_hash_is_sha_256_of_the_documented_text(audited: Ledger) -> None:
    """By hand, from the documentation alone: another program must be able to verify the chain."""
    (first, *_) = audited.read(lambda connection: list(chain.links(connection, "sample_label")))
    at = first.values[-1]
    purity = np.array([0.1 + 0.2], dtype=">f8").tobytes().hex()
    said = json.dumps(["sample_label", "1", "0" * 64, "1", "monocyte", purity, "R", None, at], ensure_ascii=False)
    assert first.row_hash == hashlib.sha256(said.encode()).hexdigest()
    assert at is not None
    assert (len(at), at[-1]) == (27, "Z")


def test_both_databases_hash_alike(tmp_path: Path, postgres_url: str) -> None:
    hashes = []
    for url in (f"sqlite:///{tmp_path / 'x.db'}", postgres_url):
        with opened(url) as ledger:
            ledger.commit(make_measured("a"), *KEY)
            at = ledger._now().replace(microsecond=120)
            ledger._now = lambda at=at: at.replace(year=2026, month=1, day=2, hour=3, minute=4, second=5)  # type: ignore[method-assign, misc]
            ledger.review(1, 'Ü "q" \\ / \x7f', "b", "\x01\t\n\U0001f52c\u2028")
            ledger.review(1, "S", "c")
            ledger.label_sample("S1", "d", purity=1 / 3, by="R")
            hashes.append([link.row_hash for table in ("review", "sample_label") for link in _links(ledger, table)])
    assert hashes[0] == hashes[1]


def _links(ledger: Ledger, table: str) -> list[chain.Link]:
    return ledger.read(lambda connection: list(chain.links(connection, table)))


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("review", "UPDATE review SET label = 'eosinophil' WHERE id = 2"),
        ("review", "UPDATE review SET note = NULL WHERE id = 2"),
        ("review", "UPDATE review SET reviewer = 'Z' WHERE id = 2"),
        ("event", "UPDATE event SET details = '{}' WHERE id = 2"),
        ("event", "UPDATE event SET at = '2020-01-01T00:00:00.000000Z' WHERE id = 2"),
        ("sample_label", "UPDATE sample_label SET purity = 0.99 WHERE id = 2"),
    ],
)
def test_a_changed_row_is_named(audited: Ledger, any_url: str, table: str, change: str) -> None:
    with behind_the_triggers(any_url, table) as connection:
        connection.exec_driver_sql(change)
    assert [(f.place, f.message) for f in chains(audited)] == [
        (f"{table} 2", "was changed: its hash is not that of its values")
    ]


def test_a_removed_row_in_the_middle_is_named_by_its_successor(audited: Ledger, any_url: str) -> None:
    with behind_the_triggers(any_url, "review") as connection:
        connection.exec_driver_sql("DELETE FROM review WHERE id = 2")
    (found,) = chains(audited)
    assert found.place == "review 3"
    assert "does not follow the row before it" in found.message


def test_a_cut_tail_is_found_by_the_recorded_end(audited: Ledger, any_url: str) -> None:
    with behind_the_triggers(any_url, "event") as connection:
        connection.exec_driver_sql("DELETE FROM event WHERE id > 2")
    (found,) = chains(audited)
    assert (found.place, found.message) == ("event", "ends at row 2; audit_head says 4: its end was cut off or replaced")


def test_rows_inserted_past_the_triggers_are_named(audited: Ledger, any_url: str) -> None:
    with behind_the_triggers(any_url, "review") as connection:
        connection.exec_driver_sql(
            "INSERT INTO review (id, cell_id, reviewer, label, at) VALUES (9, 1, 'Z', 'z', '2026-01-01T00:00:00.000000Z')"
        )
    (found,) = chains(audited)
    assert found.place == "review 9"
    assert "past the triggers" in found.message


def test_a_rewritten_tail_needs_an_anchor(audited: Ledger, any_url: str) -> None:
    """Cut the tail, move audit_head with it, write other rows: only an end that was noted elsewhere tells."""
    noted = verification.heads(audited)["review"]
    second = _links(audited, "review")[1]
    with behind_the_triggers(any_url, "review") as connection:
        connection.exec_driver_sql("DELETE FROM review WHERE id = 3")
        connection.exec_driver_sql(f"UPDATE audit_head SET last_id = 2, row_hash = '{second.row_hash}' WHERE name = 'review'")
    assert chains(audited) == []  # as documented: nothing inside the database tells
    (found,) = verification.check_chain(audited, "review", anchor=noted)
    assert (found.place, found.message) == ("review 3", "was noted as the end of the chain and is not there")
    audited.review(1, "forged", "x")
    (found,) = verification.check_chain(audited, "review", anchor=noted)
    assert (found.place, found.message) == ("review 3", "is not the row that was noted as the end of the chain")
    assert list(verification.check_chain(audited, "event", anchor=verification.heads(audited)["event"])) == []


def test_the_chain_goes_on_after_an_insert_by_hand_on_postgresql(postgres_cleaned: Callable[[], str]) -> None:
    url = postgres_cleaned()
    with opened(url) as ledger:
        ledger.commit(make_measured("a"), *KEY)
        ledger.review(1, "R", "monocyte")
        engine = create_engine(parse_url(url).sqlalchemy_url)
        with engine.begin() as connection:  # as psql would: what is given for the id and the hashes does not matter
            connection.exec_driver_sql(
                "INSERT INTO review (id, cell_id, reviewer, label, row_hash) "
                "VALUES (77, 1, 'psql', 'a', 'x'), (78, 1, 'psql', 'b', 'y')"
            )
        with engine.connect() as connection:
            connection.exec_driver_sql("INSERT INTO review (cell_id, reviewer, label) VALUES (1, 'psql', 'rolled back')")
            connection.rollback()
        engine.dispose()
        ledger.review(1, "R", "neutrophil")
        assert [link.row_id for link in _links(ledger, "review")] == [1, 2, 3, 4]
        assert chains(ledger) == []


def test_a_hand_made_insert_on_sqlite_is_refused(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    import sqlite3

    sqlite_ledger.commit(make_measured("a"), *KEY)
    sqlite_ledger.review(1, "R", "monocyte")
    connection = sqlite3.connect(tmp_path / "wbcd.db")
    row = "1, 'Z', 'z', '2026-01-01T00:00:00.000000Z'"
    columns = "id, cell_id, reviewer, label, at, previous_hash, row_hash"
    for statement in (
        f"INSERT INTO review (cell_id, reviewer, label, at) VALUES ({row})",
        f"INSERT INTO review ({columns}) VALUES (2, {row}, '{GENESIS}', 'x')",
        f"INSERT OR REPLACE INTO review ({columns}) VALUES (1, {row}, '{GENESIS}', 'x')",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="hash chain"):
            connection.execute(statement)
    connection.close()
    assert chains(sqlite_ledger) == []


def test_a_recipe_that_is_not_its_hash_is_named(audited: Ledger, any_url: str) -> None:
    changed = 'UPDATE recipe SET parameters = \'{"morphology": {"threshold_ri": 1.2}}\''
    audited._write(lambda connection: connection.exec_driver_sql(changed) and None)
    (found,) = verification.check_recipes(audited)
    assert (found.check, found.place) == ("recipe", KEY[0])


def test_a_model_whose_card_gives_another_digest_is_named(audited: Ledger) -> None:
    assert list(verification.check_models(audited, lambda card: "1" + "0" * 39)) == []
    (found,) = verification.check_models(audited, lambda card: "2" + "0" * 39)
    assert (found.check, found.place) == ("model", "model@1")
    (found,) = verification.check_models(audited, lambda card: None)
    assert "no digest" in found.message


def test_a_file_that_changed_since_is_named(audited: Ledger, tmp_path: Path) -> None:
    for number in range(3):
        audited.sighted(f"/watch/{number}.h5", 1, 1, f"c{number}")
    now: dict[str, str | None] = {"/watch/0.h5": "c0", "/watch/1.h5": None, "/watch/2.h5": "other"}
    (found,) = verification.check_sources(audited, lambda path: now[str(path)])
    assert (found.check, found.place) == ("source", "/watch/2.h5")
    assert verification.source_count(audited) == 3


# --- tomograms ------------------------------------------------------------------------------------------


def a_cell() -> Cell:
    ri = np.random.default_rng(1).normal(1.35, 0.01, (30, 40, 40)).astype(np.float32)
    return Cell(1, ri, ri > 1.35, (0.2, 0.1, 0.1), 1.337, (0.0, 0.0, 0.0))


@pytest.fixture
def kept(sqlite_ledger: Ledger, tmp_path: Path) -> tuple[Ledger, Path, list[Path]]:
    """Three acquisitions whose only cell's tomogram was kept."""
    import dataclasses

    root, images = tmp_path / "output", []
    for name in "abc":
        image = write_tomogram(root, a_cell(), acquisition=make_acquisition(name), recipe_id=KEY[0])
        cell = dataclasses.replace(make_cell(), tomogram_path=str(image))
        sqlite_ledger.commit(make_measured(name, cell), *KEY)
        images.append(image)
    return sqlite_ledger, root, images


def messages(kept: tuple[Ledger, Path, list[Path]]) -> list[tuple[str, str]]:
    ledger, root, _ = kept
    return [(finding.place, finding.message) for finding in verification.check_tomograms(ledger, root)]


def test_whole_tomograms_hold_and_may_move_with_their_folder(kept: tuple[Ledger, Path, list[Path]]) -> None:
    ledger, root, _ = kept
    assert messages(kept) == []
    assert verification.tomogram_count(ledger) == 3
    moved = root.with_name("moved")
    root.rename(moved)
    assert messages((ledger, moved, [])) == []


def test_every_flipped_byte_of_a_chunk_is_found(kept: tuple[Ledger, Path, list[Path]]) -> None:
    _, _, images = kept
    chunk = next(path for path in sorted((images[1] / "2").rglob("*")) if path.is_file() and path.name != "zarr.json")
    raw = chunk.read_bytes()
    for place in (0, len(raw) // 2, len(raw) - 1):
        chunk.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        assert messages(kept) == [(str(images[1]), f"{chunk.relative_to(images[1])} was changed (cell 2)")]
    chunk.write_bytes(raw)
    assert messages(kept) == []


def test_files_that_are_missing_added_or_linked_are_named(kept: tuple[Ledger, Path, list[Path]], tmp_path: Path) -> None:
    _, _, images = kept
    (images[0] / "added").write_text("x")
    (images[1] / "zarr.json").unlink()
    real = images[2] / "0" / "zarr.json"
    (tmp_path / "elsewhere").write_bytes(real.read_bytes())
    real.unlink()
    real.symlink_to(tmp_path / "elsewhere")
    assert messages(kept) == [
        (str(images[0]), "added is not in the manifest (cell 1)"),
        (str(images[1]), "zarr.json is missing (cell 2)"),
        (str(images[2]), "0/zarr.json was changed (cell 3)"),
    ]


def test_a_manifest_that_is_damaged_is_named(kept: tuple[Ledger, Path, list[Path]]) -> None:
    _, _, images = kept
    (images[0] / MANIFEST).write_text("{")
    (images[1] / MANIFEST).write_text("[]")
    assert messages(kept) == [(str(image), f"{MANIFEST} is not readable (cell {n})") for n, image in enumerate(images[:2], 1)]


def test_an_image_of_the_first_versions_is_checked_by_its_chunks(kept: tuple[Ledger, Path, list[Path]]) -> None:
    _, _, images = kept
    (images[0] / MANIFEST).unlink()
    assert messages(kept) == []
    chunk = next(path for path in sorted((images[0] / "0").rglob("*")) if path.is_file() and path.name != "zarr.json")
    raw = bytearray(chunk.read_bytes())
    raw[len(raw) // 2] ^= 1
    chunk.write_bytes(raw)
    ((place, message),) = messages(kept)
    assert place == str(images[0])
    assert "not a whole tomogram" in message


def test_a_removed_folder_and_an_orphan_are_named(kept: tuple[Ledger, Path, list[Path]], tmp_path: Path) -> None:
    _, root, images = kept
    orphan = tomogram_path(root, content_id="f" * 40, recipe_id=KEY[0], number=1)
    orphan.parent.mkdir()
    images[0].rename(orphan)
    images[1].rename(tmp_path / "aside")
    images[1].symlink_to(tmp_path / "aside")
    assert messages(kept) == [
        (str(images[0]), "is missing (cell 1)"),
        (str(images[1]), "is a symbolic link (cell 2)"),
        (str(orphan), "is named by no row"),
    ]


def test_an_image_in_the_making_is_no_orphan(kept: tuple[Ledger, Path, list[Path]]) -> None:
    """A daemon writes the image before its row: begun, not yet stored."""
    ledger, root, _ = kept
    acquisition = make_acquisition("in hand")
    ledger.begin(acquisition)
    write_tomogram(root, a_cell(), acquisition=acquisition, recipe_id=KEY[0])
    assert messages(kept) == []
