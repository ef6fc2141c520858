"""Model bundles: a plain folder of ``model.safetensors``, ``metadata.json`` (MONAI's key names) and a README card.

Nothing in a bundle is executed: the architecture is a name out of :data:`wbcd.classification.network.ARCHITECTURES` with
numbers as arguments, weights are safetensors and loaded strictly, and every size is bounded before memory is taken. All that
changes a probability (weights, architecture, classes, input, temperature) is hashed to the bundle's digest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor

import wbcd
from wbcd.classification.conformal import METHODS, Conformal
from wbcd.classification.network import ARCHITECTURES, EARLY_CHANNELS, VIEWS, FishNet3d
from wbcd.classification.preparation import InputSpec
from wbcd.classification.unknown import Gauge
from wbcd.errors import BadValue, BundleInvalid, UnknownModel
from wbcd.records import NAME, NAME_RULE

WEIGHTS, METADATA, CARD = "model.safetensors", "metadata.json", "README.md"
GAUGE = "unknown.safetensors"
SECTION, FORMAT_VERSION = "wbcd", 1
MODELS = Path(__file__).parent / "models"
MAX_WEIGHTS_BYTES, MAX_METADATA_BYTES = 1 << 30, 1 << 20
MAX_GAUGE_BYTES = 1 << 29
MAX_WIDTH, MAX_CLASSES, MAX_INPUT_VOXELS = 256, 64, 64_000_000
FOREIGN = (SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RuntimeError)
"""A header is a stranger's JSON: types that torch does not have, sizes that do not fit, names that are none."""
MEDIUM_RULE = "subtract each cell's own medium RI"
MAX_NUMBER = 1e300


@dataclass(frozen=True, slots=True)
class Envelope:
    """The range (low, high) of cells that a model was trained on: volume in fL and mean n - n_m over the mask.

    A network gives a confident label to anything; a cell outside this range is none that it can know.
    """

    volume_fl: tuple[float, float]
    mean_delta_ri: tuple[float, float]

    def holds(self, volume_fl: float, mean_delta_ri: float) -> bool:
        """True when both lie within; a NaN never does."""
        return (
            self.volume_fl[0] <= volume_fl <= self.volume_fl[1]
            and self.mean_delta_ri[0] <= mean_delta_ri <= self.mean_delta_ri[1]
        )


@dataclass(frozen=True, slots=True)
class InstrumentRange:
    """The instruments (low, high) whose cells a model accepts: those of its training, and as much more as instruments of
    one type differ; None where that is not known.

    ``pitch_um``: lateral pitch of the tomogram; ``noise_ri``: rms of the medium around a cell. No score of a
    network detects another aperture, so it is asked of the metadata.
    """

    objective_na: tuple[float, float] | None = None
    wavelength_um: tuple[float, float] | None = None
    pitch_um: tuple[float, float] | None = None
    noise_ri: tuple[float, float] | None = None

    def check(self) -> None:
        """Raises BadValue where a range could not be read back from a card."""
        for name, (least, greatest) in INSTRUMENT_LIMITS.items():
            limits: tuple[float, float] | None = getattr(self, name)
            if limits is not None and not least <= limits[0] <= limits[1] <= greatest:
                raise BadValue(
                    f"{name} is {limits[0]:g} to {limits[1]:g}; it must be low and high, within {least:g} to {greatest:g}.",
                    action="Correct the range of the training set's instruments.",
                )

    def departures(self, **values: float | None) -> tuple[str, ...]:
        """Names of the values outside their range. What a file does not state (None) or the model does not know passes."""
        out = []
        for name, value in values.items():
            limits: tuple[float, float] | None = getattr(self, name)
            # Written so that a NaN departs.
            if value is not None and limits is not None and not limits[0] <= value <= limits[1]:
                out.append(name)
        return tuple(out)


