"""The soak: a daemon at full rate, killed at random and started again, on a folder that a bad day fills.

    make soak MINUTES=60

For two thirds of the time the daemon is killed (SIGKILL, now and then SIGTERM) after random seconds and started at once;
for the last third it runs undisturbed, so that its memory and descriptors can be seen to be flat. All the time a writer adds
files of every kind, copies, renames, touches and rewrites what is counted, and removes old files, while it keeps the truth.
At the end the ledger is compared with the truth. Everything goes into ``--out``: figures as soak.json, plots as PNG.
Exit status 1 when anything was lost, counted twice, counted otherwise, or grew.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sqlite3
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import psutil
from feeder import Feeder
from helpers_ledger import rows, sound
from helpers_spheres import cheap_settings, tiny_bundle
from helpers_zygote import Daemon, Zygote

OUTSTANDING = 60
"""Files without an outcome that the writer keeps in the folder: the daemon always has something to do."""

KEPT_FILES = 1500
MEAN_LIFE_S, SHORTEST_LIFE_S = 20.0, 1.0
SAMPLE_S = 5.0
MAX_GROWTH_MB, MAX_GROWTH_DESCRIPTORS = 20.0, 8
"""Over the undisturbed third: of the daemon, and of the largest of its readers (their number is the line's to choose, and has a
limit of its own). In an hour's soak the daemon grew by 3.4 MB."""

MOST_READERS = 3
READER = "wbcd.acquisition.child"
"""The module that a reader runs; a trial of a file that was in hand too often is a child of the daemon as well."""


