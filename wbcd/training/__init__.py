"""Training: sets, augmentation, fitting, calibration, evaluation and baselines.

    make_dataset("cells.zarr", 2400, donors=20)
    report = train("cells.zarr", "training/", epochs=12)
    evaluate(report.bundle, "cells.zarr", "test")

Every figure made from a simulated set is a figure of *simulated* cells, and the card says so.
"""

from wbcd.training.baselines import evaluate_baselines
from wbcd.training.evaluation import Evaluation, evaluate
from wbcd.training.fit import PRESETS, TrainingReport, train
from wbcd.training.make import make_dataset

__all__ = ["PRESETS", "Evaluation", "TrainingReport", "evaluate", "evaluate_baselines", "make_dataset", "train"]
