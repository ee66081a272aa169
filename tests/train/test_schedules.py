import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import base
from dinov3_jax.train.schedules import lr_scale, make_schedule, make_schedules, misfits

NEW = dict(kind="warmup_cosine", trunc_extra=0.0, total_steps=100)
OLD = dict(kind="cosine", start=0.0, peak=1.0, end=0.1, warmup_steps=10, cosine_steps=None,
           total_steps=100)


@pytest.mark.parametrize("name, arguments", [
    ("v2_a", NEW | dict(start=0.0, peak=1.0, end=0.1, warmup_steps=10, cosine_steps=None)),
    ("v2_b", NEW | dict(start=0.0, peak=0.0, end=2.0, warmup_steps=50, cosine_steps=10)),
    ("v2_c", NEW | dict(start=0.0, peak=0.0, end=1.0, warmup_steps=0, cosine_steps=30)),
    ("v1_a", OLD | dict(trunc_extra=0.0)),
    ("v1_trunc", OLD | dict(trunc_extra=0.25)),
])
def test_reference(golden, name, arguments):
  expected = golden("schedules")[name]
  schedule = make_schedule(**arguments)
  np.testing.assert_allclose(schedule(np.arange(len(expected))), expected, rtol=0, atol=1e-5)
  np.testing.assert_allclose(schedule(np.array([100, 101, 10**6])), arguments["end"], rtol=1e-6)
  assert schedule(np.int32(3)).dtype == np.float32


def test_late_ramp_of_a_million_steps():
  """The Gram loss of the 7B model: nothing for 1,000,000 steps, then up to 2 within 1,000."""
  gram = make_schedule("warmup_cosine", 0.0, 0.0, 2.0, 1_000_000, 1_000, 0.0, 1_200_000)
  steps = np.array([0, 999_999, 1_000_000, 1_000_500, 1_000_999, 1_100_000])
  np.testing.assert_allclose(gram(steps), [0, 0, 0, 1.0016, 2, 2], atol=1e-4)


@given(start=st.floats(0, 1), peak=st.floats(0, 1), end=st.floats(0, 1), warmup=st.integers(0, 8),
       fall=st.integers(0, 8), rest=st.integers(0, 4))
@settings(max_examples=25, deadline=None)
def test_warmup_cosine_is_three_phases(start, peak, end, warmup, fall, rest):
  total = warmup + fall + rest
  expected = [*np.linspace(start, peak, warmup, endpoint=False),
              *(end + (peak - end) * (np.cos(np.linspace(0, np.pi, fall)) + 1) / 2)]
  expected = np.pad(expected, (0, 22 - len(expected)), constant_values=end)
  schedule = make_schedule("warmup_cosine", start, peak, end, warmup, fall, 0.0, total)
  np.testing.assert_allclose(schedule(np.arange(22)), expected, atol=1e-5)


def test_scale():
  step = np.arange(120)
  for arguments, end in [(NEW | dict(warmup_steps=10, cosine_steps=None), 0.3), (OLD, 0.1)]:
    arguments = arguments | dict(start=0.0, end=0.1, trunc_extra=0.0)
    scaled = make_schedule(**arguments | dict(peak=1.0), scale=3.0)
    same = make_schedule(**arguments | dict(peak=3.0, end=end))
    np.testing.assert_allclose(scaled(step), same(step), rtol=1e-6)


@pytest.mark.parametrize("rule, batch, rate, expected", [
    ("sqrt_wrt_1024", 2048, 1e-3, 5.657e-3), ("sqrt_wrt_1024", 4096, 5e-5, 4e-4),
    ("sqrt_wrt_1024", 2048, 1.25e-5, 7.07e-5), ("linear_wrt_256", 512, 1e-3, 2e-3),
    ("none", 512, 1e-3, 1e-3)])
def test_lr_scale(rule, batch, rate, expected):
  np.testing.assert_allclose(rate * lr_scale(rule, batch), expected, rtol=1e-3)


def test_all_schedules_of_the_base_config():
  """The older family's shape over the whole ImageNet recipe, at batch 2048."""
  schedules = make_schedules(base.get_config())
  at = lambda name, *steps: np.asarray(schedules[name](np.array(steps)))
  peak = 1e-3 * 4 * math.sqrt(2)
  np.testing.assert_allclose(at("lr", 0, 12_499, 12_500, 125_000), [0, peak, peak, 1e-6],
                             rtol=1e-5)
  np.testing.assert_array_equal(at("last_layer_lr", 0, 1249), 0)
  np.testing.assert_array_equal(at("last_layer_lr", 1250, 99_999), at("lr", 1250, 99_999))
  np.testing.assert_allclose(at("weight_decay", 0, 62_500, 125_000), [0.04, 0.22, 0.4], rtol=1e-5)
  np.testing.assert_allclose(at("momentum", 0, 62_500, 125_000), [0.992, 0.996, 1], rtol=1e-6)
  np.testing.assert_allclose(at("teacher_temp", 0, 18_750, 37_500, 125_000),
                             [0.04, 0.055, 0.07, 0.07], rtol=1e-5)
  assert at("momentum", 124_000) < 1  # the end is for the step after the last


