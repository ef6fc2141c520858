"""Bundles for other programs, and back: a single ONNX file, or a bioimage.io package around it (model RDF 0.5).

    export_onnx(bundle, Path("cells.onnx"))              # the file's SHA-256
    export_bioimageio(bundle, Path("cells.zip"))
    import_model(Path("cells.onnx"), sha256, Path("bundle"))

Nothing that comes in is executed. A file is read only when its SHA-256 is the one that its giver named; its graph may hold the
plain operators of ONNX and nothing beside the file; and what is taken from it are numbers, laid strictly into an
architecture that wbcd itself builds. The graph is then run once, to be held against what was built.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import io
import json
import math
import tempfile
import warnings
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbcd.classification.backends import PROBABILITY_TOLERANCE, EagerBackend, probe
from wbcd.classification.bundle import (
    MAX_METADATA_BYTES,
    MAX_WEIGHTS_BYTES,
    SECTION,
    Bundle,
    ModelCard,
    card_text,
    gauge_bytes,
    gauge_from,
    keep_others,
    learnt_from,
    model_card_of,
    network_from,
    save_bundle,
    write_file,
)
from wbcd.classification.network import EARLY_CHANNELS
from wbcd.classification.onnxgraph import EARLY_FEATURES, FEATURES, INPUT, OUTPUTS, PROBABILITIES, onnx_model
from wbcd.classification.unknown import Gauge
from wbcd.errors import BundleInvalid, ConfigurationError

OPERATORS = frozenset(
    (
        "Add",
        "BatchNormalization",
        "Concat",
        "Conv",
        "Div",
        "Flatten",
        "Gather",
        "GlobalAveragePool",
        "LeakyRelu",
        "MaxPool",
        "Mul",
        "ReduceMean",
        "Relu",
        "Reshape",
        "Resize",
        "Sigmoid",
        "Softmax",
    )
)
"""What a graph that comes in may hold: the operators that :mod:`wbcd.classification.onnxgraph` writes."""
DESCRIBED = (PROBABILITIES, FEATURES, EARLY_FEATURES)
"""Outputs of a bioimage.io package."""
COUNTERS = "counters"
UNKNOWN, MAX_GAUGE_TEXT = "wbcd_unknown", 1 << 26
"""Metadata entry with the distance by which unknown cells are told (safetensors in base64): no model may lose it on its way."""
RDF, WEIGHTS_FILE, README = "rdf.yaml", "weights.onnx", "README.md"
RDF_VERSION = "0.5.4"
TOLERANCE, TOLERANCE_SHARE = 1e-3, 5e-3
"""How near another runtime has to come to an output, absolutely and as a share of its greatest value: bioimageio.spec refuses
more than a hundredth of that."""
PAPER = "Ryu et al. 2021: label-free white blood cell classification using refractive index tomography"
PAPER_DOI = "10.34133/2021/9893804"


def export_onnx(bundle: Bundle, out: Path) -> str:
    """Write one ONNX file, checked and held against torch through ONNX Runtime; its SHA-256.

    Raises ConfigurationError without the extra ``exchange``, BundleInvalid when the graph answers otherwise.
    """
    data = onnx_bytes(bundle)
    write_file(out, data)
    return sha256(data)


def onnx_bytes(bundle: Bundle) -> bytes:
    """The ONNX file with the bundle's card in its metadata; checked as :func:`export_onnx` says."""
    onnx = _library("onnx")
    model = onnx_model(bundle)
    entry = model.metadata_props.add()
    entry.key, entry.value = SECTION, json.dumps(_card(bundle), allow_nan=False)
    if bundle.gauge is not None:
        entry = model.metadata_props.add()
        entry.key, entry.value = UNKNOWN, base64.b64encode(gauge_bytes(bundle.gauge)).decode("ascii")
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    _compare(Path("the exported graph"), data, bundle)
    return data


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


