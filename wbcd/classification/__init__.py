"""Classification: a cell's RI crop to probabilities of the white blood cell types.

    bundle = load_bundle("reference")
    predictions = Classifier(bundle).predict(cells)

Usable alone: needs no daemon and no database.
"""

from wbcd.classification.backends import BACKENDS, Backend, make_backend
from wbcd.classification.batching import BatchRule, BatchWindow
from wbcd.classification.bundle import Bundle, Envelope, InstrumentRange, ModelCard, load_bundle, save_bundle
from wbcd.classification.classifier import (
    MAY_BE,
    OUTSIDE_INSTRUMENT_RANGE,
    OUTSIDE_TRAINING_RANGE,
    UNCLASSIFIED,
    UNKNOWN_CELL,
    Classifier,
)
from wbcd.classification.conformal import Conformal, fit_conformal
from wbcd.classification.network import FishNet3d
from wbcd.classification.preparation import InputSpec
from wbcd.classification.unknown import Gauge, fit_gauge

__all__ = [
    "BACKENDS",
    "MAY_BE",
    "OUTSIDE_INSTRUMENT_RANGE",
    "OUTSIDE_TRAINING_RANGE",
    "UNCLASSIFIED",
    "UNKNOWN_CELL",
    "Backend",
    "BatchRule",
    "BatchWindow",
    "Bundle",
    "Classifier",
    "Conformal",
    "Envelope",
    "FishNet3d",
    "Gauge",
    "InputSpec",
    "InstrumentRange",
    "ModelCard",
    "fit_conformal",
    "fit_gauge",
    "load_bundle",
    "make_backend",
    "save_bundle",
]
