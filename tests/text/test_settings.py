import pytest

from configs import dinotxt_vitl16
from dinov3_jax.text.settings import check_settings


@pytest.mark.parametrize("key, value, message", [
  ("train.steps", 0, r"train\.steps must be at least 1, not 0"),
  ("train.batch_size", 0, r"train\.batch_size must be at least 1"),
  ("train.micro_batches", 0, r"train\.micro_batches must be at least 1"),
  ("features.views", -1, r"features\.views must not be negative"),
  ("text.ffn_ratio", 0.0, r"text\.ffn_ratio must be above 0"),
  ("gram.weight", -1.0, r"gram\.weight must not be negative"),
  ("schedules.lr.peak", float("nan"), r"schedules\.lr\.peak must be finite, not nan"),
  ("schedules.lr.warmup_steps", 10**6, r"schedules\.lr: .*warm-up"),
  ("vision_head.drop_path", 1.0, r"vision_head\.drop_path must be at least 0 and below 1"),
  ("embedding", 31, r"embedding must be even"),
  ("logit_scale.start", 200.0, r"logit_scale\.start must be from 1 to"),
  ("train.dtype", "float64", r"train\.dtype must be"),
  ("checkpoint.on_error", "hope", r"checkpoint\.on_error must be"),
  ("text.vocabulary", 100, r"text\.vocabulary must be the tokenizer's 49408"),
  ("text.context", 1, r"text\.context must be at least 2"),
  ("backbone.weights", "", r"backbone\.weights is missing")])
def test_what_cannot_work_is_one_line(key, value, message):
  config = dinotxt_vitl16.get_config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=message) as caught:
    check_settings(config)
  assert "\n" not in str(caught.value)


def test_several_problems_are_told_together():
  config = dinotxt_vitl16.get_config()
  config.update_from_flattened_dict({"train.steps": 0, "text.context": 0})
  with pytest.raises(ValueError, match=r"train\.steps.*; text\.context"):
    check_settings(config)
