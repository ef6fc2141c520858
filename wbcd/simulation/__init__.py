"""A simulated microscope: phantoms of four leukocyte classes, their scattering, and the files an instrument would write.

    cells (phantoms) -> optics (scattering) -> microscope (holograms, files, rate, defects)
                     `-> fast (tomograms without holograms, for training sets)

The scattering model is not the inversion's: it is a non-paraxial multi-slice on its own grid, checked against exact Mie
theory; the inversion is Rytov's linearisation. Every figure made from these cells is a figure of *simulated* cells.
"""
