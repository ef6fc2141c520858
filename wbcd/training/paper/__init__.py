"""The experiments of Ryu et al. 2021 on one's own set, simulated or measured: one command each.

    fig2    the six parameters of each class beside the paper's
    fig3    the 3D network on two and on four classes, and a UMAP of its features
    fig4    the 3D network beside five classifiers on the six parameters and beside 2D networks on three kinds of picture
    figS2   accuracy against the share of the training cells
    oracle  what could be known of simulated cells (wbcd.training.oracle)

Each is answered twice: on held-out cells of donors known from training (as in the paper) and on donors never seen. On simulated
cells the ordering of the methods is partly a property of the phantoms, and no evidence for the paper.
"""

from wbcd.training.paper.experiments import FIGURES, FULL, ORACLE, QUICK, Size, run_experiments

__all__ = ["FIGURES", "FULL", "ORACLE", "QUICK", "Size", "run_experiments"]
