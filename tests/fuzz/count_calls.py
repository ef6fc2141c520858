"""Which system calls the isolated reader makes, counted over every format and the ways a read ends: what the filter must allow.

    python tests/fuzz/count_calls.py [--library scipy] [--files 200] [--keep FOLDER]

Needs strace. The real child is run under it, with its real filter: only calls made once the filter stands are counted. For
each call are printed how often it was made, how often it was refused, and by which reads; for a call that is judged by an
argument, also the arguments. Exit status 1 when a read ended otherwise than it must. Whoever adds a library to the readers
adds a read to ``LIBRARIES``, runs this, and looks at the column "refused" (docs/explanation/hostile-files.md).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wbcd.acquisition import IsolatedReader, identify, isolate
from wbcd.acquisition.isolate import IsolationLimits
from wbcd.errors import InputError

FILTER_SET = re.compile(r"(seccomp\(SECCOMP_SET_MODE_FILTER|prctl\(PR_SET_SECCOMP).*= 0$")
CALL = re.compile(r"^(?:\d+ +)?(?:<\.\.\. )?(?P<name>[a-z0-9_]+)(?: resumed>|\()")
REFUSED = re.compile(r"= -1 (?P<code>EPERM|EACCES|ENOSYS) ")
JUDGED = re.compile(
    r"^(?:\d+ +)?(?P<call>(clone|prctl|fcntl|ioctl|open|openat|socketpair|tgkill|prlimit64|madvise|mmap|mprotect)\(.*)"
)
NUMBERS = re.compile(r"0x[0-9a-f]{4,}|\b\d{2,}\b")


@dataclass
class Counts:
    """Calls by name; ``by`` names the reads that made them."""

    made: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    by: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    arguments: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, trace: Path, what: str) -> None:
        """Count what stands in a trace behind the filter's installation. Raises ValueError when it was never installed."""
        begun = False
        for line in trace.read_text(errors="replace").splitlines():
            if not begun:
                begun = FILTER_SET.search(line) is not None
                continue
            found = CALL.match(line)
            if found is None:
                continue
            name = found["name"]
            if (refused := REFUSED.search(line)) is not None:
                self.refused[name, refused["code"]] += 1
            if " resumed>" in line:
                continue
            self.made[name] += 1
            self.by[name].add(what)
            if (judged := JUDGED.match(line)) is not None:
                self.arguments[name][_shape(judged["call"])] += 1
        if not begun:
            raise ValueError(f"{what}: no filter was installed")


def _shape(call: str) -> str:
    """The call without addresses, lengths and names, so that like ones fall together."""
    return NUMBERS.sub("N", re.sub(r'"[^"]*"(\.\.\.)?', '"..."', call.split(" = ")[0]))[:150]


@contextmanager
def traced(trace: Path, program: tuple[str, ...] | None = None) -> Iterator[IsolatedReader]:
    """A reader whose child runs under strace; ``program`` in place of the child's own."""
    start, own = subprocess.Popen, isolate._PROGRAM

    def under_strace(command: list[str], **options: Any) -> Any:
        return start(["strace", "-f", "-qq", "-o", str(trace), "--", *command], **options)

    isolate.subprocess.Popen = under_strace  # type: ignore[misc, assignment]
    isolate._PROGRAM = program or own  # type: ignore[assignment]
    limits = IsolationLimits(timeout_s=600.0)
    try:
        with IsolatedReader(limits) as reader:
            yield reader
            if reader._channel is not None and reader._child is not None:
                reader._channel.close()  # the child ends by itself; a killed strace would leave its last lines unwritten
                reader._child.wait(60)
    finally:
        isolate.subprocess.Popen = start  # type: ignore[misc]
        isolate._PROGRAM = own


def whole(reader: IsolatedReader, path: Path) -> str:
    """Read all of it: "read", or the code of the error."""
    try:
        _, payload = reader.read(identify(path))
        if hasattr(payload, "holograms"):
            return "read"
        return "read" if sum(1 for _ in payload) == payload.count else "volumes are missing"
    except InputError as error:
        return error.code


# --- the corpus ----------------------------------------------------------------------------------


