"""Names, identity, and what is never opened."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest
from helpers_acquisition import ri_volume, wbcd_file

from wbcd.acquisition import identify, is_candidate, stat_candidate
from wbcd.acquisition.candidate import open_beneath, open_folder, read_whole
from wbcd.errors import Incomplete, NotARegularFile, NotReadable, TooLarge
from wbcd.simulation.files import write_ome_zarr_ri, write_reference


@pytest.mark.parametrize("name", ["a.h5", "b.HDF5", "c.tcf", "20220131.150824.759.Default-001.TCF", "d.zarr", "e.ome.zarr"])
def test_acquisitions_are_candidates(name):
    assert is_candidate(Path("folder") / name)


@pytest.mark.parametrize(
    "name", [".a.h5", "a.h5.part", "a.h5.tmp", "a.wbcdref", "config.dat", "a.h5~", "notes.txt", ".x.h5.12.part", "h5"]
)
def test_everything_else_is_not(name):
    assert not is_candidate(Path("folder") / name)


def test_writers_temporary_names_are_no_candidates(tmp_path, monkeypatch):
    seen = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (seen.append(self), replace(self, target))[1])
    wbcd_file(tmp_path / "a.h5")
    write_ome_zarr_ri(tmp_path / "b.zarr", ri_volume(), (0.2, 0.1, 0.1))
    assert {path.parent for path in seen} >= {tmp_path}
    assert len([path for path in seen if path.parent == tmp_path]) == 2
    assert not any(is_candidate(path) for path in seen)
    assert not is_candidate(write_reference(tmp_path / "session", ri_volume().astype("u1")))


def test_content_id_is_blake2b_of_the_bytes_under_any_name(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"x" * 3_000_001)
    (tmp_path / "b.h5").write_bytes(b"x" * 3_000_001)
    first, second = identify(tmp_path / "a.h5"), identify(tmp_path / "b.h5")
    assert first.content_id == second.content_id == hashlib.blake2b(b"x" * 3_000_001, digest_size=20).hexdigest()
    assert first.size_bytes == 3_000_001
    assert first.mtime_ns == (tmp_path / "a.h5").stat().st_mtime_ns


def test_zarr_folder_is_identified_by_names_and_bytes(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.zarr" / "0").mkdir(parents=True)
        (tmp_path / f"{name}.zarr" / "0" / "x").write_bytes(b"1")
        (tmp_path / f"{name}.zarr" / "y").write_bytes(b"2")
    (tmp_path / "c.zarr" / "y").rename(tmp_path / "c.zarr" / "z")
    ids = [identify(tmp_path / f"{name}.zarr") for name in ("a", "b", "c")]
    assert ids[0].content_id == ids[1].content_id != ids[2].content_id
    assert ids[0].size_bytes == 2


def test_moving_a_byte_between_files_of_a_folder_changes_the_id(tmp_path):
    for name, (x, y) in {"a": (b"12", b"3"), "b": (b"1", b"23")}.items():
        (tmp_path / f"{name}.zarr").mkdir()
        (tmp_path / f"{name}.zarr" / "x").write_bytes(x)
        (tmp_path / f"{name}.zarr" / "y").write_bytes(y)
    assert identify(tmp_path / "a.zarr").content_id != identify(tmp_path / "b.zarr").content_id


@pytest.mark.timeout(10)
def test_a_sparse_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.h5"
    path.touch()
    os.truncate(path, 2**40)
    blocks = []
    with pytest.raises(
        TooLarge, match=r"a\.h5 holds 1099511627776 bytes \(1.02e\+03 GiB\); \[limits\] max_file_bytes is 34359738368"
    ):
        identify(path, beat=lambda: blocks.append(1))
    assert blocks == []


@pytest.mark.timeout(10)
def test_a_folder_is_refused_by_the_sum_of_its_files(tmp_path):
    folder = tmp_path / "a.zarr"
    (folder / "0").mkdir(parents=True)
    for name in ("0/x", "0/y", "z"):
        (folder / name).touch()
        os.truncate(folder / name, 2**33)
    with pytest.raises(TooLarge, match=r"a\.zarr holds 25769803776 bytes"):
        identify(folder, max_bytes=2**34)


def test_a_file_of_just_the_limit_is_read(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"x" * 1000)
    assert identify(tmp_path / "a.h5", max_bytes=1000).size_bytes == 1000
    with pytest.raises(TooLarge, match=r"\[limits\] max_file_bytes is 999"):
        identify(tmp_path / "a.h5", max_bytes=999)


@pytest.mark.parametrize("name", ["a.h5", "a.zarr"])
def test_each_block_beats_and_what_a_beat_raises_ends_the_hashing(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".zarr"):
        path.mkdir()
    (path / "0" if path.is_dir() else path).write_bytes(b"x" * (5 * 2**20))
    blocks = []
    identify(path, beat=lambda: blocks.append(1))
    assert len(blocks) == 5

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        identify(path, beat=stop)


@pytest.mark.parametrize("name", ["a.h5", "a.zarr"])
@pytest.mark.timeout(30)
def test_a_file_that_grows_as_fast_as_it_is_read_comes_to_an_end(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".zarr"):
        path.mkdir()
    member = path / "0" if path.is_dir() else path
    member.write_bytes(b"x" * 2**20)

    def grow():
        with member.open("ab") as file:
            file.write(b"x" * 2**20)

    with pytest.raises(Incomplete, match=name):
        identify(path, beat=grow)


def test_directory_named_like_a_file(tmp_path):
    (tmp_path / "x.h5").mkdir()
    with pytest.raises(NotARegularFile, match=r"x\.h5 is a directory"):
        identify(tmp_path / "x.h5")


@pytest.mark.timeout(10)
def test_fifo_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "x.h5")
    with pytest.raises(NotARegularFile, match="FIFO"):
        identify(tmp_path / "x.h5")


def test_symlink_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "x.h5").symlink_to(tmp_path / "secret")
    (tmp_path / "y.zarr").symlink_to(tmp_path, target_is_directory=True)
    for name in ("x.h5", "y.zarr"):
        with pytest.raises(NotARegularFile, match="symbolic link"):
            identify(tmp_path / name)


def test_socket_and_device_are_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "x.h5"))
        with pytest.raises(NotARegularFile, match="socket"):
            identify(tmp_path / "x.h5")
    with pytest.raises(NotARegularFile, match="character device"):
        identify(Path("/dev/zero"))


def test_symlink_inside_a_zarr_folder_is_refused(tmp_path):
    path = write_ome_zarr_ri(tmp_path / "a.zarr", ri_volume(), (0.2, 0.1, 0.1))
    (path / "0" / "link").symlink_to("/etc/hostname")
    with pytest.raises(NotARegularFile, match="symbolic link"):
        identify(path)


def test_absent_and_io_error_are_not_readable(tmp_path):
    with pytest.raises(NotReadable, match="No such file"):
        identify(tmp_path / "gone.h5")
    with pytest.raises(NotReadable, match="cannot be read"):
        identify(Path("/proc/self/mem"))  # a regular file whose first byte cannot be read


def test_permission_denied_is_not_readable(tmp_path):
    path = tmp_path / "x.h5"
    path.write_bytes(b"1")
    path.chmod(0)
    tmp_path.chmod(0o755)
    user = os.geteuid()
    for parent in [tmp_path, *tmp_path.parents]:
        if not os.access(parent, os.X_OK):
            pytest.skip("the test folder is not reachable")
    if user == 0:
        for parent in list(tmp_path.parents)[:3]:
            if parent.owner() == "root" and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o055)
        os.seteuid(65534)
    try:
        with pytest.raises(NotReadable, match="Permission denied"):
            identify(path)
    finally:
        os.seteuid(user)


def test_a_file_that_grows_while_it_is_hashed_is_incomplete(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    path.write_bytes(b"1" * 100)
    readv = os.readv

    def growing(handle, blocks):
        with path.open("ab") as more:
            more.write(b"2")
        monkeypatch.setattr(os, "readv", readv)
        return readv(handle, blocks)

    monkeypatch.setattr(os, "readv", growing)
    with pytest.raises(Incomplete, match="100 to 101 bytes"):
        identify(path)


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/hostname", "a//b", "./x"])
def test_no_name_leaves_its_folder(tmp_path, name):
    (tmp_path / "inner" / "a").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    with open_folder(tmp_path / "inner") as folder, pytest.raises(NotARegularFile), open_beneath(folder, name, label=tmp_path):
        pass


def test_a_linked_folder_within_is_not_entered(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "x").write_text("secret")
    (tmp_path / "inner" / "a").symlink_to(tmp_path / "outer")
    with open_folder(tmp_path / "inner") as folder, pytest.raises(NotARegularFile), open_beneath(folder, "a/x", label=tmp_path):
        pass


def test_no_descriptor_is_left_open(tmp_path):
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "x").write_text("1234")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with open_folder(tmp_path / "d") as folder:
        with open_beneath(folder, "e/x", label=tmp_path) as handle:
            assert read_whole(handle, 4, tmp_path) == b"1234"
            with pytest.raises(TooLarge, match="4 bytes; the limit is 3"):
                read_whole(handle, 3, tmp_path)
        with pytest.raises(FileNotFoundError), open_beneath(folder, "e/y", label=tmp_path):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_state_of_a_zarr_folder_changes_with_any_file(tmp_path):
    path = write_ome_zarr_ri(tmp_path / "a.zarr", ri_volume(), (0.2, 0.1, 0.1))
    before = stat_candidate(path)
    (path / "0" / "more").write_bytes(b"")
    assert stat_candidate(path) != before
    assert stat_candidate(tmp_path / "gone.zarr") is None


def test_a_folder_that_cannot_be_listed_is_there_and_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.zarr"
    (path / "0").mkdir(parents=True)

    def denied(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", denied)
    found = stat_candidate(path)
    assert (found.size, found.mtime_ns) == (path.lstat().st_size, path.lstat().st_mtime_ns)
    with pytest.raises(NotReadable, match=r"a\.zarr cannot be listed: Permission denied"):
        identify(path)


def test_only_what_is_gone_has_no_state(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    assert stat_candidate(tmp_path / "absent.h5") is None
    assert stat_candidate(tmp_path / "file" / "below.h5") is None

    def stale(_):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "lstat", stale)
    assert stat_candidate(tmp_path / "file") is not None