def test_errors():
  with pytest.raises(ValueError, match="must be warmup_cosine or cosine, not 'step'"):
    make_schedule("step", 0.0, 1.0, 0.0, 0, None, 0.0, 10)
  for warmup, fall in [(11, None), (5, 6)]:
    with pytest.raises(ValueError, match=r"does not fit train\.steps=10: shorten it"):
      make_schedule("warmup_cosine", 0.0, 1.0, 0.0, warmup, fall, 0.0, 10)
  with pytest.raises(ValueError, match="none, sqrt_wrt_1024 or linear_wrt_256, not 'sqrt'"):
    lr_scale("sqrt", 8)
  config = base.get_config()
  config.train.steps = 1000
  with pytest.raises(ValueError, match=r"schedules\.lr: .* 12500 warm-up .* train\.steps=1000"):
    make_schedules(config)


def test_schedules_that_fit_are_no_misfits():
  config = base.get_config()
  assert misfits(config) == []
  config.train.steps = 37_500  # no step is left after the longest warm-up
  assert misfits(config) == []


def test_all_misfits_are_in_one_line_with_the_keys_to_set():
  config = base.get_config()
  config.schedules.gram_weight.update(warmup_steps=600, cosine_steps=500)
  config.schedules.weight_decay.update(cosine_steps=1001)
  config.train.steps = 1000
  assert misfits(config) == [
    "train.steps=1000 is too short for schedules.gram_weight.warmup_steps=600 and "
    "schedules.gram_weight.cosine_steps=500, schedules.lr.warmup_steps=12500, "
    "schedules.teacher_temp.warmup_steps=37500, schedules.weight_decay.cosine_steps=1001, "
    "optim.freeze_last_layer_steps=1250: lower these, too, for example with "
    "--config.schedules.gram_weight.warmup_steps=545 "
    "--config.schedules.gram_weight.cosine_steps=454 --config.schedules.lr.warmup_steps=1000 "
    "--config.schedules.teacher_temp.warmup_steps=1000 "
    "--config.schedules.weight_decay.cosine_steps=1000 "
    "--config.optim.freeze_last_layer_steps=1000"]


@given(steps=st.integers(1, 40), start=st.none() | st.integers(0, 50))
def test_what_is_proposed_fits(steps, start):
  config = base.get_config()
  config.schedules.gram_weight.update(warmup_steps=6, cosine_steps=5)
  config.optim.update(freeze_backbone_steps=30, ramp_backbone_steps=20)
  config.gram.start_at, config.train.steps = start, steps
  said, = misfits(config)
  for key, value in re.findall(r"--config\.([\w.]+)=(\d+)", said):
    config.update_from_flattened_dict({key: int(value)})
  left = misfits(config)
  assert left == [] or steps < (start or 0)


def test_the_weight_of_a_gram_loss_counts_from_its_start():
  config = base.get_config()
  config.gram.start_at = 1000
  config.schedules.gram_weight = base.warmup_cosine(0.5, 0.5, 2.0, cosine_steps=11)
  weight = make_schedules(config)["gram_weight"]
  np.testing.assert_allclose([weight(i) for i in (0, 999, 1000, 1005, 1010, 9999)],
                             [0, 0, 0.5, 1.25, 2, 2], rtol=1e-6)
  # All that is left of the run is not all of the run.
  config.schedules.gram_weight = base.warmup_cosine(0.5, 0.5, 2.0)
  assert make_schedules(config)["gram_weight"](config.train.steps - 1) == 2
  config.schedules.gram_weight = base.warmup_cosine(0.5, 0.5, 2.0, cosine_steps=124_001)
  assert "gram_weight.cosine_steps=124001" in misfits(config)[0]
  with pytest.raises(ValueError, match=r"schedules\.gram_weight"):
    make_schedules(config)


def test_a_backbone_that_waits_has_a_ramp():
  config = base.get_config()
  assert "backbone_ramp" not in make_schedules(config)
  config.optim.update(freeze_backbone_steps=3, ramp_backbone_steps=4)
  ramp = make_schedules(config)["backbone_ramp"]
  np.testing.assert_allclose([ramp(i) for i in range(10)],
                             [0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1], rtol=1e-6)
  config.optim.ramp_backbone_steps = 0
  np.testing.assert_array_equal([make_schedules(config)["backbone_ramp"](i) for i in range(5)],
                                [0, 0, 0, 1, 1])
  for schedule in config.schedules.values():
    schedule.update(warmup_steps=0, cosine_steps=None)
  config.optim.update(freeze_last_layer_steps=0, ramp_backbone_steps=4)
  config.train.steps = 6
  assert misfits(config) == [
    "train.steps=6 is too short for optim.freeze_backbone_steps=3 and optim.ramp_backbone_steps=4: "
    "lower these, too, for example with --config.optim.freeze_backbone_steps=2 "
    "--config.optim.ramp_backbone_steps=3"]
  config.train.steps = 7
  assert misfits(config) == []


def test_prototypes_may_stay_fixed_for_a_whole_run():
  config = base.get_config()
  config.train.steps = 37_500
  config.optim.freeze_last_layer_steps = 40_000
  assert misfits(config) == []


@given(warmup=st.integers(0, 6), fall=st.none() | st.integers(0, 6), total=st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_misfits_are_what_make_schedule_refuses(warmup, fall, total):
  config = base.get_config()
  for schedule in config.schedules.values():
    schedule.update(warmup_steps=0, cosine_steps=None)
  config.schedules.momentum.update(warmup_steps=warmup, cosine_steps=fall)
  config.train.steps = total
  try:
    make_schedules(config)
  except ValueError:
    assert misfits(config)
  else:
    assert not misfits(config)