def own_formats(folder: Path) -> dict[str, tuple[Path, str]]:
    """A file of each format and each bad end: its path, and how reading it must end."""
    from helpers_acquisition import OPTICS, holograms
    from helpers_fuzz import make_corpus

    from wbcd.simulation.files import write_mat, write_tiff_pair

    stack = holograms(5, 64, reference=True)
    cases = {name: (path, "read") for name, path in make_corpus(folder / "corpus").items()}
    (folder / "pair").mkdir()
    (folder / "session").mkdir()
    cases["tiff pair"] = (write_tiff_pair(folder / "pair", "a", stack), "read")
    write_mat(folder / "session" / "bg001_Tomog.mat", stack.reference, OPTICS)
    cases["matlab"] = (write_mat(folder / "session" / "sample001_Tomog.mat", stack.holograms, OPTICS), "read")
    cut = folder / "cut.h5"
    cut.write_bytes(cases["sealed"][0].read_bytes()[:-2000])
    cases["cut"] = (cut, "input.truncated")
    noise = folder / "noise.TCF"
    noise.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 64)
    cases["noise"] = (noise, "")
    cases["large"] = (_large(folder / "large.h5"), "read")
    return cases


def _large(path: Path) -> Path:
    """180 MB of frames: arrays that the allocator maps, and gives back, by themselves."""
    from helpers_acquisition import holograms, wbcd_file

    return wbcd_file(path, holograms(45, 2048))


SPY = """
import sys
import wbcd.acquisition.child as child
from wbcd.errors import InputError

def spy(acquisition, **_):
    path = acquisition.path
    {code}
    raise InputError("read by the library")

child.read = spy
sys.exit(child.main(sys.argv[1:]))
"""

LIBRARIES: dict[str, tuple[str, str]] = {
    "scipy.io": ("scipy", "import scipy.io; scipy.io.loadmat(path.parent / 'v7.mat')['a'].sum()"),
    "tifffile": (
        "tifffile",
        "import tifffile; [tifffile.imread(path.parent / n).sum() for n in ('plain.tif', 'deflate.tif', 'ome.ome.tif')]",
    ),
    "tifffile, several threads": (
        "tifffile",
        "import tifffile; t = tifffile.TiffFile(path.parent / 'tiles.tif'); t.asarray(maxworkers=4).sum(); t.close()",
    ),
    "hdf5plugin": (
        "hdf5plugin",
        "import hdf5plugin, h5py; f = h5py.File(path.open('rb'), 'r'); [f[n][()].sum() for n in f]",
    ),
    "zipfile": ("zipfile", "import zipfile; z = zipfile.ZipFile(path.open('rb')); [z.read(n) for n in z.namelist()]"),
    "zarr in a zip": (
        "zarr",
        "import zarr; s = zarr.storage.ZipStore(path, mode='r'); zarr.open_array(s, mode='r')[...].sum(); s.close()",
    ),
    "threads and memory": (
        "numpy",
        "import numpy as np, concurrent.futures as c\n"
        "    with c.ThreadPoolExecutor(8) as pool: list(pool.map(lambda n: np.ones((n, 1 << 20)).sum(), range(1, 20)))\n"
        "    try: np.ones(1 << 40)\n"
        "    except MemoryError: pass\n"
        "    kept = [bytearray(1 << 26) for _ in range(4)]; kept[0].extend(bytes(1 << 26)); del kept",
    ),
}


def library_files(folder: Path) -> dict[str, Path]:
    """What the reads of LIBRARIES are given; a library that is not installed has none."""
    import numpy as np

    rng = np.random.default_rng(1)
    values = rng.integers(0, 99, (8, 64, 64)).astype(np.uint16)
    made: dict[str, Path] = {}
    makers: dict[str, Callable[[Path], Path]] = {
        "scipy.io": lambda at: _scipy(at, values),
        "tifffile": lambda at: _tifffile(at, values),
        "tifffile, several threads": lambda at: _tifffile(at, values),
        "hdf5plugin": lambda at: _hdf5plugin(at, values),
        "zipfile": lambda at: _zip(at, values),
        "zarr in a zip": lambda at: _zarr_zip(at, values),
        "threads and memory": lambda at: _zip(at, values),
    }
    for name, (module, _) in LIBRARIES.items():
        if find_spec(module) is None:
            print(f"{module} is not installed: {name} is passed over", file=sys.stderr)
            continue
        at = folder / name
        at.mkdir()
        made[name] = makers[name](at)
    return made


def _scipy(at: Path, values: Any) -> Path:
    import scipy.io

    scipy.io.savemat(at / "v7.mat", {"a": values}, do_compression=True)
    return _anchor(at)


