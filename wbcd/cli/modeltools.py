"""`wbcd model calibrate | bench | strangers | instruments | export | import`: what is done to a bundle besides training it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wbcd.cli.common import ANEW, EXAMPLES, FiniteRange, command_line, goes_on, to_json
from wbcd.cli.printing import SIMULATED_MODEL, say, warn
from wbcd.errors import WouldReplace

if TYPE_CHECKING:
    from wbcd.classification import Bundle
    from wbcd.classification.bench import Cells, Row

BACKEND_NAMES = ("auto", "eager", "cuda", "onnxruntime", "openvino")
RANGES = ("objective_na", "wavelength_um", "pitch_um", "noise_ri")
Range = tuple[float, float] | None
F = TypeVar("F", bound=Callable[..., Any])


def _range(name: str, what: str) -> Callable[[F], F]:
    return click.option(
        f"--{name}", type=(float, float), default=None, help=f"{what} of the training set's instruments: LOW HIGH."
    )


@click.command(epilog=EXAMPLES["model calibrate"])
@click.argument("bundle")
@click.argument("training_set", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--acceptance", type=FiniteRange(0.5, 0.9999), default=0.99, show_default=True, help="Share of known cells let pass."
)
@click.option("--coverage", type=FiniteRange(0.01, 0.9999), default=0.9, show_default=True, help="Of the prediction sets.")
@click.option(
    "--method", type=click.Choice(["lac", "aps"]), default="lac", show_default=True, help="Score of the prediction sets."
)
@click.option(
    "--held-out",
    type=click.Path(exists=True, path_type=Path),
    help="A set of other donors: thresholds come from all its cells instead of the validation cells, which chose the weights.",
)
@_range("objective-na", "Aperture")
@_range("wavelength-um", "Wavelength")
@_range("pitch-um", "Lateral pitch")
@_range("noise-ri", "Noise of the medium")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--backend", type=click.Choice(BACKEND_NAMES), default="eager", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
@goes_on(ANEW)
def calibrate(
    bundle: str,
    training_set: Path,
    out: Path,
    acceptance: float,
    coverage: float,
    method: Any,
    held_out: Path | None,
    objective_na: Range,
    wavelength_um: Range,
    pitch_um: Range,
    noise_ri: Range,
    device: str,
    backend: str,
    as_json: bool,
) -> None:
    """Teach BUNDLE what it does not know, from the set it was trained on, and write it to OUT.

    Temperature, prediction sets and the threshold beyond which a cell belongs to no class come from the validation cells of
    TRAINING_SET, or from all cells of the set given with --held-out; a range of instruments that is not given stays what
    BUNDLE's card has.
    """
    from wbcd.classification import InstrumentRange
    from wbcd.training.unknown import calibrate as fit

    ranges = {"objective_na": objective_na, "wavelength_um": wavelength_um, "pitch_um": pitch_um, "noise_ri": noise_ri}
    report = fit(
        bundle,
        training_set,
        out,
        acceptance=acceptance,
        coverage=coverage,
        method=method,
        held_out_path=held_out,
        instrument=InstrumentRange(**ranges) if any(ranges.values()) else None,
        device=device,
        backend=backend,
        notes={"command": command_line()},
    )
    if as_json:
        click.echo(to_json(report))
        return
    say(f"{report.model_id} in {report.bundle}: temperature {report.temperature:.3f}, distance {report.gauge_threshold:.2f}")
    what = "simulated cells" if report.simulated else "cells"
    if not report.mistakes:
        say(f"none of the {report.cells} cells that gave the limits got a wrong label: sets of one class say no more")
    for split, row in report.figures.items():
        say(
            f"{split}: {row.cells} {what}, {row.accepted:.1%} taken for known; prediction sets hold the true class in"
            f" {row.coverage:.1%}, {row.mean_set_size:.2f} classes each"
        )


@click.command(epilog=EXAMPLES["model bench"])
@click.argument("bundle", default="reference")
@click.option(
    "--data", "training_set", type=click.Path(exists=True, path_type=Path), help="A training set; balls in noise without it."
)
@click.option("--cells", type=click.IntRange(1), default=64, show_default=True, help="Cells of its test split to measure on.")
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, default=(1, 8), show_default=True)
@click.option("--inputs/--no-inputs", default=True, show_default=True, help="Also smaller crops and coarser pitches.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list of rows.")
@goes_on(ANEW)
def bench(
    bundle: str, training_set: Path | None, cells: int, batches: tuple[int, ...], inputs: bool, device: str, as_json: bool
) -> None:
    """Time every backend that is installed on BUNDLE, and say how far its probabilities depart from torch's."""
    from wbcd.classification import load_bundle
    from wbcd.classification.bench import bench_backends, bench_inputs, smaller_inputs
    from wbcd.classification.classifier import choose_device

    loaded = load_bundle(bundle)
    given = _cells(loaded, training_set, cells)
    rows = list(bench_backends(loaded, given, device=choose_device(device), batches=batches))
    if inputs:
        rows += bench_inputs(loaded, given, smaller_inputs(loaded.input), batch=max(batches))
    if as_json:
        click.echo(to_json(rows))
        return
    what = "balls in noise" if given.labels is None else "simulated cells" if given.simulated else "cells"
    say(f"{loaded.model_id}, {len(given.deltas)} {what}; changes against eager at the bundle's own input")
    names = ("input", 14), ("pitch um", 16), ("batch", 6), ("ms a cell", 10), ("change", 9), ("relabelled", 11), ("right", 7)
    say(f"{'backend':>12}" + "".join(f" {name:>{width}}" for name, width in names))
    for row in rows:
        say(_line(row))