def export_bioimageio(bundle: Bundle, out: Path) -> str:
    """Write a bioimage.io package (zip: RDF, ONNX weights, documentation, test tensors); the SHA-256 of its weights.

    The package is validated with ``bioimageio.spec``, offline, before it gets its name. Raises as :func:`export_onnx`, and
    BundleInvalid with what the validation says.
    """
    weights = onnx_bytes(bundle)
    given = probe(bundle, 1)
    tensors = {INPUT: given.numpy()[:, None].astype(np.float32), **_run(weights, given)}
    files = {WEIGHTS_FILE: weights, README: _documentation(bundle).encode()}
    files |= {f"test_{name}.npy": _npy(tensors[name]) for name in (INPUT, *DESCRIBED)}
    files[RDF] = (json.dumps(_rdf(bundle, files, tensors), indent=1, allow_nan=False) + "\n").encode()
    _validate(files)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    write_file(out, packed.getvalue())
    return sha256(weights)


def import_model(file: Path, digest: str, out: Path) -> Bundle:
    """A bundle in ``out`` from an ONNX file, or from the ONNX entry of a bioimage.io package, that wbcd exported.

    ``digest``: SHA-256 of the ONNX entry, from whoever gave the file: without it nothing is read. Raises BundleInvalid naming
    what does not hold, BadValue where ``out`` holds a bundle.
    """
    keep_others(out)
    data = _entry(file)
    if sha256(data) != digest.strip().lower():
        raise BundleInvalid(
            f"{file}: SHA-256 of its ONNX entry is {sha256(data)}; the digest given is {digest[:80]}.",
            action="Ask whoever gave the file for its digest, or copy it again.",
        )
    model = _parsed(file, data)
    card, counters = _card_of(file, model)
    state = _state(file, model, counters)
    network = network_from(file, card, state)
    bundle = Bundle(file, "", card, {}, network)
    _compare(file, data, bundle)
    return save_bundle(out, network, card, _gauge_of(file, model, card))


# --- what comes in ---------------------------------------------------------------------------------


def _entry(file: Path) -> bytes:
    """The bytes of the ONNX entry, bounded before memory is taken."""
    try:
        if file.stat().st_size > MAX_WEIGHTS_BYTES:
            raise BundleInvalid(f"{file}: {file.stat().st_size} bytes; at most {MAX_WEIGHTS_BYTES} are read.")
        if not zipfile.is_zipfile(file):
            return file.read_bytes()
        with zipfile.ZipFile(file) as archive:
            names = [info for info in archive.infolist() if info.filename.endswith(".onnx")]
            if len(names) != 1 or names[0].file_size > MAX_WEIGHTS_BYTES:
                raise BundleInvalid(
                    f"{file}: holds {len(names)} ONNX entries; one of at most {MAX_WEIGHTS_BYTES} bytes is needed."
                )
            with archive.open(names[0]) as stream:
                # The stated size may lie: no more than it is read.
                return stream.read(names[0].file_size + 1)
    except (OSError, zipfile.BadZipFile, RuntimeError) as error:
        raise BundleInvalid(f"{file}: cannot be read: {error}.") from error


def _parsed(file: Path, data: bytes) -> Any:
    """The graph, refused where it could reach beyond the file or beyond plain operators."""
    onnx = _library("onnx")
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's DecodeError lives in a package that onnx does not re-export
        raise BundleInvalid(f"{file}: not ONNX: {error}.") from error
    strange = [node.op_type for node in model.graph.node if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx")]
    if strange or model.functions:
        raise BundleInvalid(f"{file}: operator {(strange or ['a function'])[0]!r} is none of those that wbcd writes.")
    tensors = list(model.graph.initializer)
    nested = [
        a for node in model.graph.node for a in node.attribute if a.HasField("g") or a.HasField("t") or a.graphs or a.tensors
    ]
    if nested or model.graph.sparse_initializer:
        raise BundleInvalid(
            f"{file}: attribute {(nested[0].name if nested else 'sparse')!r} holds a tensor or a graph of its own."
        )
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in tensors):
        raise BundleInvalid(f"{file}: its numbers lie in another file (external data), which is not read.")
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise BundleInvalid(f"{file}: not valid ONNX: {str(error).splitlines()[0]}.") from error
    return model