@dataclass
class Soak:
    """One run. ``samples``: rows of the plots."""

    out: Path
    minutes: float
    seed: int
    samples: list[dict[str, float]] = field(default_factory=list)
    kills: dict[str, int] = field(default_factory=lambda: {"SIGKILL": 0, "SIGTERM": 0})
    starts: int = 0
    orphans: int = 0
    before_handler: int = 0
    unexpected_ends: list[int] = field(default_factory=list)
    done_runs: int = 0

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=False)
        self.incoming = self.out / "incoming"
        self.incoming.mkdir()
        self.chance = random.Random(self.seed)
        self.feeder = Feeder(self.incoming, self.out / "truth.jsonl", self.seed)
        self.settings = cheap_settings(
            self.out,
            tiny_bundle(self.out / "bundle"),
            **{
                "output.keep_tomograms": True,
                "limits.isolate": True,
                "watch.mode": "inotify",
                "watch.quiet_s": 0.3,
                "watch.rescan_s": 10.0,
                "service.heartbeat_s": 1.0,
            },
        )
        self.started_s = time.monotonic()
        self.last_sample_s = -SAMPLE_S
        self.zygote = Zygote()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s

    # --- the daemon ---

    def live(self, seconds: float, sign: signal.Signals | None) -> None:
        """One life: feed and sample until it is over, then end it (or let it drain)."""
        daemon = self.zygote.begin(self.settings, self.out / "log")
        self.starts += 1
        over_s = self.elapsed_s + seconds
        while self.elapsed_s < over_s and not daemon.ended:
            self.feed()
            self.sample(daemon)
        self.end(daemon, sign)

    def end(self, daemon: Daemon, sign: signal.Signals | None) -> None:
        if daemon.ended:  # nobody told it to
            self.unexpected_ends.append(daemon.wait())
            return
        children = daemon.process.children(recursive=True)
        daemon.send(sign or signal.SIGTERM)
        status = daemon.wait()
        if sign is not None:
            self.kills[sign.name] += 1
        if status == signal.SIGTERM:  # it came before the daemon was far enough to answer it: nothing was begun
            self.before_handler += 1
        elif status != (signal.SIGKILL if sign == signal.SIGKILL else 0):
            self.unexpected_ends.append(status)
        _, alive = psutil.wait_procs(children, timeout=60)
        self.orphans += len(alive)

    def settle(self, timeout_s: float = 900.0) -> None:
        """No more files: until each has its outcome."""
        daemon = self.zygote.begin(self.settings, self.out / "log")
        self.starts += 1
        deadline_s = self.elapsed_s + timeout_s
        while self.elapsed_s < deadline_s and not daemon.ended and (self.outstanding() > 0 or self.open_files() > 0):
            self.sample(daemon)
            time.sleep(0.2)
        time.sleep(2.0)  # what comes too much must have the time to come
        self.end(daemon, None)

    # --- the folder ---

    def feed(self) -> None:
        """Keep the folder full, then wait a little."""
        missing = OUTSTANDING - self.outstanding()
        for _ in range(max(0, min(missing, 40))):
            self.feeder.write()
        if missing > 0 and self.chance.random() < 0.5:
            self.meddle()
        time.sleep(0.05)

    def meddle(self) -> None:
        """With files that are counted: copy, rename, touch, rewrite one each; remove the oldest when there are many."""
        done = self.done()
        files = (path for path in done if path.endswith(".TCF") and not Path(path).is_symlink())
        # What is no file has no content to be copied, nor has a sparse one, known by its path: its copy would fill the disk.
        counted = [path for path in files if Path(path).is_file() and self.feeder.holds.get(path) != path]
        acts = [self.feeder.copy, self.feeder.rename, self.feeder.touch, self.feeder.rewrite]
        if len(counted) > 20:
            for act, path in zip(acts, self.chance.sample(counted, 4), strict=True):
                act(Path(path))
                done.discard(path)
        for path in list(self.feeder.holds)[: max(0, len(self.feeder.holds) - KEPT_FILES)]:
            if path in done:
                shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()
                del self.feeder.holds[path]

    def done(self) -> set[str]:
        """Paths whose present content has its outcome and was sighted there: only these may be changed.

        What the ledger has not seen under a name, it cannot know to be rewritten.
        """
        counted = self.query(
            "SELECT a.content_id, f.path FROM run r JOIN acquisition a ON a.id = r.acquisition_id "
            "JOIN source_file f ON f.content_id = a.content_id"
        )
        holds = self.feeder.holds
        return {path for content_id, path in counted if content_id.startswith("unread-") or holds.get(path) == content_id}

    def outstanding(self) -> int:
        found = self.query("SELECT COUNT(*) FROM run")
        self.done_runs = int(found[0][0]) if found else self.done_runs
        return len(self.feeder.truth) - self.done_runs

    def open_files(self) -> int:
        found = self.query("SELECT COUNT(*) FROM acquisition WHERE tries > 0")
        return int(found[0][0]) if found else 1

    def query(self, text: str) -> list[tuple[Any, ...]]:
        """[] while there is no database yet, or it is just being recovered."""
        try:
            return rows(self.out, text)
        except sqlite3.Error:
            return []

    # --- what is seen ---

    def sample(self, daemon: Daemon) -> None:
        if self.elapsed_s - self.last_sample_s < SAMPLE_S:
            return
        self.last_sample_s = self.elapsed_s
        try:
            memory, descriptors = daemon.process.memory_full_info(), daemon.process.num_fds()
            readers = [child.memory_info().rss for child in daemon.process.children() if READER in child.cmdline()]
        except psutil.Error:
            return
        kinds = dict(self.query("SELECT outcome, COUNT(*) FROM run GROUP BY outcome"))
        self.samples.append(
            {
                "minute": round(self.elapsed_s / 60, 3),
                "life": self.starts,
                "rss_mb": memory.rss / 2**20,
                "uss_mb": memory.uss / 2**20,
                "readers_rss_mb": sum(readers) / 2**20,
                "largest_reader_mb": max(readers, default=0) / 2**20,
                "readers": len(readers),
                "descriptors": descriptors,
                "backlog": len(self.feeder.truth) - self.done_runs,
                "measured": kinds.get("measured", 0),
                "rejected": kinds.get("rejected", 0),
                "set_aside": kinds.get("set_aside", 0),
                "kills": sum(self.kills.values()),
            }
        )

    # --- the whole ---

    def run(self) -> dict[str, Any]:
        """All of it; the figures."""
        disturbed_s = self.minutes * 60 * 2 / 3
        while self.elapsed_s < disturbed_s:
            life_s = max(SHORTEST_LIFE_S, min(self.chance.expovariate(1 / MEAN_LIFE_S), disturbed_s - self.elapsed_s))
            self.live(life_s, signal.SIGKILL if self.chance.random() < 0.7 else signal.SIGTERM)
            self.write_figures({})
        self.live(self.minutes * 60 - self.elapsed_s, None)
        self.settle()
        self.zygote.close()
        self.feeder.close()
        figures = self.write_figures(compare(self))
        plot(self.samples, self.out)
        return figures

    def write_figures(self, verdict: dict[str, Any]) -> dict[str, Any]:
        figures = {
            "date": datetime.now().astimezone().date().isoformat(),
            "minutes": round(self.elapsed_s / 60, 1),
            "seed": self.seed,
            "kills": self.kills,
            "starts": self.starts,
            "unexpected_ends": self.unexpected_ends,
            "terminated_before_they_could_answer": self.before_handler,
            "reader_processes_left_after_60_s": self.orphans,
            "written": dict(sorted(self.feeder.written.items())),
            "contents": len(self.feeder.truth),
            **verdict,
        }
        (self.out / "soak.json").write_text(json.dumps({**figures, "samples": self.samples}, indent=1))
        return figures


