"""A writer's seal: one digest over all that an acquisition file says, so that no change after writing goes unseen.

HDF5's own checksums notice a flipped bit; they are made anew whenever a program rewrites an attribute. The seal is made once,
by the instrument: BLAKE2b-160 of the canonical JSON (sorted keys, no spaces) of
``{"attributes": {name: value}, "data": {name: [type, shape, BLAKE2b-160 of the little-endian bytes]}}``.
It guards against damage and mistakes, not against a forger, who can make a seal as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEAL = "seal"
SEALED_ATTRIBUTES = (
    *("format", "format_version", "acquisition_id", "acquired_at", "sample_id", "instrument_id", "reference_file"),
    *("wavelength_um", "objective_na", "medium_ri", "pixel_size_um", "normal_frame"),
)


def seal_of(attributes: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """The seal (40 hexadecimal digits) of the named attributes, absent ones left out, and of whole arrays."""
    facts = {name: _plain(attributes[name]) for name in SEALED_ATTRIBUTES if attributes.get(name) is not None}
    data = {name: _facts_of(values) for name, values in arrays.items()}
    text = json.dumps({"attributes": facts, "data": data}, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _facts_of(values: NDArray[Any]) -> list[Any]:
    stored = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    digest = hashlib.blake2b(stored.reshape(-1).view(np.uint8).data, digest_size=20).hexdigest()
    return [str(values.dtype.newbyteorder("=")), list(values.shape), digest]
