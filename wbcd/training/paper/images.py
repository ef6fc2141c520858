"""Sets of pictures for the 2D networks: a picture is a volume of one plane, and the same network takes it.

With one plane the 3 x 3 x 3 kernels see their own plane and zeros: what is left is the two-dimensional network of the same
proportions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wbcd.classification import InputSpec
from wbcd.errors import BadValue
from wbcd.simulation.optics import INSTRUMENT
from wbcd.training import dataset as sets
from wbcd.training.augmentation import Augmentation
from wbcd.training.pictures import maximum, projected


@dataclass(frozen=True, slots=True)
class _Kind:
    """``unit``: factor that brings a picture's values to the size of n - n_m (0.03); ``noise``: greatest, in its own unit."""

    unit: float
    noise: float
    signed: bool


KINDS: Final[Mapping[str, _Kind]] = {
    "mip": _Kind(1.0, 6e-4, False),
    "phase": _Kind(0.01, 0.02, True),
    "amplitude": _Kind(0.1, 0.01, True),
}


def picture_set(
    data: sets.TrainingSet, kind: str, volumes: Augmentation | None = None
) -> tuple[sets.TrainingSet, Augmentation]:
    """The same cells, labels and splits as pictures ("mip", "phase" or "amplitude"), and how to augment them.

    As the ``volumes`` are (None: the default), or the networks could not be compared; only the strengths of noise and offset,
    which have a picture's unit, are the kind's own, where the volumes have any. Pictures of a set of version 1, which has none,
    are projections of its tomograms.
    """
    if kind not in KINDS:
        raise BadValue(f"the picture is {kind!r}; it must be one of {', '.join(KINDS)}.")
    how = KINDS[kind]
    values = _values(data, kind) * how.unit
    _, dy, dx = data.input.voxel_um
    spec = InputSpec((1, *values.shape[1:]), (1.0, dy, dx), data.input.scale)
    made = replace(
        data,
        input=spec,
        ri_delta=values[:, None].astype(np.float16),
        signed=how.signed,
        splits={scheme: data.split(scheme) for scheme in sets.SCHEMES},
        card={**data.card, "data_hash": f"{data.data_hash}-{kind}"},
    )
    volumes, noise = volumes or Augmentation(), how.noise * how.unit
    return made, replace(
        volumes, noise_ri=noise if volumes.noise_ri else 0.0, offset_ri=noise / 3 if volumes.offset_ri else 0.0
    )


def _values(data: sets.TrainingSet, kind: str) -> NDArray[np.float32]:
    if kind == "mip":
        return np.stack([maximum(volume) for volume in data.ri_delta])
    if data.phase is not None and data.amplitude is not None:
        return data.phase if kind == "phase" else data.amplitude - 1
    pictures = (projected(volume, data.input, INSTRUMENT) for volume in data.ri_delta)
    return np.stack([p.phase if kind == "phase" else p.amplitude - 1 for p in pictures])