INSTRUMENT_LIMITS: Mapping[str, tuple[float, float]] = {
    "objective_na": (0.0, 2.0),
    "wavelength_um": (0.1, 3.0),
    "pitch_um": (0.0, 10.0),
    "noise_ri": (0.0, 0.5),
}


@dataclass(frozen=True, slots=True)
class UnknownRule:
    """What the card says of :class:`wbcd.classification.unknown.Gauge`: its threshold, and the digest of its file."""

    threshold: float
    acceptance: float
    cells: int
    digest: str


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a bundle says of itself besides its weights; ``measured`` and ``training`` are JSON-ready and free in form.

    ``views``: mirror views of a cell whose outputs are averaged. ``bfloat16``: evaluation proved bf16 equal to fp32 on a GPU.
    ``simulated``: trained and measured on simulated cells.
    ``envelope``, ``instrument``: what it was trained on, or None when not known (then no cell is told apart by it).
    ``unknown``: how a cell of no class is told; ``conformal``: how prediction sets are made.
    """

    name: str
    classes: tuple[str, ...]
    architecture: str = "fishnet3d"
    width: int = 16
    views: int = 1
    input: InputSpec = field(default_factory=InputSpec)
    temperature: float = 1.0
    envelope: Envelope | None = None
    instrument: InstrumentRange | None = None
    unknown: UnknownRule | None = None
    conformal: Conformal | None = None
    bfloat16: bool = False
    simulated: bool = True
    training: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked bundle. ``card``: the metadata as stored; ``digest``: of all that changes a probability."""

    path: Path
    digest: str
    model: ModelCard
    card: Mapping[str, Any]
    network: FishNet3d
    gauge: Gauge | None = None

    @property
    def model_id(self) -> str:
        """name@first 12 digits of the digest."""
        return f"{self.model.name}@{self.digest[:12]}"

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return self.model.classes

    @property
    def input(self) -> InputSpec:
        """Pitch, shape and normalisation of the input."""
        return self.model.input


def resolve(path_or_name: str | Path) -> Path:
    """The folder of a bundle: a path that exists, or the name of a shipped one. Raises UnknownModel."""
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        return path
    shipped = MODELS / str(path_or_name)
    if NAME.fullmatch(str(path_or_name)) and shipped.is_dir():
        return shipped
    known = ", ".join(sorted(p.name for p in MODELS.glob("*") if p.is_dir())) or "none"
    raise UnknownModel(f"{path_or_name}: neither a folder nor a shipped model; shipped models: {known}.")


def load_bundle(path_or_name: str | Path) -> Bundle:
    """Read and check a bundle; the network comes back in evaluation mode on the CPU.

    Raises UnknownModel when there is none, BundleInvalid with file, field, value and limit when a part does not hold.
    """
    path = resolve(path_or_name)
    card = _metadata(path / METADATA)
    section = card.get(SECTION)
    if not isinstance(section, dict):
        _refuse(path / METADATA, SECTION, section, "an object")
    model = _model_card(path / METADATA, section)
    data = _read(path / WEIGHTS, MAX_WEIGHTS_BYTES)
    stated = section.get("digests", {}).get(WEIGHTS) if isinstance(section.get("digests"), dict) else None
    if stated != (found := weights_digest(data)):
        _refuse(path / WEIGHTS, "BLAKE2b digest", found, f"{stated} as in {METADATA}")
    network = _network(path / WEIGHTS, model, data)
    return Bundle(path, bundle_digest(model, found), model, card, network, _gauge(path / GAUGE, model))


