"""``make fuzz``: spoiled acquisitions by the thousand through the real line, then some hundred through a real daemon.

    python tests/fuzz/run_fuzz.py --files 20000 --first 0 --workers 2 --out build/fuzz

Case N follows from N alone: a run that was broken off goes on in the same ``--out`` (of the same sources and arguments; any
other begins anew there), and one case can be made again (``--case N``). ``summary.json`` holds the counts; files that are
faults are kept under ``faults``. Exit status 1 when there is one: a worker that died, a foreign exception, a hang over 30 s,
a volume that changed by over 1 % without a flag, a file without an outcome, fewer files than were asked for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SAVE_EVERY = 20


def work(out: Path, index: int, workers: int, first: int, files: int, seconds: float) -> None:
    """One worker: every ``workers``-th case; its counts are saved as it goes, and read again when it is started anew."""
    import torch
    from helpers_fuzz import FAULTS, Judge, make_case, make_corpus, remove_case

    torch.set_num_threads(1)
    own = out / f"worker-{index}"
    state = _state(own / "state.json", first + index)
    shutil.rmtree(own / "watch", ignore_errors=True)
    corpus = make_corpus(own / "corpus")
    judge = Judge(own / "watch", corpus)
    counts, by_kind = Counter(state["verdicts"]), Counter(state["kinds"])
    ends = time.monotonic() + seconds
    try:
        while state["next"] < first + files and time.monotonic() < ends:
            seed = state["next"]
            (own / "current").write_text(str(seed))
            name, kind, path = make_case(seed, corpus, judge.folder)
            found = judge(name, path)
            counts[f"{name} {found.verdict}"] += 1
            by_kind[f"{kind.split('.')[0]} {found.verdict} {found.reason if found.verdict == 'refused' else ''}".strip()] += 1
            state["slowest_s"] = max(state["slowest_s"], found.seconds)
            if found.verdict in FAULTS or found.reason == "input.reader_died":
                state["findings"].append(
                    {"seed": seed, "file": name, "mutation": kind, "what": found.verdict, "why": found.reason}
                )
            if found.verdict in FAULTS:
                _keep(path, out / "faults" / f"{seed}-{found.verdict}-{path.name}")
            remove_case(path)
            state |= {"next": seed + workers, "verdicts": counts, "kinds": by_kind}
            if (seed // workers) % SAVE_EVERY == 0:
                _save(own / "state.json", state)
    finally:
        judge.close()
        state["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        state["peak_reader_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        state["cpu_s"] = round(state["cpu_s"] + sum(u.ru_utime + u.ru_stime for u in used), 1)
        _save(own / "state.json", state)


def _state(file: Path, first: int) -> dict[str, Any]:
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    empty = {"next": first, "verdicts": {}, "kinds": {}, "findings": [], "slowest_s": 0.0, "cpu_s": 0.0}
    return {**empty, **known}


def _save(file: Path, state: dict[str, Any]) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(state))
    temporary.replace(file)


def _keep(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target, symlinks=True, dirs_exist_ok=True, ignore_dangling_symlinks=True)
    elif path.is_file():
        shutil.copyfile(path, target)


def claim(out: Path, arguments: argparse.Namespace) -> None:
    """Keep what an unfinished run of the same sources and arguments did; remove what any other left."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted([*(root / "wbcd").rglob("*.py"), *(root / "tests").glob("helpers_*.py"), Path(__file__).resolve()]):
        digest.update(path.read_bytes())
    mine = {"sources": digest.hexdigest(), **{name: getattr(arguments, name) for name in ("first", "files", "workers")}}
    run = out / "run.json"
    if run.exists() and json.loads(run.read_text()) == mine and not (out / "summary.json").exists():
        print(f"going on in {out}")
        return
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    run.write_text(json.dumps(mine))


