"""The page of a model on the Hugging Face hub, made of what is known about it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dinov3_jax.models.variants import VARIANTS, differences

# The networks of timm that have the same architecture and read the reference's names. Those of the
# sizes whose keys, queries and values have biases.
TIMM = {"vits16": "vit_small_patch16_dinov3_qkvb",
        "vits16plus": "vit_small_plus_patch16_dinov3_qkvb",
        "vitb16": "vit_base_patch16_dinov3_qkvb"}
ROWS = 10  # of the curve
CURVE = ("loss", "knn_top1", "rankme")
FILES = {"hf": "model.safetensors", "official": "backbone.pth", "safetensors": "model.safetensors"}


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a card says.

  Attributes:
    repo: "owner/name".
    format: "hf", "official" or "safetensors".
    licence: an identifier of the hub, such as "apache-2.0".
    settings: of the network.
    parameters: how many it has.
    size: of the images, pixels.
    training: the settings of the run that trained it; empty where it is no run's.
    step: how many steps that had.
    rows: the run's metrics, a dict a line, each with its `step`.
    figures: of evaluations, by task and name.
    picture: whether there is a `patches.png`.
    version: of this package.
  """

  repo: str
  format: str
  licence: str
  settings: Mapping[str, Any]
  parameters: int
  size: int | tuple[int, int]
  training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  step: int = 0
  rows: Sequence[Mapping[str, float]] = ()
  figures: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
  picture: bool = False
  version: str = ""


def card(facts: Facts) -> ModelCard:
  """The card: its metadata, and the text below them."""
  name = facts.repo.split("/")[1]
  data = ModelCardData(
    license=facts.licence, library_name="transformers" if facts.format == "hf" else "dinov3_jax",
    pipeline_tag="image-feature-extraction", tags=["dinov3", "jax", "self-supervised"],
    model_name=name, eval_results=_results(facts) or None)
  parts = [f"# {name}", _network(facts)]
  if facts.picture:
    parts.append("![Held-out images beside the principal components of their patch features]"
                 "(patches.png)")
  parts += ["## How to load it", _loading(facts)]
  if facts.training:
    parts += ["## Training", _training(facts)]
  if facts.figures:
    parts += ["## Evaluation", _table(("task", "figure", "value"), [
      (task, figure, f"{value:.2f}") for task, values in facts.figures.items()
      for figure, value in values.items()])]
  return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _results(facts: Facts) -> list[EvalResult]:
  source = str(facts.training.get("data", {}).get("source", "")) or "unknown"
  made = [EvalResult("image-classification", source, source, "accuracy", row["knn_top1"],
                     metric_name="k-NN, held-out images")
          for row in [row for row in facts.rows if "knn_top1" in row][-1:]]
  return made + [EvalResult("image-feature-extraction", task, task, figure, value)
                 for task, values in facts.figures.items() for figure, value in values.items()]


def _network(facts: Facts) -> str:
  s = facts.settings
  kind = (f"ConvNeXt with {list(s['depths'])} blocks of the widths {list(s['dims'])}"
          if "depths" in s else
          f"vision transformer of {s['depth']} blocks, {s['width']} features and patches of "
          f"{s.get('patch_size', 16)} pixels")
  return (f"A {kind}: {facts.parameters:,} parameters, trained with "
          "[DINOv3](https://arxiv.org/abs/2508.10104)'s method in dinov3_jax "
          f"{facts.version}".rstrip() + ", from images alone. It returns features: a CLS token for "
          "the image and one for each patch.")


def _loading(facts: Facts) -> str:
  code = [f"```python\nimport dinov3_jax\n\nmodel = dinov3_jax.load(None, \"{facts.repo}\")\n"
          f"images = dinov3_jax.preprocess(\"{facts.repo}\")(\"cat.jpg\")[None]\n"
          "tokens = model(images)  # cls, storage, patches\n```"]
  if facts.format == "hf":
    code.append("```python\nfrom transformers import AutoImageProcessor, AutoModel\n\n"
                f"processor = AutoImageProcessor.from_pretrained(\"{facts.repo}\")\n"
                f"model = AutoModel.from_pretrained(\"{facts.repo}\")\n```")
  elif name := timm_name(facts.settings):
    code.append("```python\nimport timm\nfrom huggingface_hub import hf_hub_download\n\n"
                f"file = hf_hub_download(\"{facts.repo}\", \"{FILES[facts.format]}\")\n"
                f"model = timm.create_model(\"{name}\", pretrained=True, num_classes=0,\n"
                "                          pretrained_cfg_overlay=dict(file=file))\n```")
  return "\n\n".join(code)


def timm_name(settings: Mapping[str, Any]) -> str | None:
  """The network of timm that the reference's names load into; None where there is none."""
  if "depths" in settings:
    return None
  return next((theirs for ours, theirs in TIMM.items()
               if not differences(settings, VARIANTS[ours].settings)), None)


def _training(facts: Facts) -> str:
  config = facts.training
  source = str(config["data"]["source"])
  lines = [("data", f"`{source}`"), ("steps", f"{facts.step:,}"),
           ("images a step", f"{config['train']['batch_size']:,}"),
           ("crops, pixels",
            f"{_sizes(config, 'global_sizes')} and {_sizes(config, 'local_sizes')}"),
           ("started from", f"`{config['init_from']}`" if config.get("init_from") else "scratch")]
  if teacher := config.get("distill", {}).get("teacher"):
    lines.append(("learned from", f"`{teacher}`"))
  text = [_table(("", ""), lines)]
  rows = [row for row in facts.rows if any(key in row for key in CURVE)]
  if rows:
    columns = [key for key in CURVE if any(key in row for row in rows)]
    chosen = sorted({round(i * (len(rows) - 1) / (ROWS - 1)) for i in range(ROWS)})
    shown = lambda row, key: f"{row[key]:.4g}" if key in row else ""
    text.append(_table(("step", *columns), [
      (f"{row['step']:,}", *(shown(row, key) for key in columns))
      for row in (rows[i] for i in chosen)]))
    text.append("`metrics.jsonl` has every line, and `training_config.json` every setting.")
  if source.startswith("openmoji"):
    text.append("The drawings are by [OpenMoji](https://openmoji.org), CC BY-SA 4.0.")
  return "\n\n".join(text)


def _sizes(config: Mapping[str, Any], name: str) -> str:
  return ", ".join(map(str, config["crops"][name]))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  line = lambda cells: "| " + " | ".join(cells) + " |"
  return "\n".join([line(header), "|---" * len(header) + "|", *map(line, rows)])