OUTCOMES = """
SELECT a.content_id, a.path, r.outcome, r.reason, (SELECT COUNT(*) FROM cell c WHERE c.run_id = r.id AND c.accepted)
FROM run r JOIN acquisition a ON a.id = r.acquisition_id
"""


def compare(soak: Soak) -> dict[str, Any]:
    """The ledger against the truth: what is lost, double, otherwise, and what belongs to nothing."""
    truth = soak.feeder.truth
    found: dict[str, list[tuple[str, int]]] = {}
    for content_id, path, outcome, reason, cells in rows(soak.out, OUTCOMES):
        key = path if content_id.startswith("unread-") else content_id
        found.setdefault(key, []).append((outcome, cells))
        if key in soak.feeder.passing and (outcome, cells) == ("set_aside", 0):
            found.pop(key)  # a growing file that was met half-way so long that it was set aside: it says what was there
        elif key not in truth:
            print(f"not in the truth: {outcome} {reason} {path}")
    expected_cells = sum(item.cells for item in truth.values())
    journal = dict(rows(soak.out, "SELECT kind, COUNT(*) FROM event GROUP BY kind"))
    return {
        "lost": sorted(truth[key].path for key in truth.keys() - found.keys()),
        "counted_twice": sorted(key for key, ends in found.items() if len(ends) > 1),
        "not_in_the_truth": sorted(found.keys() - truth.keys()),
        "otherwise": [
            f"{truth[key].kind}: {truth[key].path} is {ends[0]}, not {(truth[key].outcome, truth[key].cells)}"
            for key, ends in sorted(found.items())
            if key in truth and ends[0] != (truth[key].outcome, truth[key].cells)
        ],
        "cells_expected": expected_cells,
        "cells_counted": sum(cells for ends in found.values() for _, cells in ends),
        "outcomes": {
            name: sum(ends[0][0] == name for ends in found.values()) for name in ("measured", "rejected", "set_aside")
        },
        "rewritten_and_flagged": [soak.feeder.rewritten, journal.get("changed_after_count", 0)],
        "unsound": sound(soak.out)[:50],
        **growth(soak.samples),
    }


