"""The elementary functions of the CPU kernels: relative errors against float64, the ends of their ranges."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from seqkernels import vector_math

FLOAT32_EPS = float(np.finfo(np.float32).eps)


def apply(name: str, values: np.ndarray) -> np.ndarray:
    function = getattr(vector_math, name)

    @numba.njit
    def loop(values, out):
        for i in range(values.size):
            out[i] = function(values[i])

    out = np.empty_like(values)
    loop(values, out)
    return out


EXACT = {
    "decay": np.exp2,  # fp32 gets a already multiplied by log2(e)
    "softplus": lambda v: np.where(v > 20, v, np.log1p(np.exp(np.minimum(v, 20)))),
    "softplus_slope": lambda v: np.where(v > 20, 1, 1 / (1 + np.exp(-v))),
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
}
RANGES = {"decay": (-120, 20), "softplus": (-80, 80), "softplus_slope": (-80, 80), "sigmoid": (-80, 80)}


@pytest.mark.parametrize("name", EXACT)
def test_relative_error_is_a_few_units_in_the_last_place(name: str) -> None:
    values = np.linspace(*RANGES[name], 400_001).astype(np.float32)
    exact = EXACT[name](values.astype(np.float64))
    error = np.abs(apply(name, values) - exact) / exact
    assert error.max() < 2.5 * FLOAT32_EPS, values[error.argmax()]


@pytest.mark.parametrize("name", ["softplus", "sigmoid", "softplus_slope", "silu_slope"])
def test_float64_is_double_precision(name: str) -> None:
    values = np.linspace(-30, 30, 1001)
    s = 1 / (1 + np.exp(-values))
    exact = s * (1 + values * (1 - s)) if name == "silu_slope" else EXACT[name](values)
    np.testing.assert_allclose(apply(name, values), exact, rtol=1e-13, atol=1e-16)


def test_silu_slope_in_fp32() -> None:
    values = np.linspace(-80, 80, 100_001).astype(np.float32)
    v = values.astype(np.float64)
    s = 1 / (1 + np.exp(-v))
    assert np.abs(apply("silu_slope", values) - s * (1 + v * (1 - s))).max() < 4 * FLOAT32_EPS


def test_ends_of_the_range() -> None:
    values = np.array([0, -1e30, 1e30, -np.inf, np.inf], np.float32)
    np.testing.assert_array_equal(apply("decay", values)[:1], [1])
    assert (apply("decay", values)[[1, 3]] <= 2.0**-126).all()
    np.testing.assert_array_equal(apply("softplus", values)[[2, 4]], np.array([1e30, np.inf], np.float32))
    assert (apply("softplus", values)[[1, 3]] < 1e-37).all()
    np.testing.assert_array_equal(apply("sigmoid", values)[[2, 4]], [1, 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["decay", "softplus", "softplus_slope", "sigmoid", "silu_slope"])
def test_nan_stays_nan(name: str, dtype: type) -> None:
    assert np.isnan(apply(name, np.full(20, np.nan, dtype))).all()