def _card_of(file: Path, model: Any) -> tuple[ModelCard, dict[str, Any]]:
    text = _metadata(file, model, SECTION, MAX_METADATA_BYTES)
    try:
        section = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleInvalid(f"{file}: metadata {SECTION!r} is not JSON: {error}.") from error
    counters = section.pop(COUNTERS, {}) if isinstance(section, dict) else {}
    if not isinstance(counters, dict) or not all(isinstance(v, int) and 0 <= v < 1 << 62 for v in counters.values()):
        raise BundleInvalid(f"{file}: metadata {COUNTERS!r} is {str(counters)[:80]!r}; it must be whole numbers by name.")
    return model_card_of(file, section), counters


def _metadata(file: Path, model: Any, key: str, most: int) -> str:
    texts: list[str] = [entry.value for entry in model.metadata_props if entry.key == key]
    if len(texts) != 1 or len(texts[0]) > most:
        raise BundleInvalid(
            f"{file}: has {len(texts)} metadata entries {key!r}; one of at most {most} bytes is needed.",
            action="Only files written by `wbcd model export` come back as a bundle.",
        )
    return texts[0]


def _gauge_of(file: Path, model: Any, card: ModelCard) -> Gauge | None:
    """How it tells unknown cells, where its card speaks of that: files of before 2026-11-28 do not."""
    if card.unknown is None:
        return None
    text = _metadata(file, model, UNKNOWN, MAX_GAUGE_TEXT)
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise BundleInvalid(
            f"{file}: metadata {UNKNOWN!r} is not base64: {error}.", action="Export the model again."
        ) from error
    return gauge_from(file, card.unknown, card, data)