def save_bundle(path: Path, network: FishNet3d, model: ModelCard, gauge: Gauge | None = None) -> Bundle:
    """Write a bundle folder (each file: temporary, fsync, rename; the metadata last), read it back and return it.

    ``gauge``: how cells of no class are told; the card's ``unknown`` follows from it, whatever was there.
    """
    if not NAME.fullmatch(model.name):
        raise BundleInvalid(f"{path}: name is {model.name!r}; it must be {NAME_RULE}.")
    path.mkdir(parents=True, exist_ok=True)
    # Contiguous CPU copies: safetensors refuses views, and a channels-last weight is one.
    state = {k: v.detach().cpu().contiguous().clone() for k, v in network.state_dict().items()}
    data = safetensors_save(state)
    model, parts = _with_gauge(model, gauge)
    card = metadata_of(model, weights_digest(data))
    if parts is not None:
        write_file(path / GAUGE, parts)
    write_file(path / WEIGHTS, data)
    write_file(path / CARD, card_text(model, card).encode())
    write_file(path / METADATA, (json.dumps(card, indent=2, allow_nan=False) + "\n").encode())
    return load_bundle(path)


def check_names(name: str, classes: Sequence[str]) -> None:
    """Whether a bundle can be called so and have these classes: asked before a training, not after it. Raises BadValue."""
    if not NAME.fullmatch(name):
        raise BadValue(f"name is {name!r}; it must be {NAME_RULE}.", action="Choose another name for the model.")
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise BadValue(
            f"the set has {len(classes)} classes ({', '.join(classes[:5])}); a model tells 2 to {MAX_CLASSES} apart.",
            action="Make or join the set anew with further classes, or with fewer (--classes).",
        )
    if wrong := [c for c in classes if not NAME.fullmatch(c)]:
        raise BadValue(
            f"the set's class is {wrong[0]!r}; it must be {NAME_RULE}.",
            action="Label those cells anew with another name, and make the set again.",
        )
    if twice := [c for c in classes if list(classes).count(c) > 1]:
        raise BadValue(f"the set's class {twice[0]!r} is there twice.", action="Make the set again with each class once.")


def keep_others(path: Path, bundle: Bundle | None = None) -> None:
    """Raises BadValue where ``path`` holds a bundle already; one with the weights of ``bundle`` may be written anew."""
    if not (path / METADATA).exists():
        return
    try:
        found = load_bundle(path)
    except BundleInvalid as error:
        raise BadValue(f"{path}: holds a bundle that cannot be read.", action="Choose another folder.") from error
    if bundle is None or _weights_of(found) != _weights_of(bundle):
        raise BadValue(f"{path}: holds {found.model_id} already; nothing is written over it.", action="Choose another folder.")


def _weights_of(bundle: Bundle) -> Any:
    return bundle.card.get(SECTION, {}).get("digests", {}).get(WEIGHTS)


def weights_digest(data: bytes) -> str:
    """BLAKE2b-256 of the weights file, hexadecimal."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def bundle_digest(model: ModelCard, weights: str) -> str:
    """Of everything that changes a probability: two bundles with one digest answer alike."""
    parts = {**_identity(model), "weights": weights}
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def digest_of_card(card: Mapping[str, Any]) -> str | None:
    """The bundle digest by a stored card alone (the whole metadata.json), without its weights; None when it states none."""
    section = card.get(SECTION)
    digests = section.get("digests") if isinstance(section, Mapping) else None
    weights = digests.get(WEIGHTS) if isinstance(digests, Mapping) else None
    if not isinstance(section, Mapping) or not isinstance(weights, str):
        return None
    try:
        return bundle_digest(_model_card(Path(METADATA), dict(section)), weights)
    except BundleInvalid:
        return None


def metadata_of(model: ModelCard, weights: str) -> dict[str, Any]:
    """The whole metadata.json: MONAI's keys first, then the section that wbcd reads."""
    from importlib.metadata import version

    what, spec = learnt_from(model), model.input
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": wbcd.__version__,
        "changelog": {wbcd.__version__: "as trained"},
        "monai_version": "none (wbcd reads the section 'wbcd')",
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"safetensors": version("safetensors")},
        "task": "classification of white blood cells from refractive-index tomograms",
        "description": f"3D fish network of width {model.width}, trained on {what} tomograms",
        "authors": "wbcd",
        "copyright": "Apache-2.0",
        "data_source": f"{what} refractive-index tomograms of wbcd",
        "data_type": "safetensors",
        "intended_use": "Research use only; not for diagnosis.",
        "references": ["Ryu et al. 2021: label-free white blood cell classification using refractive index tomography"],
        "eval_metrics": dict(model.measured),
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "refractive index",
                    "num_channels": 1,
                    "spatial_shape": list(spec.shape),
                    "dtype": "float32",
                    "value_range": [0, 2],
                    "is_patch_data": False,
                    "channel_def": {"0": f"max(0, (n - n_medium) * {spec.scale:g})"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "classes",
                    "num_channels": len(model.classes),
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {str(i): c for i, c in enumerate(model.classes)},
                }
            },
        },
        SECTION: {
            "format_version": FORMAT_VERSION,
            "name": model.name,
            **_identity(model),
            "bfloat16_proven_equal": model.bfloat16,
            "simulated": model.simulated,
            "training": dict(model.training),
            "measured": dict(model.measured),
            "digests": {WEIGHTS: weights},
        },
    }