def _line(row: Row) -> str:
    shape, pitch = "x".join(map(str, row.shape)), "x".join(f"{v:g}" for v in row.voxel_um)
    right = f"{row.accuracy:7.1%}" if row.accuracy == row.accuracy else f"{'-':>7}"
    return (
        f"{row.backend:>12} {shape:>14} {pitch:>16} {row.batch:6d} {row.ms_a_cell:10.2f} {row.largest_change:9.1e}"
        f" {row.labels_changed:11.1%} {right}"
    )


def _cells(bundle: Bundle, training_set: Path | None, count: int) -> Cells:
    import numpy as np
    import torch

    from wbcd.classification.backends import probe
    from wbcd.classification.bench import Cells

    if training_set is None:
        return Cells(probe(bundle, min(count, 8)))
    from wbcd.training import dataset as sets
    from wbcd.training.evaluation import scheme_of

    data = sets.check_matches(sets.load(training_set), bundle.classes, bundle.input, bundle.path)
    chosen = data.indices("test", scheme_of(bundle))[:count]
    return Cells(torch.from_numpy(data.ri_delta[chosen].astype(np.float32)), data.label[chosen], simulated=data.simulated)


_path = click.option(
    "--path",
    type=click.Choice(["fast", "exact"]),
    default="fast",
    show_default=True,
    help="Fast optics, or holograms and the whole reconstruction, as the daemon sees cells; a set's cells came that way too.",
)