def _state(file: Path, model: Any, counters: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors by their names in the bundle; helpers of the graph (scales, indices) are left."""
    onnx = _library("onnx")
    state: dict[str, Tensor] = {}
    for entry in model.graph.initializer:
        if "." not in entry.name:
            continue
        if math.prod(entry.dims) * 4 > MAX_WEIGHTS_BYTES or entry.data_type != onnx.TensorProto.FLOAT:
            raise BundleInvalid(
                f"{file}: tensor {entry.name!r} is {list(entry.dims)} of type {entry.data_type}; float32 is needed."
            )
        state[entry.name] = torch.from_numpy(np.array(onnx.numpy_helper.to_array(entry)))
    return state | {name: torch.tensor(value) for name, value in counters.items()}


def _compare(file: Path, data: bytes, bundle: Bundle) -> None:
    """Refuse a graph that answers otherwise than the network built from its numbers."""
    given = probe(bundle)
    wanted = EagerBackend(bundle, torch.device("cpu")).probabilities(given)
    departure = float(np.abs(_run(data, given)[PROBABILITIES] - wanted).max())
    if not departure <= PROBABILITY_TOLERANCE:
        raise BundleInvalid(
            f"{file}: its probabilities depart by {departure:.3g} from the network's; at most {PROBABILITY_TOLERANCE}."
        )


def _run(data: bytes, given: Tensor) -> dict[str, Any]:
    """All outputs for n - n_m [n, z, y, x], through ONNX Runtime."""
    runtime = _library("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found = session.run(list(OUTPUTS), {INPUT: given.float().numpy()[:, None]})
    return dict(zip(OUTPUTS, found, strict=True))


# --- what goes out ---------------------------------------------------------------------------------


def _card(bundle: Bundle) -> dict[str, Any]:
    """The section that wbcd reads, without the digest of a file that is not there."""
    section = {key: value for key, value in bundle.card[SECTION].items() if key != "digests"}
    counters = {k: int(v) for k, v in bundle.network.state_dict().items() if k.endswith("num_batches_tracked")}
    return {**section, COUNTERS: counters}


def _documentation(bundle: Bundle) -> str:
    measured = "## Validation\n\nThe figures under 'Measured' are on held-out cells; nothing else is known of it.\n"
    use = (
        f"Input: n - n_m (refractive index less the medium's, as estimated around the cell), {bundle.input.shape} voxels"
        f" (z, y, x) of {bundle.input.voxel_um} um, the cell in the middle."
        f" Output: probabilities of {', '.join(bundle.classes)}.\n"
    )
    return f"{card_text(bundle.model, bundle.card)}\n## Use\n\n{use}\n{measured}"


def _rdf(bundle: Bundle, files: dict[str, bytes], tensors: dict[str, Any]) -> dict[str, Any]:
    """The resource description, JSON-ready (JSON is YAML). Logits are left out: negative ones have no valid tolerance."""
    what = learnt_from(bundle.model)
    width = bundle.network.width
    late, early = ({"type": "index", "id": "feature", "size": n * width} for n in (33, EARLY_CHANNELS))
    classes = {"type": "channel", "channel_names": list(bundle.classes)}
    return {
        "type": "model",
        "format_version": RDF_VERSION,
        "name": f"wbcd {bundle.model.name}",
        "description": f"White blood cell types from refractive-index tomograms; trained on {what} cells. Research use only.",
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "authors": [{"name": "wbcd"}],
        "license": "Apache-2.0",
        "documentation": _file(README, files),
        "cite": [{"text": PAPER, "doi": PAPER_DOI}],
        "tags": ["classification", "3d", "refractive-index", "holotomography", "white-blood-cells"],
        "inputs": [_input(bundle, files)],
        "outputs": [
            _output(PROBABILITIES, classes, "probability of each class", files),
            _output(FEATURES, late, "pooled map after the second downsampling block", files),
            _output(EARLY_FEATURES, early, "pooled map after its first stage", files),
        ],
        "weights": {"onnx": {**_file(WEIGHTS_FILE, files), "opset_version": 18}},
        "config": {"bioimageio": {"reproducibility_tolerance": [_tolerance(name, tensors[name]) for name in DESCRIBED]}},
    }


def _input(bundle: Bundle, files: dict[str, bytes]) -> dict[str, Any]:
    pairs = zip("zyx", bundle.input.shape, bundle.input.voxel_um, strict=True)
    space = [{"type": "space", "id": a, "size": n, "unit": "micrometer", "scale": d} for a, n, d in pairs]
    return {
        "id": INPUT,
        "description": "refractive index less the medium's",
        "axes": [{"type": "batch"}, {"type": "channel", "channel_names": [INPUT]}, *space],
        "data": {"type": "float32"},
        "test_tensor": _file(f"test_{INPUT}.npy", files),
    }


def _output(name: str, axis: dict[str, Any], what: str, files: dict[str, bytes]) -> dict[str, Any]:
    return {
        "id": name,
        "description": what,
        "axes": [{"type": "batch"}, axis],
        "data": {"type": "float32"},
        "test_tensor": _file(f"test_{name}.npy", files),
    }


def _tolerance(name: str, values: NDArray[np.float32]) -> dict[str, Any]:
    return {
        "output_ids": [name],
        "relative_tolerance": TOLERANCE,
        "absolute_tolerance": min(TOLERANCE, TOLERANCE_SHARE * float(values.max())),
    }


def _file(name: str, files: dict[str, bytes]) -> dict[str, str]:
    return {"source": name, "sha256": sha256(files[name])}


def _npy(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()


def _validate(files: dict[str, bytes]) -> None:
    spec = _library("bioimageio.spec")
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        # The library leaves its files open; collected here, they warn nobody.
        with warnings.catch_warnings(), spec.ValidationContext(perform_io_checks=True):
            warnings.simplefilter("ignore")
            found = spec.load_description(Path(folder) / RDF, format_version="0.5")
            gc.collect()
    if isinstance(found, spec.InvalidDescr):
        raise BundleInvalid(f"{RDF}: {found.validation_summary.errors[0].msg}.", action="Report this.")


def _library(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"{name} is not installed.", action="Install the extra: pip install 'wbcd[exchange]'."
        ) from error