def card_text(model: ModelCard, card: Mapping[str, Any]) -> str:
    """README.md of a bundle: what it is, how it was measured, what it must not be used for."""
    what = "simulated" if model.simulated else "measured"
    caution = " How it does on other cells is not known from these figures." if model.simulated else ""
    if not model.simulated and begun_on_simulated(model):
        kept = "features that it keeps" if model.training.get("keep_features") else "weights that it began with"
        caution = f" But the {kept} were learnt on **simulated** cells."
    spec = model.input
    pitch = " x ".join(f"{v:g}" for v in spec.voxel_um)
    lines = [
        f"# {model.name}",
        "",
        f"Classes: {', '.join(model.classes)}. Research use only; not for diagnosis.",
        "",
        f"A 3D fish network ({model.architecture}, width {model.width}) trained and measured on **{what}** cells.{caution}",
        "",
        f"Input: {' x '.join(map(str, spec.shape))} voxels (z, y, x) of {pitch} um; {MEDIUM_RULE};"
        f" max(0, (n - n_m) * {spec.scale:g}). Probabilities: softmax(logits / {model.temperature:.4g})"
        + (f", the logits being means over {model.views} mirror views." if model.views > 1 else "."),
        "",
        *_envelope_lines(model.envelope),
        *_knowing_lines(model),
        f"## Measured on {what} cells",
        "",
        *_bullets(model.measured),
        "",
        "## Training",
        "",
        *_bullets(model.training),
        "",
        f"Weights: `{WEIGHTS}`, BLAKE2b-256 `{card[SECTION]['digests'][WEIGHTS]}`.",
    ]
    return "\n".join(lines) + "\n"


def lessons(model: ModelCard) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """The model's training, that of the model it began with, and so on; and whether each was of simulated cells."""
    lesson, simulated = model.training, model.simulated
    while lesson:
        yield lesson, simulated
        lesson = lesson.get("start") or {}
        simulated = bool(lesson.get("simulated", True))


def begun_on_simulated(model: ModelCard) -> bool:
    """Whether a model that this one began with, or that one with, learnt from simulated cells."""
    return any(simulated for _, simulated in itertools.islice(lessons(model), 1, None))


def learnt_from(model: ModelCard) -> str:
    """Of what cells: to be put before "cells" or "tomograms"."""
    if model.simulated:
        return "simulated"
    return "measured and, before, on simulated" if begun_on_simulated(model) else "measured"


def _envelope_lines(envelope: Envelope | None) -> list[str]:
    if envelope is None:
        return []
    (v0, v1), (d0, d1) = envelope.volume_fl, envelope.mean_delta_ri
    return [
        f"Trained on cells of {v0:.0f} to {v1:.0f} fL and mean n - n_m of {d0:.4f} to {d1:.4f}; a cell outside is flagged"
        " `outside_training_range` and counted as unclassified.",
        "",
    ]


