"""Against a hub that is a folder: the calls of its client library, and what they refuse."""

import json
import pathlib
import shutil
import sys
import types

import chex
import huggingface_hub
import jax
import numpy as np
import pytest
from flax import nnx
from huggingface_hub import ModelCard, errors
from PIL import Image

import dinov3_jax
from dinov3_jax import export as command
from dinov3_jax.train import checkpoint
from dinov3_jax.train.state import init_state
from dinov3_jax.weights import publishing

REPO = "someone/small-dino"


class Hub:
  """Repositories as folders.

  Attributes:
    refusal: raised by every call, if it is not None.
    private: of the repositories, by name.
  """

  def __init__(self, root: pathlib.Path):
    self.root, self.refusal, self.private, self.calls = root, None, {}, []

  def _call(self, name):
    self.calls.append(name)
    if self.refusal is not None and self.refusal[0] == name:
      raise self.refusal[1]

  def whoami(self):
    self._call("whoami")
    return dict(name="someone")

  def create_repo(self, repo_id, *, private, exist_ok):
    self._call("create_repo")
    assert exist_ok
    self.private.setdefault(repo_id, private)
    (self.root / repo_id).mkdir(parents=True, exist_ok=True)
    return f"https://huggingface.co/{repo_id}"

  def upload_folder(self, *, repo_id, folder_path, commit_message):
    self._call("upload_folder")
    assert repo_id in self.private and dinov3_jax.__version__ in commit_message
    shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

  def download(self, repo_id, allow_patterns):
    return str(self.root / repo_id)


@pytest.fixture
def hub(tmp_path, monkeypatch):
  made = Hub(tmp_path / "hub")
  monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
  monkeypatch.setattr(huggingface_hub, "snapshot_download", made.download)
  monkeypatch.chdir(tmp_path)
  return made


@pytest.fixture
def run(tiny_config, tmp_path):
  """A run of three steps, with metrics and pictures beyond the newest checkpoint."""
  tiny_config.model.update(mask_k_bias=True, norm_eps=1e-5)
  folder, rng = tmp_path / "run", np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(0.5, 0.3, x.shape).astype("f4"),
                        jax.eval_shape(lambda: init_state(tiny_config)).student)
  params["backbone"]["blocks"]["attn"]["qkv"]["bias"][:, 1] = 0  # of keys: there is none
  with checkpoint.Writer(folder, keep=1, keep_every=0) as writer:
    writer.save(3, {"student": params, "teacher": params}, {}, tiny_config)
  rows = [dict(step=1, loss=3.0), dict(step=2, loss=2.5, knn_top1=0.25), dict(step=3, loss=2.0),
          dict(step=4, loss=9.0)]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"st')
  (folder / "pictures").mkdir()
  for step in (2, 4):
    Image.new("RGB", (step, 2)).save(folder / "pictures" / f"step_{step:07d}.png")
  return folder


def params_of(weights):
  return nnx.to_pure_dict(nnx.state(dinov3_jax.load(None, weights)))


@pytest.mark.parametrize("format", ["hf", "safetensors"])
def test_what_is_sent_can_be_loaded_from_there(run, hub, format):
  url = publishing.publish(run, format, "out", REPO, licence="apache-2.0", private=True)
  assert url == f"https://huggingface.co/{REPO}" and hub.private == {REPO: True}
  chex.assert_trees_all_equal(params_of(REPO), params_of(run))
  there = hub.root / REPO
  assert [json.loads(line)["step"] for line in (there / "metrics.jsonl").open()] == [1, 2, 3]
  assert Image.open(there / "patches.png").width == 2
  assert json.loads((there / "training_config.json").read_text())["model"]["width"] == 32
  card = ModelCard.load(there / "README.md")
  assert card.data.license == "apache-2.0" and "| 2 | 2.5 | 0.25 |" in card.text
  assert f'dinov3_jax.load(None, "{REPO}")' in card.text
  assert (f'AutoModel.from_pretrained("{REPO}")' in card.text) == (format == "hf")
  assert "| steps | 3 |" in card.text and "scratch" in card.text
  count = sum(np.prod(x.shape, dtype=int) for x in nnx.to_flat_state(nnx.state(
    dinov3_jax.load(None, run))).leaves)
  assert f"{count:,} parameters" in card.text


def test_the_command(run, hub, monkeypatch, capsys, tmp_path):
  results = tmp_path / "results.json"
  results.write_text('{"knn": {"figures": {"top1": 61.5}, "protocol": {}}}')
  call = ["export", str(run), "--format", "hf", "--out", "out", "--push", REPO, "--license", "mit",
          "--results", str(results)]
  monkeypatch.setattr(sys, "argv", call)
  assert command.main() == 0
  assert capsys.readouterr().out == f"https://huggingface.co/{REPO}\n"
  card = ModelCard.load(hub.root / REPO / "README.md")
  assert "| knn | top1 | 61.50 |" in card.text
  assert {result.metric_value for result in card.data.eval_results} == {0.25, 61.5}
  for wrong, said in ((call[:8], "--push needs the --licence"), (
      [*call[:6], "--private"], "--private and --results go with --push")):
    monkeypatch.setattr(sys, "argv", wrong)
    with pytest.raises(SystemExit):
      command.main()
    assert said in capsys.readouterr().err


def refused(status):
  request = types.SimpleNamespace(method="POST", url="https://huggingface.co/api")
  return errors.HfHubHTTPError("no", response=types.SimpleNamespace(
    status_code=status, headers={}, request=request))


@pytest.mark.parametrize("at, error, kind, said", [
  ("whoami", errors.LocalTokenNotFoundError("Token is required"), PermissionError, "hf auth login"),
  ("whoami", refused(401), PermissionError, "take a token that may"),
  ("whoami", ConnectionError("unreachable"), OSError, "the Hugging Face hub cannot be reached"),
  ("create_repo", refused(403), PermissionError, f"write to {REPO}"),
  ("upload_folder", refused(500), OSError, f"the hub refuses {REPO}"),
])
def test_what_the_hub_refuses_is_one_line(run, hub, at, error, kind, said):
  hub.refusal = at, error
  with pytest.raises(kind, match=said) as caught:
    publishing.publish(run, "hf", "out", REPO, licence="mit")
  assert "\n" not in str(caught.value)
  assert pathlib.Path("out").exists() == (at != "whoami")  # no work before it is known to be of use
  assert hub.calls[-1] == at


@pytest.mark.parametrize("repo", ["small-dino", "a/b/c", "a/b--c", "a/.b", ""])
def test_what_is_no_name(run, hub, repo):
  with pytest.raises(ValueError, match="is no name of a repository"):
    publishing.publish(run, "hf", "out", repo, licence="mit")
  assert not hub.calls


@pytest.mark.parametrize("text", [None, "[]", "{", '{"knn": 3}', '{"knn": {}}'])
def test_results_that_are_none(run, hub, text):
  if text is not None:
    pathlib.Path("results.json").write_text(text)
  with pytest.raises(ValueError, match=r"is no results\.json of an evaluation"):
    publishing.publish(run, "hf", "out", REPO, licence="mit", results="results.json")
  assert not hub.calls


def test_weights_that_are_no_run(run, hub):
  dinov3_jax.export(run, "hf", "first")
  publishing.publish("first", "safetensors", "second", REPO, licence="other")
  card = ModelCard.load(hub.root / REPO / "README.md")
  assert "## Training" not in card.text and not (hub.root / REPO / "metrics.jsonl").exists()
  chex.assert_trees_all_equal(params_of(REPO), params_of(run))