def growth(samples: list[dict[str, float]]) -> dict[str, Any]:
    """Of the last, undisturbed life without its first fifth: from its beginning to its end, medians of a tenth each."""
    lives = [sample["life"] for sample in samples]
    longest = max(set(lives), key=lives.count)
    steady = [sample for sample in samples if sample["life"] == longest]
    steady = steady[len(steady) // 5 :]
    tenth = max(1, len(steady) // 10)
    grown = {
        name: round(_median(steady[-tenth:], name) - _median(steady[:tenth], name), 2)
        for name in ("rss_mb", "uss_mb", "readers_rss_mb", "largest_reader_mb", "descriptors")
    }
    return {
        "undisturbed_minutes": round(steady[-1]["minute"] - steady[0]["minute"], 1),
        "growth_over_them": grown,
        "largest": {
            name: round(max(s[name] for s in samples), 1)
            for name in ("rss_mb", "largest_reader_mb", "readers", "descriptors", "backlog")
        },
    }


def _median(samples: list[dict[str, float]], name: str) -> float:
    ordered = sorted(sample[name] for sample in samples)
    return ordered[len(ordered) // 2]


def failures(figures: dict[str, Any]) -> list[str]:
    """Why the soak has failed; [] when it has not."""
    names = ("lost", "counted_twice", "not_in_the_truth", "otherwise", "unsound", "unexpected_ends")
    wrong = [f"{name}: {figures[name][:5]}" for name in names if figures[name]]
    if figures["cells_expected"] != figures["cells_counted"]:
        wrong.append(f"{figures['cells_counted']} cells were counted, not {figures['cells_expected']}")
    if figures["reader_processes_left_after_60_s"]:
        wrong.append(f"{figures['reader_processes_left_after_60_s']} reader processes outlived their daemon")
    rewritten, flagged = figures["rewritten_and_flagged"]
    if rewritten != flagged:
        wrong.append(f"{rewritten} files were rewritten after counting, {flagged} flagged")
    if figures["largest"]["readers"] > MOST_READERS:
        wrong.append(f"{figures['largest']['readers']:g} reader processes at once; at most {MOST_READERS} have work")
    return wrong + grew(figures["growth_over_them"])


def grew(grown: dict[str, float]) -> list[str]:
    """What grew more than it may, each with its limit."""
    limits = {"rss_mb": MAX_GROWTH_MB, "largest_reader_mb": MAX_GROWTH_MB, "descriptors": MAX_GROWTH_DESCRIPTORS}
    return [
        f"{name} grew by {grown[name]:g}; at most {most:g} is allowed" for name, most in limits.items() if grown[name] > most
    ]


def plot(samples: list[dict[str, float]], out: Path) -> None:
    """soak-memory.png and soak-outcomes.png, against time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    minutes = [sample["minute"] for sample in samples]
    pages = {
        "soak-memory.png": [
            ("resident memory (MB)", ("rss_mb", "readers_rss_mb")),
            ("open descriptors", ("descriptors",)),
        ],
        "soak-outcomes.png": [
            ("waiting files", ("backlog",)),
            ("outcomes", ("measured", "rejected", "set_aside")),
            ("kills", ("kills",)),
        ],
    }
    names = {"rss_mb": "daemon", "readers_rss_mb": "its reader processes", "set_aside": "set aside"}
    for file, panels in pages.items():
        figure, axes = pyplot.subplots(len(panels), 1, sharex=True, figsize=(8, 2.2 * len(panels)), layout="constrained")
        for axis, (title, columns) in zip(axes, panels, strict=True):
            for column in columns:
                axis.plot(minutes, [sample[column] for sample in samples], lw=1, label=names.get(column, column))
            axis.set_ylabel(title)
            axis.set_ylim(bottom=0)
            if len(columns) > 1:
                axis.legend(loc="best", fontsize=8)
        axes[-1].set_xlabel("minutes")
        figure.savefig(out / file, dpi=80)
        pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    given = parser.parse_args()
    figures = Soak(given.out.absolute(), given.minutes, given.seed).run()
    wrong = failures(figures)
    print(json.dumps(figures, indent=1))
    print("\n".join(wrong) if wrong else "Nothing lost, nothing counted twice, counts equal to the truth.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