def _knowing_lines(model: ModelCard) -> list[str]:
    lines = []
    if model.unknown is not None:
        lines += [
            f"A cell whose features lie farther than {model.unknown.threshold:.1f} (Mahalanobis) from every class is flagged"
            f" `unknown_cell`; {model.unknown.acceptance:.0%} of known cells lie within (set on {model.unknown.cells}).",
            "",
        ]
    if model.conformal is not None:
        lines += [
            f"Prediction sets hold the true class in {model.conformal.coverage:.0%} of cells like those of the calibration"
            f" ({model.conformal.method}, by class).",
            "",
        ]
    if model.instrument is not None:
        ranges = {k: v for k, v in dataclasses.asdict(model.instrument).items() if v is not None}
        named = "; ".join(f"{k} {low:g} to {high:g}" for k, (low, high) in ranges.items())
        lines += [f"Instruments of {named} are accepted; cells of another are flagged `outside_instrument_range`.", ""]
    return lines


def write_file(path: Path, data: bytes) -> None:
    """Temporary file, fsync, rename: a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        # Of the file that was asked for, not of the one beside it.
        raise OSError(error.errno, error.strerror, str(path)) from error


def _identity(model: ModelCard) -> dict[str, Any]:
    spec = model.input
    # One view is left out, so that older bundles keep their digest.
    views = {"views": model.views} if model.views > 1 else {}
    return {
        "architecture": {
            "name": model.architecture,
            "arguments": {"classes": len(model.classes), "width": model.width, **views},
        },
        "classes": list(model.classes),
        "input": {
            "axes": "zyx",
            "shape": list(spec.shape),
            "voxel_um": list(spec.voxel_um),
            "medium_ri_rule": MEDIUM_RULE,
            "normalisation": {"scale": spec.scale, "clip_below": 0.0},
        },
        "temperature": model.temperature,
        **_envelope_facts(model.envelope),
        **_knowing_facts(model),
    }


def _knowing_facts(model: ModelCard) -> dict[str, Any]:
    """What decides over flags; absent parts are left out, so that older bundles keep their digest."""
    facts: dict[str, Any] = {}
    if model.instrument is not None:
        ranges = dataclasses.asdict(model.instrument)
        facts["instrument"] = {name: list(limits) for name, limits in ranges.items() if limits is not None}
    if model.unknown is not None:
        facts["unknown"] = dataclasses.asdict(model.unknown)
    if model.conformal is not None:
        limits = [value if math.isfinite(value) else None for value in model.conformal.thresholds]
        facts["conformal"] = {"method": model.conformal.method, "coverage": model.conformal.coverage, "thresholds": limits}
    return facts


def _with_gauge(model: ModelCard, gauge: Gauge | None) -> tuple[ModelCard, bytes | None]:
    if gauge is None:
        return dataclasses.replace(model, unknown=None), None
    data = gauge_bytes(gauge)
    rule = UnknownRule(gauge.threshold, gauge.acceptance, gauge.cells, weights_digest(data))
    return dataclasses.replace(model, unknown=rule), data


def gauge_bytes(gauge: Gauge) -> bytes:
    """As it stands in the bundle's file."""
    tensors = {"means": torch.from_numpy(gauge.means), "whitening": torch.from_numpy(gauge.whitening)}
    data: bytes = safetensors_save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return data


def _envelope_facts(envelope: Envelope | None) -> dict[str, Any]:
    if envelope is None:
        return {}
    return {"envelope": {"volume_fl": list(envelope.volume_fl), "mean_delta_ri": list(envelope.mean_delta_ri)}}


def _bullets(facts: Mapping[str, Any]) -> list[str]:
    return [f"- {key.replace('_', ' ')}: {_plain(value)}" for key, value in facts.items()] or ["- nothing recorded"]


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return str(value)


def _refuse(file: Path, what: str, value: object, limit: str) -> NoReturn:
    raise BundleInvalid(f"{file}: {what} is {str(value)[:120]!r}; it must be {limit}.")


