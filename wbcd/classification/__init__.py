"""Classification: a cell's RI crop to probabilities of the white blood cell types.

    bundle = load_bundle("reference")
    predictions = Classifier(bundle).predict(cells)

Usable alone: needs no daemon and no database.
"""

from wbcd.classification.batching import BatchRule, BatchWindow
from wbcd.classification.bundle import Bundle, Envelope, ModelCard, load_bundle, save_bundle
from wbcd.classification.classifier import OUTSIDE_TRAINING_RANGE, UNCLASSIFIED, Classifier
from wbcd.classification.network import FishNet3d
from wbcd.classification.preparation import InputSpec

__all__ = [
    "OUTSIDE_TRAINING_RANGE",
    "UNCLASSIFIED",
    "BatchRule",
    "BatchWindow",
    "Bundle",
    "Classifier",
    "Envelope",
    "FishNet3d",
    "InputSpec",
    "ModelCard",
    "load_bundle",
    "save_bundle",
]
