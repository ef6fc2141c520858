"""Morphology: tomogram -> cells -> the six parameters of Ryu et al. 2021.

Importable alone, for notebooks::

    for cell in distinct(find_cells(tomogram, recipe)):
        morphology = measure(cell, recipe)
"""

from wbcd.morphology.cells import distinct, find_cells
from wbcd.morphology.measure import measure

__all__ = ["distinct", "find_cells", "measure"]
