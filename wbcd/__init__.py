"""wbcd: label-free white-blood-cell differentials from refractive-index tomography. Research use only."""

__version__ = "0.1.0"