def _tifffile(at: Path, values: Any) -> Path:
    import tifffile

    tifffile.imwrite(at / "plain.tif", values)
    tifffile.imwrite(at / "deflate.tif", values, compression="zlib")
    tifffile.imwrite(at / "ome.ome.tif", values, metadata={"axes": "ZYX"})
    tifffile.imwrite(at / "tiles.tif", values.repeat(8, 1).repeat(8, 2), tile=(64, 64), compression="zlib")
    return _anchor(at)


def _hdf5plugin(at: Path, values: Any) -> Path:
    import h5py
    import hdf5plugin

    with h5py.File(at / "a.h5", "w") as file:
        for name in ("LZ4", "Zstd", "Blosc", "Blosc2", "Bitshuffle"):
            file.create_dataset(name, data=values, chunks=(4, 64, 64), compression=getattr(hdf5plugin, name)())
    return at / "a.h5"


def _zip(at: Path, values: Any) -> Path:
    import zipfile

    with zipfile.ZipFile(at / "a.h5", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", values.tobytes())
    return at / "a.h5"


def _zarr_zip(at: Path, values: Any) -> Path:
    import zarr

    store = zarr.storage.ZipStore(at / "a.zip", mode="w")
    array = zarr.create_array(store, shape=values.shape, dtype=values.dtype, chunks=(4, 64, 64))
    array[...] = values
    store.close()
    return (at / "a.zip").rename(at / "a.h5")


def _anchor(at: Path) -> Path:
    """A file that the watch folder would take; the library reads what lies beside it."""
    (at / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    return at / "a.h5"


# --- the run -------------------------------------------------------------------------------------


def count(folder: Path, libraries: list[str], fuzzed: int) -> tuple[Counts, list[str]]:
    """Run everything below ``folder``; the counts, and a sentence for each read that ended otherwise than it must."""
    counts, wrong = Counts(), []
    for name, (path, end) in own_formats(folder).items():
        trace = folder / f"{name}.trace"
        with traced(trace) as reader:
            found = whole(reader, path)
        if (end or "input") not in found:
            wrong.append(f"{name}: {found}, not {end or 'an error of the input'}")
        counts.add(trace, name)
    for name, path in library_files(folder).items():
        if libraries and name not in libraries:
            continue
        trace = folder / f"{name}.trace"
        with traced(trace, ("-c", SPY.replace("{code}", LIBRARIES[name][1]))) as reader:
            try:
                reader.read(identify(path))
                wrong.append(f"{name}: it was not the library that read")
            except InputError as error:
                if error.message != "read by the library":
                    wrong.append(f"{name}: {error.message}")
        counts.add(trace, name)
    if fuzzed:
        _spoiled(folder, fuzzed, counts)
    return counts, wrong


def _spoiled(folder: Path, files: int, counts: Counts) -> None:
    from helpers_fuzz import make_case, make_corpus, remove_case

    corpus = make_corpus(folder / "fuzz corpus")
    watch = folder / "fuzz"
    watch.mkdir()
    trace = folder / "fuzz.trace"
    with traced(trace) as reader:
        for seed in range(files):
            _, _, path = make_case(seed, corpus, watch)
            try:
                whole(reader, path)
            finally:
                remove_case(path)
    counts.add(trace, "spoiled files")


def table(counts: Counts) -> str:
    """The counts as text, the most frequent first."""
    lines = [f"{'call':<22}{'made':>9}  {'refused':<18}  by"]
    everybody = set().union(*counts.by.values()) if counts.by else set()
    for name, made in counts.made.most_common():
        refused = ", ".join(f"{n} {code}" for (call, code), n in counts.refused.items() if call == name)
        by = counts.by[name]
        who = "all" if by == everybody else f"{len(by)} of {len(everybody)}" if len(by) > 4 else ", ".join(sorted(by))
        lines.append(f"{name:<22}{made:>9}  {refused:<18}  {who}")
        lines += [f"{'':<22}{n:>9}    {what}" for what, n in counts.arguments[name].most_common(40)]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", action="append", default=[], help="only this read of LIBRARIES, beside the formats")
    parser.add_argument("--files", type=int, default=0, help="spoiled files of the fuzz, beside the whole ones")
    parser.add_argument("--keep", type=Path, help="an empty folder for the files and the traces")
    arguments = parser.parse_args()
    if shutil.which("strace") is None:
        print("strace is not installed", file=sys.stderr)
        return 69
    with tempfile.TemporaryDirectory() as own:
        counts, wrong = count(arguments.keep or Path(own), arguments.library, arguments.files)
    print(table(counts))
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
