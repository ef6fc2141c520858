"""`wbcd calibrate`: what one acquisition of a bead, or of an empty field, says of the instrument."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wbcd.cli.common import EXAMPLES, FiniteRange, site_options, to_json
from wbcd.cli.printing import say

if TYPE_CHECKING:
    from wbcd.config import Config
    from wbcd.reconstruction.instrument import Calibration
    from wbcd.records import Acquisition, HologramStack


@click.command(epilog=EXAMPLES["calibrate"])
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--bead-um", type=FiniteRange(0.2, 30), help="Diameter of the bead in the field of view, um.")
@click.option("--bead-ri", type=FiniteRange(1.0, 2.0), help="Its refractive index at the laser's wavelength.")
@click.option("--illumination-na", type=FiniteRange(0.01, 1.7), help="NA of the illumination circle, where it is known.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Where the picture goes (PNG).")
@click.option("--store", is_flag=True, help="Keep it: the daemon tells drift from it. JSON and picture in the output folder.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@site_options
def calibrate(
    config: Config,
    file: Path,
    bead_um: float | None,
    bead_ri: float | None,
    illumination_na: float | None,
    plot: Path | None,
    store: bool,
    as_json: bool,
) -> None:
    """Measure carrier, illumination circle, fringe contrast and pixel size from FILE, and with a bead the lens's aberrations.

    FILE: raw holograms in any format that the daemon reads. The bead lies near focus, alone; its holograms need the reference.
    """
    if (bead_um is None) != (bead_ri is None):
        raise click.UsageError(
            "a bead is known by its diameter and its refractive index: give --bead-um and --bead-ri, or neither"
        )
    from wbcd.daemon.drift import DRIFT
    from wbcd.daemon.instruments import calibration_path, load_calibration, store_calibration
    from wbcd.errors import BadValue
    from wbcd.reconstruction.instrument import calibrate as measure
    from wbcd.reconstruction.instrument import drift

    ticket, stack = _read(config, file)
    try:
        calibration, fields = measure(stack, config.recipe, bead_um=bead_um, bead_ri=bead_ri, illumination_na=illumination_na)
    except BadValue as error:
        # Only the options that describe the bead can be wrong here, not the configuration.
        raise click.UsageError(error.message) from error
    target = calibration_path(config.output.dir, ticket.instrument_id)
    before = load_calibration(target)
    shifts = {} if before is None else drift(before, fields.fringes, fields, calibration.bead)
    stored = None
    if store:
        _demand_bead(calibration)
        about = {"source": file.name, "content_id": ticket.content_id, "instrument_id": ticket.instrument_id}
        stored = store_calibration(target, calibration, {**about, "recipe_id": config.recipe.recipe_id})
        plot = plot or target.with_suffix(".png")
    drawn = _draw(plot, calibration, stack, fields) if plot is not None else None
    if as_json:
        found = {**calibration.as_json(), DRIFT: shifts or None, "stored": stored, "plot": drawn}
        click.echo(to_json({"path": str(file), **found}))
        return
    for line in _lines(calibration, shifts):
        say(line)
    for path in (stored, drawn):
        if path is not None:
            say(f"written: {path}")


def _demand_bead(calibration: Calibration) -> None:
    """Raises ReconstructionError where a bead was fitted that is none: its pixel size and aberrations mean nothing."""
    from wbcd.errors import ReconstructionError
    from wbcd.reconstruction.instrument import MAX_BEAD_RESIDUAL

    bead = calibration.bead
    if bead is not None and not bead.explained:
        raise ReconstructionError(
            f"A bead of {bead.diameter_um} um and RI {bead.ri} leaves {100 * bead.residual:.0f} % of the scattered light "
            f"unexplained (at most {100 * MAX_BEAD_RESIDUAL:.0f} % may be): nothing was stored.",
            action="Check its diameter and index, and that it lies alone near focus; a cell is no bead.",
        )


def _read(config: Config, file: Path) -> tuple[Acquisition, HologramStack]:
    from wbcd.acquisition import identify
    from wbcd.acquisition.isolate import IsolatedReader, IsolationLimits
    from wbcd.acquisition.limits import ReadDefaults
    from wbcd.errors import BadField, NotARegularFile
    from wbcd.records import HologramStack

    defaults = ReadDefaults(
        medium_ri=config.recipe.reconstruction.default_medium_ri, max_logical_bytes=config.limits.max_logical_bytes
    )
    try:
        found = identify(file, max_bytes=config.limits.max_file_bytes)
    except NotARegularFile as error:
        raise NotARegularFile(error.message, action="Name one acquisition file of the instrument.") from error
    with IsolatedReader(IsolationLimits.for_arrays(config.limits.max_logical_bytes)) as reader:
        ticket, payload = reader.read(found, defaults)
    if not isinstance(payload, HologramStack):
        raise BadField(f"{file} holds refractive index, not holograms.", action="Calibrate with raw frames of the instrument.")
    return ticket, payload


def _draw(target: Path, calibration: Calibration, stack: HologramStack, fields: Any) -> Path | None:
    """Where the picture was written; None without matplotlib. Raises NoSpace or StoreError, naming the path."""
    from wbcd.errors import not_written

    try:
        from wbcd.report.calibration import calibration_png

        picture = calibration_png(
            calibration, stack.holograms[fields.kept[fields.normal_frame]], fields.k_in_rad_um, fields.fringes.contrast
        )
    except ImportError as error:
        say(f"wbcd: no picture: {error.name} is not installed (pip install 'wbcd[train]').", err=True)
        return None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(picture)
    except OSError as error:
        raise not_written(f"The picture {target}", error, action="Name another with --plot.") from error
    return target


def _lines(calibration: Calibration, shifts: dict[str, float]) -> list[str]:
    ring, optics = calibration.ring, calibration.optics
    kx, ky = calibration.carrier_rad_um
    lines = [
        f"carrier            {kx:.3f}, {ky:.3f} rad/um; {calibration.carrier_separation:.2f} NA/lambda from the zero order",
        f"fringe contrast    {calibration.fringe_contrast:.3f}",
        f"illumination       NA {ring.radius_na:.4f}, centre {ring.centre_na[0]:+.4f}, {ring.centre_na[1]:+.4f}, "
        f"roundness {100 * ring.roundness:.2f} %",
        f"directions         {calibration.frames} frames, {len(ring.gaps_deg)} missing"
        + (f" (at {', '.join(f'{gap:.0f}' for gap in ring.gaps_deg)} degrees)" if ring.gaps_deg else "")
        + f", {len(ring.repeated)} repeated",
        f"pixel, as stated   {optics.pixel_size_um:.5f} um",
    ]
    if calibration.pixel_size_from_ring_um is not None:
        lines.append(f"pixel, from ring   {_pixel(calibration.pixel_size_from_ring_um, optics.pixel_size_um)}")
    if calibration.pixel_size_from_rim_um is not None:
        rim = _pixel(calibration.pixel_size_from_rim_um, optics.pixel_size_um)
        lines.append(f"pixel, from rim    {rim}; the light's NA is then {calibration.illumination_na:.4f}")
    bead = calibration.bead
    if bead is not None:
        z, y, x = bead.place_um
        lines += [
            f"pixel, from bead   {_pixel(bead.pixel_size_um, optics.pixel_size_um)}",
            f"bead               at {x:.2f}, {y:.2f} um, height {z:+.2f} um; {100 * bead.residual:.1f} % unexplained",
            f"aberration         {bead.zernike_rms_rad:.3f} rad rms",
            *(f"  {name:25s}{value:+.3f} rad" for name, value in bead.zernike_rad.items()),
        ]
    if shifts:
        said = ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in shifts.items())
        lines.append(f"drift, tolerances  {said} (against the stored calibration)")
    return lines


def _pixel(found: float, stated: float) -> str:
    return f"{found:.5f} um ({100 * (found / stated - 1):+.2f} %)"