def _read(file: Path, limit: int) -> bytes:
    """All bytes of a regular file; a FIFO is not awaited, a file that grows meanwhile not followed beyond the limit."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise BundleInvalid(f"{file}: not there; a bundle has {WEIGHTS}, {METADATA} and {CARD}.") from error
    except OSError as error:
        raise BundleInvalid(f"{file}: cannot be read: {error.strerror}.", action="Check its permissions.") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            _refuse(file, "kind", "no regular file", "a regular file")
        with os.fdopen(os.dup(handle), "rb") as stream:
            data = stream.read(limit + 1)
    finally:
        os.close(handle)
    if len(data) > limit:
        _refuse(file, "size", f"over {limit} bytes", f"at most {limit} bytes")
    return data


def _metadata(file: Path) -> dict[str, Any]:
    try:
        card = json.loads(_read(file, MAX_METADATA_BYTES), parse_constant=_no_constant)
    # A deeply nested document exhausts the parser's recursion.
    except (ValueError, RecursionError) as error:
        raise BundleInvalid(f"{file}: not JSON: {error}.") from error
    if not isinstance(card, dict):
        _refuse(file, "top level", type(card).__name__, "an object")
    return card


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


class _Reader:
    """Typed access to one JSON object; every refusal names the file and the dotted field."""

    def __init__(self, file: Path, data: object, prefix: str) -> None:
        self.file, self.prefix = file, prefix
        if not isinstance(data, dict):
            _refuse(file, prefix, data, "an object")
        self.data: dict[str, Any] = data

    def inner(self, key: str) -> _Reader:
        return _Reader(self.file, self.data.get(key), f"{self.prefix}.{key}")

    def text(self, key: str, allowed: Sequence[str] | None = None) -> str:
        value = self.data.get(key)
        if not isinstance(value, str) or (allowed is not None and value not in allowed):
            self.refuse(key, "a text" if allowed is None else "one of " + ", ".join(map(repr, allowed)))
        return str(value)

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.data.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(key, f"a whole number from {low} to {high}")
        return int(self.data[key])

    def number(self, key: str, low: float, high: float) -> float:
        value = self.data.get(key)
        if not _is_number(value) or not low <= float(self.data[key]) <= high:
            self.refuse(key, f"a number from {low:g} to {high:g}")
        return float(self.data[key])

    def flag(self, key: str) -> bool:
        if not isinstance(self.data.get(key), bool):
            self.refuse(key, "true or false")
        return bool(self.data[key])

    def triple(self, key: str, low: float, high: float) -> tuple[float, float, float]:
        value = self.data.get(key)
        if not isinstance(value, list) or len(value) != 3 or not all(_is_number(v) and low <= v <= high for v in value):
            self.refuse(key, f"three numbers (z, y, x) from {low:g} to {high:g}")
        z, y, x = self.data[key]
        return z, y, x

    def interval(self, key: str, low: float, high: float) -> tuple[float, float]:
        value = self.data.get(key)
        if not isinstance(value, list) or len(value) != 2 or not all(_is_number(v) for v in value):
            self.refuse(key, "two numbers, low and high")
        if not low <= value[0] <= value[1] <= high:
            self.refuse(key, f"low and high, in this order, within {low:g} to {high:g}")
        return float(value[0]), float(value[1])

    def refuse(self, key: str, limit: str) -> NoReturn:
        _refuse(self.file, f"{self.prefix}.{key}", self.data.get(key), limit)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def _model_card(file: Path, section: dict[str, Any]) -> ModelCard:
    top = _Reader(file, section, SECTION)
    top.integer("format_version", FORMAT_VERSION, FORMAT_VERSION)
    classes = _classes(top)
    architecture = top.inner("architecture")
    arguments = architecture.inner("arguments")
    arguments.integer("classes", len(classes), len(classes))
    name = top.text("name")
    if not NAME.fullmatch(name):
        top.refuse("name", NAME_RULE)
    return ModelCard(
        name=name,
        classes=classes,
        architecture=architecture.text("name", sorted(ARCHITECTURES)),
        width=arguments.integer("width", 2, MAX_WIDTH),
        views=_views(arguments),
        input=_input(top.inner("input")),
        temperature=top.number("temperature", 0.01, 100.0),
        envelope=_envelope(top),
        instrument=_instrument(top),
        unknown=_unknown(top),
        conformal=_conformal(top, len(classes)),
        bfloat16=top.flag("bfloat16_proven_equal"),
        simulated=top.flag("simulated"),
        training=top.inner("training").data,
        measured=top.inner("measured").data,
    )


def _views(arguments: _Reader) -> int:
    if "views" not in arguments.data:
        return 1
    found = arguments.integer("views", min(VIEWS), max(VIEWS))
    if found not in VIEWS:
        arguments.refuse("views", "one of " + ", ".join(map(str, VIEWS)))
    return found


def _envelope(top: _Reader) -> Envelope | None:
    if top.data.get("envelope") is None:
        return None
    reader = top.inner("envelope")
    return Envelope(reader.interval("volume_fl", 0.0, 1e6), reader.interval("mean_delta_ri", -0.5, 0.5))


def _instrument(top: _Reader) -> InstrumentRange | None:
    if top.data.get("instrument") is None:
        return None
    reader = top.inner("instrument")
    if strange := sorted(set(reader.data) - set(INSTRUMENT_LIMITS)):
        reader.refuse(strange[0], "one of " + ", ".join(INSTRUMENT_LIMITS))
    return InstrumentRange(**{name: reader.interval(name, *INSTRUMENT_LIMITS[name]) for name in reader.data})


def _unknown(top: _Reader) -> UnknownRule | None:
    if top.data.get("unknown") is None:
        return None
    reader = top.inner("unknown")
    return UnknownRule(
        threshold=reader.number("threshold", 0.0, 1e9),
        acceptance=reader.number("acceptance", 0.5, 1.0),
        cells=reader.integer("cells", 1, 1 << 40),
        digest=reader.text("digest"),
    )


def _conformal(top: _Reader, classes: int) -> Conformal | None:
    if top.data.get("conformal") is None:
        return None
    reader = top.inner("conformal")
    method = METHODS[METHODS.index(reader.text("method", METHODS))]
    limits = reader.data.get("thresholds")
    good = isinstance(limits, list) and len(limits) == classes
    if not good or not all(v is None or (_is_number(v) and 0 <= v <= 1 + 1e-6) for v in reader.data["thresholds"]):
        reader.refuse("thresholds", f"{classes} numbers from 0 to 1, or null where a class is in every set")
    thresholds = tuple(math.inf if v is None else float(v) for v in reader.data["thresholds"])
    return Conformal(method, reader.number("coverage", 0.01, 0.9999), thresholds)


def _gauge(file: Path, model: ModelCard) -> Gauge | None:
    """The gauge that the card speaks of, checked against it; a file that it does not speak of is not read."""
    return None if model.unknown is None else gauge_from(file, model.unknown, model, _read(file, MAX_GAUGE_BYTES))


def gauge_from(file: Path, rule: UnknownRule, model: ModelCard, data: bytes) -> Gauge:
    """The gauge in ``data``, checked against what the card says of it; ``file`` is named in refusals. Raises BundleInvalid."""
    if weights_digest(data) != rule.digest:
        _refuse(file, "BLAKE2b digest", weights_digest(data), f"{rule.digest} as its card says")
    try:
        parts = safetensors_load(data)
    except FOREIGN as error:
        what = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BundleInvalid(f"{file}: not safetensors: {what}.") from error
    features = EARLY_CHANNELS * model.width
    means, whitening = parts.get("means"), parts.get("whitening")
    if means is None or whitening is None or set(parts) != {"means", "whitening"}:
        _refuse(file, "tensors", sorted(parts), "means and whitening")
    least = len(model.classes)
    # More than classes: of the types that a lineage is made of, each has a mean.
    if means.ndim != 2 or not least <= len(means) <= MAX_CLASSES or means.shape[1] != features or means.dtype != torch.float32:
        _refuse(file, "means", f"{tuple(means.shape)} {means.dtype}", f"({least} to {MAX_CLASSES}, {features}) float32")
    if whitening.ndim != 2 or len(whitening) != features or whitening.shape[1] > features or whitening.dtype != torch.float32:
        _refuse(file, "whitening", f"{tuple(whitening.shape)} {whitening.dtype}", f"({features}, at most {features}) float32")
    if not bool(torch.isfinite(means).all()) or not bool(torch.isfinite(whitening).all()):
        _refuse(file, "tensors", "not finite", "finite")
    return Gauge(means.numpy(), whitening.numpy(), rule.threshold, rule.acceptance, rule.cells)


def _classes(top: _Reader) -> tuple[str, ...]:
    value = top.data.get("classes")
    good = isinstance(value, list) and 2 <= len(value) <= MAX_CLASSES
    if not good or not all(isinstance(c, str) and NAME.fullmatch(c) for c in top.data["classes"]):
        top.refuse("classes", f"2 to {MAX_CLASSES} names")
    if len(set(top.data["classes"])) != len(top.data["classes"]):
        top.refuse("classes", "names that differ from one another")
    return tuple(top.data["classes"])


def _input(reader: _Reader) -> InputSpec:
    reader.text("axes", ["zyx"])
    reader.text("medium_ri_rule", [MEDIUM_RULE])
    shape = reader.triple("shape", 1, 4096)
    if not all(isinstance(n, int) for n in shape) or math.prod(shape) > MAX_INPUT_VOXELS:
        reader.refuse("shape", f"three whole numbers with a product of at most {MAX_INPUT_VOXELS}")
    normalisation = reader.inner("normalisation")
    normalisation.number("clip_below", 0.0, 0.0)
    voxel = reader.triple("voxel_um", 0.01, 10.0)
    return InputSpec((int(shape[0]), int(shape[1]), int(shape[2])), voxel, normalisation.number("scale", 1e-3, 1e3))


def model_card_of(file: Path, section: object) -> ModelCard:
    """The checked card from the section ``wbcd`` of a metadata; ``file`` is named in refusals. Raises BundleInvalid."""
    if not isinstance(section, dict):
        _refuse(file, SECTION, section, "an object")
    return _model_card(file, section)


def _network(file: Path, model: ModelCard, data: bytes) -> FishNet3d:
    try:
        state = safetensors_load(data)
    except FOREIGN as error:
        what = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BundleInvalid(
            f"{file}: not safetensors: {what}.", action="Copy the bundle again from where it was made."
        ) from error
    return network_from(file, model, state)


def network_from(file: Path, model: ModelCard, state: Mapping[str, Tensor]) -> FishNet3d:
    """The card's architecture with these tensors, strictly; ``file`` is named in refusals. Raises BundleInvalid."""
    with torch.device("meta"):
        network = ARCHITECTURES[model.architecture](len(model.classes), model.width, model.views)
    _check_tensors(file, network.state_dict(), state)
    # Only now is memory taken, and exactly that of the tensors already read.
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _check_tensors(file: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    names = sorted(set(wanted) ^ set(found))
    if names:
        state = "missing" if names[0] in wanted else "unknown"
        raise BundleInvalid(f"{file}: tensor {names[0]!r} is {state} ({len(names)} names differ from the architecture's).")
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            expected = f"{tuple(wanted[name].shape)} {wanted[name].dtype}"
            _refuse(file, f"tensor {name!r}", f"{tuple(tensor.shape)} {tensor.dtype}", expected)
        if not bool(torch.isfinite(tensor).all()):
            _refuse(file, f"tensor {name!r}", "not finite", "finite")


def with_measured(model: ModelCard, **facts: Any) -> ModelCard:
    """The card with further measured facts."""
    return dataclasses.replace(model, measured={**model.measured, **facts})
