"""A model onto the Hugging Face hub: exported, described by a card, and sent."""

import json
import math
import os
import pathlib
import shutil

import jax
from huggingface_hub import errors
from huggingface_hub.utils import validate_repo_id

from dinov3_jax import __version__
from dinov3_jax.data.preprocess import preprocess
from dinov3_jax.weights import architecture, huggingface, loading, model_card
from dinov3_jax.weights.exporting import Format, export


def publish(checkpoint: loading.Weights, format: Format, out: str | os.PathLike, repo: str, *,
            licence: str, private: bool = False, results: str | os.PathLike | None = None,
            name: str | None = None, network: str = "teacher", heads: bool = False) -> str:
  """Exports a model into the folder `out`, adds a model card, and sends all of it to the hub.

  Of a run, its settings, metrics and newest picture go with it.

  Args:
    checkpoint, format, out, name, network, heads: as for `dinov3_jax.export`.
    repo: "owner/name"; it is made if there is none, and gets a new version if there is.
    licence: of these weights, an identifier of the hub such as "apache-2.0"; "other" for one that
      is in the folder. Weights that were made of others are under the licence of those.
    private: for a repository that is made now.
    results: a `results.json` of `dinov3_jax.evaluate`, to show in the card.

  Returns:
    The address of the repository.

  Raises:
    ValueError: a name that can be none; and what `dinov3_jax.export` raises.
    PermissionError: nobody is logged in, or the account may not write there.
    OSError: the hub cannot be reached.
  """
  from huggingface_hub import HfApi
  if not huggingface.is_repo(repo):
    raise ValueError(f"{repo} is no name of a repository: give OWNER/NAME")
  try:
    validate_repo_id(repo)
  except errors.HFValidationError as error:
    raise ValueError(f"{repo} is no name of a repository: {_line(error)}") from error
  figures = _figures(results)
  hub = HfApi()
  with told(repo):
    hub.whoami()  # before minutes of work
  export(checkpoint, format, out, name=name, network=network, heads=heads)
  out = pathlib.Path(os.path.expanduser(out))
  describe(checkpoint, out, format, repo, licence, figures, name)
  with told(repo):
    url = hub.create_repo(repo, private=private, exist_ok=True)
    hub.upload_folder(repo_id=repo, folder_path=out,
                      commit_message=f"Export by dinov3_jax {__version__}")
  return str(url)


class told:
  """Makes one line of what the hub refuses."""

  def __init__(self, repo: str):
    self._repo = repo

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if isinstance(error, errors.LocalTokenNotFoundError):
      raise PermissionError("nobody is logged in to the Hugging Face hub: use `hf auth login`, or "
                            "set HF_TOKEN to a token that may write") from error
    if isinstance(error, errors.HfHubHTTPError):
      status = getattr(error.response, "status_code", None)
      if status in (401, 403):
        raise PermissionError(f"the hub does not let this account write to {self._repo}: take a "
                              "token that may, or another owner") from error
      raise OSError(f"the hub refuses {self._repo}: {_line(error)}") from error
    if isinstance(error, OSError | RuntimeError) and not isinstance(error, FileNotFoundError):
      raise OSError(f"the Hugging Face hub cannot be reached ({_line(error)}); what is exported "
                    "stays where it is") from error


def _line(error: Exception) -> str:
  return " ".join(str(error).split())[:300] or type(error).__name__


def _figures(results: str | os.PathLike | None) -> dict[str, dict[str, float]]:
  if results is None:
    return {}
  path = pathlib.Path(results).expanduser()
  try:
    found = json.loads(path.read_text())
    return {task: dict(result["figures"]) for task, result in found.items()}
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(f"{path} is no results.json of an evaluation: {_line(error)}") from error


def describe(checkpoint: loading.Weights, out: pathlib.Path, format: Format, repo: str,
             licence: str, figures: dict[str, dict[str, float]], name: str | None):
  """Writes the card, and what it speaks of, beside an exported model."""
  path = loading.locate(name, checkpoint)
  size = preprocess(path).size
  training, step, rows, picture = {}, 0, [], False
  if loading.is_native(path):
    from dinov3_jax.weights import native
    folder = native.locate(path)
    training, step = native.stored_settings(folder), int(folder.name)
    settings = training["model"]
    (out / "training_config.json").write_text(json.dumps(training, indent=2))
    workdir = pathlib.Path(folder).parents[1]
    rows, picture = _of_run(workdir, step, out)
  else:
    settings = loading.settings_of(path)
  _, shapes = architecture.abstract(settings)
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  model_card.card(model_card.Facts(
    repo, format, licence, settings, count, size, training, step, rows, figures, picture,
    __version__)).save(out / "README.md")


def _of_run(workdir: pathlib.Path, step: int, out: pathlib.Path) -> tuple[list[dict], bool]:
  """Copies a run's metrics and newest picture up to a step; the metrics, and if there is one."""
  rows = []
  try:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
  except OSError:
    lines = []
  for line in lines:
    try:
      row = json.loads(line)
    except ValueError:
      continue  # cut by a power failure; training leaves it out, too
    if row.get("step", step + 1) <= step:
      rows.append(row)
  if rows:
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  pictures = [path for path in sorted((workdir / "pictures").glob("step_*.png"))
              if int(path.stem.split("_")[1]) <= step]
  if pictures:
    shutil.copy(pictures[-1], out / "patches.png")
  return rows, bool(pictures)
