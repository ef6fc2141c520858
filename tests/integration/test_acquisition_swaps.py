"""A folder swapped for a link after the scan: whatever the moment, nothing outside the watch folder is read."""

from __future__ import annotations

import os
import random
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers_acquisition import ri_volume, tcf_file, wbcd_file

from wbcd.acquisition import IsolatedReader, beneath, identify, read
from wbcd.acquisition.beneath import ground_of, parent_of, subfolder
from wbcd.acquisition.watch import scan
from wbcd.errors import InputError, NotARegularFile, NotReadable
from wbcd.records import RiSeries
from wbcd.simulation.files import write_ome_zarr_ri


@pytest.fixture(params=["openat2", "walk"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of going down: the kernel's, and component by component where it has none."""
    if request.param == "walk":
        monkeypatch.setattr(beneath, "openat2", lambda *_: None)
    return str(request.param)


def make(folder: Path, kind: str, seed: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "h5":
        return wbcd_file(folder / "a.h5", acquisition_id=f"A-{seed}")
    if kind == "tcf":
        return tcf_file(folder / "a.TCF", [ri_volume(seed=seed)])
    return write_ome_zarr_ri(folder / "a.zarr", ri_volume(seed=seed), (0.2, 0.1, 0.1))


@pytest.fixture(params=["h5", "tcf", "zarr"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Path]:
    """The watch folder, an acquisition two folders down, and a folder outside that holds another of the same name."""
    inside = make(tmp_path / "watch" / "session" / "run", request.param)
    outside = make(tmp_path / "outside" / "run", request.param, seed=2)
    return tmp_path / "watch", inside, outside.parent.parent


def swap(folder: Path, target: Path) -> None:
    folder.rename(folder.with_name(f".{folder.name}.old"))
    folder.symlink_to(target)


def taken(payload: object) -> None:
    if isinstance(payload, RiSeries):
        list(payload)


@pytest.mark.parametrize("level", ["session", "run"])
def test_swapped_between_scan_and_identification(scene: tuple[Path, Path, Path], way: str, level: str) -> None:
    root, path, outside = scene
    assert list(scan(root)[0]) == [path]
    folder = path.parent.parent if level == "session" else path.parent
    swap(folder, outside if level == "session" else outside / "run")
    assert path.exists()  # through the link another file of that name is there
    with pytest.raises(NotARegularFile, match="symbolic link"):
        identify(path, root=root)
    assert scan(root)[0] == {}


@pytest.mark.parametrize("isolated", [True, False])
def test_swapped_between_identification_and_reading(scene: tuple[Path, Path, Path], isolated: bool) -> None:
    root, path, outside = scene
    ticket = identify(path, root=root)
    swap(path.parent.parent, outside)
    if isolated:
        with IsolatedReader(root=root) as reader, pytest.raises(NotARegularFile, match="symbolic link"):
            reader.read(ticket)
    else:
        with pytest.raises(NotARegularFile, match="symbolic link"):
            read(ticket, root=root)


def test_swapped_while_volumes_are_taken(tmp_path: Path) -> None:
    root = tmp_path / "watch"
    path = tcf_file(root / "session" / "a.TCF", [ri_volume(), ri_volume(seed=3)])
    tcf_file(tmp_path / "outside" / "a.TCF", [ri_volume(seed=8), ri_volume(seed=9)])
    with IsolatedReader(root=root) as reader:
        volumes = iter(reader.read(identify(path, root=root))[1])
        next(volumes)
        swap(path.parent, tmp_path / "outside")
        second = next(volumes)  # from the descriptor that is open already
    assert (second.ri == ri_volume(seed=3)).all()


def test_swapped_without_end(scene: tuple[Path, Path, Path], way: str) -> None:
    """The folder is a link and no link in turn, as fast as a thread can: the outside file is never the one identified."""
    root, path, outside = scene
    theirs, ours = (identify(p).content_id for p in (outside / "run" / path.name, path))
    refusals = {"NotARegularFile", "NotReadable"}
    real, link = root / "session", root / ".link"
    link.symlink_to(outside)
    over = threading.Event()

    def swapping() -> None:
        rng = random.Random(0)
        while not over.is_set():  # exchanged by three renames: the name is always one or the other, or absent
            real.rename(root / ".real")
            link.rename(real)
            linger(rng, real)
            real.rename(link)
            (root / ".real").rename(real)
            linger(rng, real)

    thread = threading.Thread(target=swapping)
    thread.start()
    met: set[str] = set()
    try:
        # Until the reader has met both states: a run that saw one of them only could not have failed.
        for attempt in range(20_000):
            met.add(outcome_of(lambda: identify(path, root=root).content_id))
            if attempt >= 400 and ours in met and met & refusals:
                break
    finally:
        over.set()
        thread.join()
    assert theirs not in met
    assert ours in met <= {ours} | refusals, met
    assert met & refusals, met


def linger(rng: random.Random, place: Path) -> None:
    """Calls that give the other thread its turn: renames alone fall into step with it, and it then sees one state only."""
    for _ in range(2 ** rng.randrange(9)):
        place.lstat()


def outcome_of(action: Callable[[], str]) -> str:
    try:
        return action()
    except InputError as error:
        return type(error).__name__


def test_a_config_beside_the_file_is_not_read_through_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "w" / "20240506.070809.000.x-001"
    path = tcf_file(folder / f"{folder.name}.TCF", device=False)
    (tmp_path / "config.dat").write_text("n_m,1.401\n")
    (folder / "config.dat").symlink_to(tmp_path / "config.dat")
    with IsolatedReader(root=tmp_path / "w") as reader, pytest.raises(NotARegularFile):
        reader.read(identify(path, root=tmp_path / "w"))


# --- the parts -----------------------------------------------------------------------------------


def test_a_watch_folder_may_itself_be_a_link(tmp_path: Path, way: str) -> None:
    path = wbcd_file(tmp_path / "real" / "s" / "a.h5")
    (tmp_path / "watch").symlink_to(tmp_path / "real")
    through = tmp_path / "watch" / "s" / "a.h5"
    assert identify(through, root=tmp_path / "watch").content_id == identify(path).content_id
    assert list(scan(tmp_path / "watch")[0]) == [through]


@pytest.mark.parametrize("name", ["../outside", "s/../../outside", "/etc", "s//t", "./s", "s/.", "s\0"])
def test_names_that_lead_away(tmp_path: Path, way: str, name: str) -> None:
    (tmp_path / "in" / "s").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    handle = os.open(tmp_path / "in", os.O_RDONLY)
    try:
        with pytest.raises(NotARegularFile, match="leaves its folder"), subfolder(handle, name, tmp_path):
            pass
    finally:
        os.close(handle)


def test_going_down_holds_one_descriptor_and_leaves_none(tmp_path: Path, way: str) -> None:
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (tmp_path / "a" / "file").write_text("")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with parent_of(deep / "x.h5", tmp_path) as handle:
        assert os.path.samestat(os.fstat(handle), deep.stat())
        assert stat.S_ISDIR(os.fstat(handle).st_mode)
    for path, kind in ((deep / "gone" / "x.h5", NotReadable), (tmp_path / "a" / "file" / "b" / "x.h5", NotARegularFile)):
        with pytest.raises(kind), parent_of(path, tmp_path):
            pass
    with pytest.raises(NotReadable), parent_of(tmp_path / ("n" * 300) / "x.h5", tmp_path):
        pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_ground_of_a_path() -> None:
    assert ground_of(Path("/w/s/a.h5"), Path("/w")) == Path("/w")
    assert ground_of(Path("/w/s/a.h5"), None) == Path("/w/s")
    assert ground_of(Path("/x/a.h5"), Path("/w")) == Path("/x")
    assert ground_of(Path("/w"), Path("/w")) == Path("/")


def test_a_relative_path_below_an_absolute_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    path = wbcd_file(tmp_path / "w" / "s" / "a.h5")
    wbcd_file(tmp_path / "outside" / "a.h5", acquisition_id="other")
    monkeypatch.chdir(tmp_path)
    given = Path("w/s/a.h5")
    assert identify(given, root=tmp_path / "w").content_id == identify(path, root=Path("w")).content_id
    swap(path.parent, tmp_path / "outside")
    for root in (tmp_path / "w", Path("w")):
        with pytest.raises(NotARegularFile, match="symbolic link"):
            identify(given, root=root)
