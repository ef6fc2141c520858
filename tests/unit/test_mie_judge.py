"""The judge itself is judged: unitarity, a public Mie code, and the equality of split shells."""

from __future__ import annotations

import miepython
import numpy as np
import pytest
from helpers_mie import Rig, Sphere, fields, partial_waves

K0 = 2 * np.pi / 0.532


@pytest.mark.parametrize("sphere", [Sphere((3.75,), (1.37,)), Sphere((2.0, 4.5), (1.375, 1.36)), Sphere((7.0,), (1.385,))])
def test_partial_waves_are_unitary(sphere: Sphere) -> None:
    # A lossless scatterer: |1 + 2 R_l| = 1 for every order.
    r = partial_waves(sphere, K0, 1.337)
    np.testing.assert_allclose(np.abs(1 + 2 * r), 1, atol=1e-9)


def test_a_shell_of_the_same_ri_is_no_shell() -> None:
    whole = partial_waves(Sphere((3.75,), (1.37,)), K0, 1.337)
    split = partial_waves(Sphere((1.3, 2.2, 3.75), (1.37, 1.37, 1.37)), K0, 1.337)
    np.testing.assert_allclose(split, whole, atol=1e-9)


@pytest.mark.parametrize(("diameter", "ri"), [(7.5, 1.37), (12.0, 1.36), (5.0, 1.385)])
def test_extinction_agrees_with_miepython(diameter: float, ri: float) -> None:
    # Scalar against vector: near index matching they differ by the square of the contrast.
    k = K0 * 1.337
    x = k * diameter / 2
    r = partial_waves(Sphere((diameter / 2,), (ri,)), K0, 1.337)
    ours = -4 / x**2 * float(np.sum((2 * np.arange(len(r)) + 1) * r.real))
    theirs = miepython.efficiencies_mx(ri / 1.337, x)[0]
    assert ours == pytest.approx(theirs, rel=0.01)


def test_field_keeps_its_shadow_where_geometry_puts_it() -> None:
    rig = Rig(size=192, pixel_um=0.1, frames=5)
    w = fields(Sphere((3.0,), (1.36,), (0.0, 0.0, 2.0)), rig)
    weight = np.abs(w - 1) ** 2
    y, x = (np.indices(w.shape[1:]) - 96) * 0.1
    k_z = np.sqrt(rig.k**2 - (rig.k_in() ** 2).sum(1))
    for i in range(5):
        shift = -2.0 * rig.k_in()[i] / k_z[i]
        assert (weight[i] * x).sum() / weight[i].sum() == pytest.approx(shift[0], abs=0.6)
        assert (weight[i] * y).sum() / weight[i].sum() == pytest.approx(shift[1], abs=0.6)