def supervise(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start the workers, start a dead one again behind the case it died of, and add up."""
    out: Path = arguments.out
    begin = time.monotonic()
    running = {index: _start(arguments, index) for index in range(arguments.workers)}
    deaths: list[dict[str, Any]] = []
    try:
        while running:
            for index, child in list(running.items()):
                status = child.poll()
                if status is None:
                    continue
                del running[index]
                if status != 0:
                    deaths.append({"seed": int((out / f"worker-{index}" / "current").read_text()), "status": status})
                    _skip(out / f"worker-{index}" / "state.json", deaths[-1]["seed"], arguments)
                    running[index] = _start(arguments, index)
            time.sleep(0.2)
    finally:
        for child in running.values():
            child.kill()
    return _summary(out, deaths, time.monotonic() - begin, arguments)


def _start(arguments: argparse.Namespace, index: int) -> subprocess.Popen[bytes]:
    (arguments.out / f"worker-{index}").mkdir(parents=True, exist_ok=True)
    values = {name: str(getattr(arguments, name)) for name in ("first", "files", "workers", "out", "seconds")}
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in values.items()), f"--worker={index}"]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _skip(file: Path, seed: int, arguments: argparse.Namespace) -> None:
    state = _state(file, seed)
    _save(file, {**state, "next": seed + arguments.workers})


def _summary(out: Path, deaths: list[dict[str, Any]], seconds: float, arguments: argparse.Namespace) -> dict[str, Any]:
    states = [_state(out / f"worker-{index}" / "state.json", 0) for index in range(arguments.workers)]
    verdicts: Counter[str] = sum((Counter(state["verdicts"]) for state in states), Counter())
    kinds: Counter[str] = sum((Counter(state["kinds"]) for state in states), Counter())
    totals: Counter[str] = Counter()
    for name, count in verdicts.items():
        totals[name.split(" ")[1]] += count
    findings = [finding for state in states for finding in state["findings"]]
    return {
        "files": sum(totals.values()),
        "asked": arguments.files,
        "first": arguments.first,
        "wall_s": round(seconds, 1),
        "cpu_s": round(sum(state["cpu_s"] for state in states), 1),
        "totals": dict(totals),
        "deaths": deaths,
        "slowest_s": round(max(state["slowest_s"] for state in states), 2),
        "peak_mb": max(state.get("peak_mb", 0) for state in states),
        "peak_reader_mb": max(state.get("peak_reader_mb", 0) for state in states),
        "by_file": dict(sorted(verdicts.items())),
        "by_mutation": dict(sorted(kinds.items())),
        "findings": findings,
    }


# --- a real daemon -------------------------------------------------------------------------------

_DAEMON = (
    "import json, sys, torch; torch.set_num_threads(1); from wbcd.config import Config; from wbcd.daemon.start import start; "
    "start(Config.load(None, {}, json.loads(sys.argv[1])), until_idle=True)"
)


def feed_daemon(folder: Path, first: int, count: int, *, timeout_s: float = 1800.0) -> dict[str, Any]:
    """``count`` cases in the watch folder of a daemon that runs until nothing is left: its exit status, and what it stored."""
    from helpers_fuzz import LENIENT, make_case, make_corpus
    from helpers_spheres import cheap_settings, tiny_bundle

    watch = folder / "incoming"
    watch.mkdir(parents=True)
    corpus = make_corpus(folder / "corpus")
    (folder / "outside.h5").write_bytes(b"outside")
    paths = [make_case(seed, corpus, watch)[2] for seed in range(first, first + count)]
    overrides = {**LENIENT, "limits.isolate": True, "watch.quiet_s": 0.0, "limits.max_tries": 1}
    settings = cheap_settings(folder, tiny_bundle(folder / "bundle"), **overrides)
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    with (folder / "daemon.log").open("wb") as log:
        try:
            status: int | str = subprocess.run(
                [sys.executable, "-c", _DAEMON, json.dumps(plain)],
                check=False,
                timeout=timeout_s,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            ).returncode
        except subprocess.TimeoutExpired:
            status = f"not idle after {timeout_s:g} s"
    database = sqlite3.connect(f"file:{folder / 'wbcd.db'}?mode=ro", uri=True)
    try:
        known = {row[0] for row in database.execute("SELECT path FROM source_file UNION SELECT path FROM acquisition")}
        outcomes = dict(database.execute("SELECT outcome, count(*) FROM run GROUP BY outcome").fetchall())
    finally:
        database.close()
    absent = [path.name for path in paths if str(path) not in known and os.path.lexists(path)]
    return {"files": count, "exit_status": status, "outcomes": outcomes, "without_an_outcome": absent}


def main() -> int:
    """Parse the command line, run, write the summary; 1 when there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=7200.0, help="end after that long, done or not")
    parser.add_argument("--daemon-files", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, help="make and judge one case, and say what became of it")
    arguments = parser.parse_args()
    arguments.out = arguments.out.absolute()
    if arguments.worker is not None:
        work(arguments.out, arguments.worker, arguments.workers, arguments.first, arguments.files, arguments.seconds)
        return 0
    if arguments.case is not None:
        work(arguments.out / f"case-{arguments.case}", 0, 1, arguments.case, 1, arguments.seconds)
        print((arguments.out / f"case-{arguments.case}" / "worker-0" / "state.json").read_text())
        return 0
    claim(arguments.out, arguments)
    summary = supervise(arguments)
    shutil.rmtree(arguments.out / "daemon", ignore_errors=True)
    if arguments.daemon_files:
        summary["daemon"] = feed_daemon(arguments.out / "daemon", arguments.first, arguments.daemon_files)
    # The last thing to be written: a folder without it is of a run that can go on.
    name = "summary.json" if summary["files"] >= arguments.files else "summary-unfinished.json"
    (arguments.out / name).write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({name: value for name, value in summary.items() if name not in ("by_file", "by_mutation")}, indent=1))
    return int(bool(faults_in(summary)))


def faults_in(summary: dict[str, Any]) -> list[str]:
    """What must be none: names of the faults of a summary."""
    from helpers_fuzz import MOST_UNNOTICED

    found = [name for name in ("silent", "escape", "hang") if summary["totals"].get(name)]
    found += ["death"] if summary["deaths"] else []
    found += ["unnoticed"] if summary["totals"].get("unnoticed", 0) > 3 + MOST_UNNOTICED * summary["files"] else []
    found += ["unfinished"] if summary["files"] + len(summary["deaths"]) < summary["asked"] else []
    daemon = summary.get("daemon", {"exit_status": 0, "without_an_outcome": []})
    return found + [name for name in ("exit_status", "without_an_outcome") if daemon[name]]


if __name__ == "__main__":
    sys.exit(main())
