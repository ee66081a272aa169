import dataclasses

import pytest
from huggingface_hub import ModelCard

from dinov3_jax import recipes
from dinov3_jax.models.variants import VARIANTS
from dinov3_jax.weights.model_card import TIMM, Facts, card, timm_name

SETTINGS = dict(VARIANTS["vits16"].settings)
FACTS = Facts("owner/name", "safetensors", "mit", SETTINGS, 21_600_000, 224)


def of_run(**changes):
  training = recipes.load("quickstart").to_dict()
  rows = [dict(step=step, loss=4 - step / 1000) for step in range(10, 810, 10)]
  rows[-1]["knn_top1"] = 0.566
  return dataclasses.replace(FACTS, training=training, step=800, rows=rows, **changes)


def test_a_card_is_what_the_hub_reads():
  made = card(of_run(figures={"knn": {"top1": 61.5}}, picture=True))
  again = ModelCard(str(made))
  assert again.data.to_dict() == made.data.to_dict()
  assert again.data.license == "mit" and again.data.pipeline_tag == "image-feature-extraction"
  assert [(r.metric_type, r.metric_value) for r in again.data.eval_results] == [
    ("accuracy", 0.566), ("top1", 61.5)]
  assert "(patches.png)" in made.text and "21,600,000 parameters" in made.text
  assert "| data | `openmoji:base` |" in made.text and "CC BY-SA 4.0" in made.text


def test_the_curve_has_ten_rows_at_most_with_both_ends():
  text = card(of_run()).text
  table = [line for line in text.splitlines() if line.startswith("|") and line[2:3].isdigit()]
  assert len(table) == 10
  assert table[0] == "| 10 | 3.99 |  |" and table[-1] == "| 800 | 3.2 | 0.566 |"
  few = dataclasses.replace(of_run(), rows=[dict(step=1, loss=2.0), dict(step=2, loss=1.0)])
  assert "| 1 | 2 |\n| 2 | 1 |" in card(few).text


def test_how_it_was_trained():
  facts = of_run()
  facts.training.update(init_from="facebook/x", distill=dict(teacher="big", digest=""))
  text = card(facts).text
  assert "| started from | `facebook/x` |" in text and "| learned from | `big` |" in text
  assert "## Training" not in card(FACTS).text and "## Evaluation" not in card(FACTS).text


@pytest.mark.parametrize("format, library, code", [
  ("hf", "transformers", "AutoModel.from_pretrained"),
  ("safetensors", "dinov3_jax", 'hf_hub_download("owner/name", "model.safetensors")'),
  ("official", "dinov3_jax", 'hf_hub_download("owner/name", "backbone.pth")')])
def test_how_to_load_it(format, library, code):
  made = card(dataclasses.replace(FACTS, format=format))
  assert made.data.library_name == library and code in made.text
  assert 'dinov3_jax.load(None, "owner/name")' in made.text
  for block in made.text.split("```python\n")[1:]:
    compile(block.split("```")[0], "card", "exec")
  assert ("timm" in made.text) == (format != "hf")


def test_what_timm_has():
  for ours, theirs in TIMM.items():
    assert timm_name(VARIANTS[ours].settings) == theirs
  assert timm_name(SETTINGS | dict(stem="conv")) is None
  assert timm_name(SETTINGS | dict(storage_tokens=0)) is None
  assert timm_name(VARIANTS["convnext_tiny"].settings) is None
  convnext = dataclasses.replace(FACTS, settings=VARIANTS["convnext_tiny"].settings)
  assert "ConvNeXt with [3, 3, 9, 3] blocks" in card(convnext).text