@click.command(epilog=EXAMPLES["model strangers"])
@click.argument("bundle")
@click.argument("training_set", type=click.Path(exists=True, path_type=Path))
@click.option("--cells", type=click.IntRange(1), default=60, show_default=True, help="Objects of each kind.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@_path
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list of rows.")
@goes_on(ANEW)
def strangers(bundle: str, training_set: Path, cells: int, seed: int, path: Any, device: str, as_json: bool) -> None:
    """Show BUNDLE simulated objects of no class beside unseen cells of TRAINING_SET: does it know that it does not?"""
    from wbcd.cli.common import quiet_console
    from wbcd.training.strangers import meet_strangers

    warnings: list[str] = []
    with quiet_console(stderr=True).status("looking at known cells") as status:
        rows = meet_strangers(
            bundle,
            training_set,
            cells=cells,
            seed=seed,
            path=path,
            device=device,
            on_kind=lambda kind: status.update(f"simulating: {kind}"),
            on_warning=warnings.append,
        )
    for warning in warnings:
        warn(warning)
    if as_json:
        click.echo(to_json(rows))
        return
    say(
        f"{'simulated':>14} {'cells':>6} {'AUROC':>7} {'beyond the threshold':>21} {'unclassified':>13} {'sure of a label':>16}"
    )
    for row in rows:
        area = "-" if row.auroc is None else f"{row.auroc:.3f}"
        out = "-" if row.unclassified is None else f"{row.unclassified:.1%}"
        say(f"{row.kind:>14} {row.cells:6d} {area:>7} {row.far:21.1%} {out:>13} {row.sure:16.2f}")


@click.command(epilog=EXAMPLES["model instruments"])
@click.argument("bundle")
@click.option("--cells", type=click.IntRange(1), default=100, show_default=True, help="Seen by every instrument.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@_path
@click.option(
    "--range",
    "ranges",
    type=click.Choice(RANGES),
    multiple=True,
    default=RANGES,
    help="Only this one; may be repeated.  [default: all]",
)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list of rows.")
@goes_on(ANEW)
def instruments(
    bundle: str, cells: int, seed: int, path: Any, ranges: tuple[str, ...], workers: int, device: str, as_json: bool
) -> None:
    """Show BUNDLE the same simulated cells by an instrument at each end of the ranges that its card accepts: is it right?"""
    from wbcd.cli.common import quiet_console
    from wbcd.training.instruments import meet_instruments

    with quiet_console(stderr=True).status("") as status:
        rows = meet_instruments(
            bundle,
            cells=cells,
            seed=seed,
            path=path,
            ranges=ranges,
            workers=workers,
            device=device,
            on_row=lambda name: status.update(f"simulating: {name}"),
        )
    if as_json:
        click.echo(to_json(rows))
        return
    say(
        f"{'simulated':>20} {'cells':>6} {'missed':>7} {'right':>7} {'counted':>8} {'right of these':>15}"
        f" {'lost':>5} {'won':>4} {'noise':>8}"
    )
    for row in rows:
        among = f"{row.right_of_counted / row.counted:.1%}" if row.counted else "-"
        say(
            f"{row.name:>20} {row.cells:6d} {row.missed:7d} {row.right / row.cells:7.1%} {row.counted / row.cells:8.1%}"
            f" {among:>15} {row.lost:5d} {row.won:4d} {row.noise_ri:8.1e}"
        )


@click.command(epilog=EXAMPLES["model export"])
@click.argument("bundle")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(["onnx", "bioimageio"]), default="onnx", show_default=True)
@click.option("--force", is_flag=True, help="Write over OUT where it is there already.")
@goes_on(ANEW)
def export(bundle: str, out: Path, kind: str, force: bool) -> None:
    """Write BUNDLE as one ONNX file, or as a bioimage.io package (zip), to OUT; prints the SHA-256 of its ONNX entry.

    Exit status: 0; 73 when OUT is there already, or cannot be written.
    """
    from wbcd.classification import load_bundle
    from wbcd.classification.exchange import export_bioimageio, export_onnx

    if out.is_file() and not force:
        raise WouldReplace(f"{out} is there already.")
    loaded = load_bundle(bundle)
    digest = export_bioimageio(loaded, out) if kind == "bioimageio" else export_onnx(loaded, out)
    say(f"{digest}  {out}")
    if loaded.model.simulated:
        say(f"note: {SIMULATED_MODEL}", err=True)


@click.command("import", epilog=EXAMPLES["model import"])
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--digest", required=True, help="SHA-256 of the ONNX entry, from whoever gave the file.")
def import_(file: Path, out: Path, digest: str) -> None:
    """Make a bundle in OUT from FILE, ONNX or bioimage.io, that `wbcd model export` wrote; refused without its digest."""
    from wbcd.classification.exchange import import_model

    made = import_model(file, digest, out)
    say(f"{made.model_id} in {made.path}")
    if made.gauge is None:
        warn("it has no distance to tell unknown cells by; `wbcd model calibrate` gives it one.")
