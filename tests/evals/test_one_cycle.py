"""Schedules against recorded ones."""

import numpy as np
import pytest

from dinov3_jax.evals import one_cycle


def check(rates, betas, record):
  for step, (rate, beta) in record.items():
    assert rates[int(step)] == pytest.approx(rate, rel=1e-6, abs=1e-14)
    assert betas[int(step)] == pytest.approx(beta, abs=1e-9)


@pytest.mark.parametrize("name, peak, steps, warmup", [
  ("segmentation", 1e-3, 40000, 1500), ("segmentation_short_T400_warm15", 3e-4, 400, 15)])
def test_segmentation(recorded, name, peak, steps, warmup):
  check(one_cycle.segmentation(peak, steps, warmup), np.full(steps, 0.9),
        recorded("schedules_dense")[name])


@pytest.mark.parametrize("name, peak, steps, warmup", [
  ("depth", 3e-4, 38400, 12800), ("depth_short_T384_warm128", 1e-3, 384, 128)])
def test_depth(recorded, name, peak, steps, warmup):
  check(*one_cycle.depth(peak, steps, warmup), recorded("schedules_dense")[name])


def test_without_a_warmup():
  assert one_cycle.segmentation(1.0, 10, 0)[0] > 0.9
