"""The isolated reader: same answers as reading here, and whatever a file does to it stays there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_acquisition import holograms, load, ri_volume, tcf_file, wbcd_file

from wbcd import errors
from wbcd.acquisition import IsolatedReader, IsolationLimits, ReadDefaults, identify, isolate, wire
from wbcd.acquisition.child import cpu_for
from wbcd.acquisition.isolate import _environment
from wbcd.errors import BadField, InputError, ReaderDied, TooLarge, Truncated
from wbcd.records import HologramStack, RiSeries
from wbcd.simulation.files import write_ome_zarr_ri


@pytest.fixture(scope="module")
def reader():
    with IsolatedReader() as shared:
        yield shared


def same(first: HologramStack, second: HologramStack) -> None:
    np.testing.assert_array_equal(first.holograms, second.holograms)
    assert first.holograms.dtype == second.holograms.dtype
    assert (first.optics, first.normal_frame) == (second.optics, second.normal_frame)


def test_holograms_come_over_whole(tmp_path, reader):
    path = wbcd_file(tmp_path / "a.h5", holograms(reference=True, dtype=np.uint16))
    here, there = load(path), reader.read(identify(path))
    assert here[0] == there[0]
    same(here[1], there[1])
    np.testing.assert_array_equal(here[1].reference, there[1].reference)
    there[1].holograms[0] = 0  # an ordinary, private, writable array


@pytest.mark.parametrize("version", ["1.2", "1.3", "1.6"])
def test_tcf_volumes_come_one_at_a_time(tmp_path, reader, version):
    fill = ri_volume()
    fill[:, :3, :3] = 0
    path = tcf_file(tmp_path / "a.TCF", [ri_volume(), fill], version=version, overlap=3)
    ticket, series = reader.read(identify(path), ReadDefaults(sample_id="donor 3"))
    assert isinstance(series, RiSeries)
    assert (ticket.sample_id, series.count) == ("donor 3", 2)
    there, (_, here) = list(series), load(path)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a.ri, b.ri)
        assert (a.voxel_um, a.medium_ri, a.time_index, a.wavelength_um) == (
            b.voxel_um,
            b.medium_ri,
            b.time_index,
            b.wavelength_um,
        )
    assert there[0].fill is None
    np.testing.assert_array_equal(there[1].fill, fill == 0)


def test_ome_zarr(tmp_path, reader):
    path = write_ome_zarr_ri(tmp_path / "a.zarr", ri_volume(), (0.2, 0.1, 0.1))
    (tomogram,) = reader.read(identify(path))[1]
    np.testing.assert_array_equal(tomogram.ri, ri_volume())


def test_errors_keep_class_words_and_advice(tmp_path, reader):
    path = wbcd_file(tmp_path / "a.h5")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(Truncated, match=r"a\.h5 holds \d+ bytes; its header says") as caught:
        reader.read(identify(path))
    assert caught.value.advice == Truncated.action


def test_an_error_in_a_later_volume_is_raised_when_it_is_asked_for(tmp_path, reader):
    path = tcf_file(tmp_path / "a.TCF", [ri_volume(), ri_volume() * 1e4], version="1.2")
    series = iter(reader.read(identify(path))[1])
    next(series)
    with pytest.raises(BadField, match="000001"):
        next(series)


def test_one_child_serves_many_files(tmp_path):
    path = wbcd_file(tmp_path / "a.h5")
    with IsolatedReader() as reader:
        for _ in range(20):
            reader.read(identify(path))
        assert reader.restarts == 0


def test_no_descriptor_and_no_process_is_left(tmp_path):
    path = wbcd_file(tmp_path / "a.h5")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with IsolatedReader() as reader:
        reader.read(identify(path))
        pid = reader._child.pid
    assert not Path(f"/proc/{pid}").exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_killed_child_is_named_and_replaced(tmp_path):
    path = wbcd_file(tmp_path / "a.h5")
    with IsolatedReader() as reader:
        reader.start()
        os.kill(reader._child.pid, signal.SIGSTOP)  # so that it dies during a request, not before
        os.kill(reader._child.pid, signal.SIGKILL)
        reader._child.poll = lambda: None
        with pytest.raises(ReaderDied, match=r"SIGKILL while reading .*a\.h5"):
            reader.read(identify(path))
        same(reader.read(identify(path))[1], load(path)[1])
        assert reader.restarts == 1


def test_a_hanging_child_is_ended_in_time(tmp_path):
    path = wbcd_file(tmp_path / "a.h5")
    with IsolatedReader(IsolationLimits(timeout_s=60.0)) as reader:
        reader.start()
        stopped = reader._child.pid
        reader._channel.settimeout(0.2)
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(ReaderDied, match=r"a\.h5 took more than 60 s"):
            reader.read(identify(path))
        assert not Path(f"/proc/{stopped}").exists()
        reader.read(identify(path))


def test_memory_is_bounded(tmp_path):
    """A few kB on disk that unpack to 1 GiB: refused in the child, which lives on."""
    path = wbcd_file(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        del file["holograms"]
        data = file.create_dataset("holograms", (64, 4096, 4096), np.uint8, chunks=(1, 4096, 4096), compression="gzip")
        data[0] = 1
        packed = data.id.read_direct_chunk((0, 0, 0))[1]
        for index in range(1, 64):
            data.id.write_direct_chunk((index, 0, 0), packed)
    assert path.stat().st_size < 2 * 2**20
    with IsolatedReader(IsolationLimits(address_space_bytes=2**30)) as reader:
        with pytest.raises(TooLarge, match="more memory"):
            reader.read(identify(path), ReadDefaults(max_logical_bytes=2**31))
        reader.read(identify(wbcd_file(tmp_path / "b.h5")))
        assert reader.restarts == 0


def test_cpu_is_bounded():
    program = "from wbcd.acquisition.child import allow_cpu; allow_cpu(0.0)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", program], env=_environment(), check=False, timeout=60)
    assert done.returncode == -signal.SIGXCPU


def test_a_small_file_has_seconds_and_a_large_one_minutes():
    assert cpu_for(1000, 120.0) == pytest.approx(20.0, abs=0.01)
    assert cpu_for(13_000_000, 120.0) < 30.0
    assert cpu_for(370_000_000, 120.0) > 100.0
    assert cpu_for(10**12, 120.0) == 120.0
    assert cpu_for(10**12, 5.0) == 5.0


def test_an_endless_loop_is_ended_by_its_cpu_time(tmp_path, monkeypatch):
    loop = "def read(*a, **k):\n    while True: pass\n"
    endless = f"import sys, wbcd.acquisition.child as c\n{loop}c.read = read\nsys.exit(c.main(sys.argv[1:]))"
    monkeypatch.setattr(isolate, "_PROGRAM", ("-c", endless))
    with IsolatedReader(IsolationLimits(cpu_s=1.0)) as reader, pytest.raises(ReaderDied, match=r"SIGXCPU.*a\.h5"):
        reader.read(identify(wbcd_file(tmp_path / "a.h5")))


def test_the_kernel_takes_the_reader_first(tmp_path):
    with IsolatedReader() as reader:
        reader.start()
        assert Path(f"/proc/{reader._child.pid}/oom_score_adj").read_text().strip() == "1000"


def test_asking_for_another_file_ends_the_series(tmp_path, reader):
    series = iter(reader.read(identify(tcf_file(tmp_path / "a.TCF", [ri_volume(), ri_volume()])))[1])
    next(series)
    reader.read(identify(wbcd_file(tmp_path / "b.h5")))
    with pytest.raises(ReaderDied, match="went on"):
        next(series)


def test_the_child_inherits_no_secrets_and_no_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("WBCD_DATABASE_URL", "postgresql://user:secret@host/db")
    with IsolatedReader() as reader:
        reader.start()
        process = Path(f"/proc/{reader._child.pid}")
        assert b"secret" not in (process / "environ").read_bytes()
        assert "torch" not in (process / "maps").read_text()


def test_closed_reader_starts_again(tmp_path):
    reader = IsolatedReader()
    reader.start()
    reader.close()
    reader.close()
    reader.read(identify(wbcd_file(tmp_path / "a.h5")))
    reader.close()


# --- the wire ------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    "packet", [b"no json", b"[]", b"{}", b'{"arrays": [{"name": "a", "dtype": "uint8", "shape": [1]}]}', b"\xff"]
)
def test_nonsense_is_not_believed(pair, packet):
    pair[0].send(packet)
    with pytest.raises(ReaderDied, match="isolated reader"):
        wire.receive(pair[1])


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "seals"),
    [
        ("object", [1], 8, True),
        ("uint8", [9], 8, True),
        ("uint8", [-8], 8, True),
        ("uint8", [8], 8, False),
        ("float64", [2**62, 4], 8, True),
    ],
)
def test_arrays_of_wrong_size_or_without_seals_are_refused(pair, dtype, shape, size, seals):
    import fcntl
    import json

    handle = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.truncate(handle, size)
    if seals:
        fcntl.fcntl(handle, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    head = {"arrays": [{"name": "a", "dtype": dtype, "shape": shape}]}
    socket.send_fds(pair[0], [json.dumps(head).encode()], [handle])
    os.close(handle)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ReaderDied):
        wire.receive(pair[1])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_every_input_error_survives_the_wire():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, InputError)]
    assert len(kinds) > 10
    for kind in kinds:
        back = wire.unpack_error(wire.pack_error(kind("what", action="do")))
        assert (type(back), back.message, back.advice) == (kind, "what", "do")
    assert isinstance(wire.unpack_error({"error": "SystemExit", "message": "x"}), ReaderDied)
    assert isinstance(wire.unpack_error({"error": "StoreError", "message": "x"}), ReaderDied)


def test_a_long_message_fits_a_packet(pair):
    wire.send(pair[0], wire.pack_error(BadField("x" * 1_000_000)))
    message, _ = wire.receive(pair[1])
    assert len(message["message"]) == wire.MAX_TEXT


def test_paths_that_are_no_utf8_cross(tmp_path, reader):
    name = os.fsdecode(b"a\xff.h5")
    path = wbcd_file(tmp_path / "a.h5").rename(tmp_path / name)
    assert reader.read(identify(path))[0].path == path
