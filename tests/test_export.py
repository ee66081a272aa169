import json
import os
import sys

import chex
import pytest
from flax import nnx

import dinov3_jax
from dinov3_jax.export import main
from dinov3_jax.train import checkpoint
from dinov3_jax.train.state import init_state


@pytest.fixture
def run(tiny_config, tmp_path):
  """A run whose student is not its teacher."""
  tiny_config.model.mask_k_bias = True
  state = init_state(tiny_config)
  tiny_config.seed += 1
  with checkpoint.Writer(tmp_path / "run", keep=1, keep_every=0) as writer:
    writer.save(1, state.replace(student=init_state(tiny_config).student), {}, tiny_config)
  return tmp_path / "run"


def params_of(weights, **kwargs):
  return nnx.to_pure_dict(nnx.state(dinov3_jax.load(None, weights, **kwargs)))


def test_the_command(run, tmp_path, monkeypatch, capsys):
  out = tmp_path / "out"
  call = ["export", "--weights", str(run), "--format", "safetensors", "--out", str(out),
          "--network", "student"]
  monkeypatch.setattr(sys, "argv", call)
  assert main() == 0
  assert capsys.readouterr().out.split() == [
      str(out / name) for name in ("config.json", "model.safetensors", "preprocessor_config.json")]
  assert json.loads((out / "config.json").read_text())["dinov3_jax"]["width"] == 32
  chex.assert_trees_all_equal(params_of(out), params_of(run, network="student"))
  assert main() == 1
  assert capsys.readouterr().err == (
      f"error: {out} is not empty: choose another --out{os.linesep}")


@pytest.mark.parametrize("flag", ["--model", "--name"])
def test_which_model_it_is(run, tmp_path, monkeypatch, capsys, flag):
  run = str(run)
  for weights in ([run], ["--weights", run]):
    monkeypatch.setattr(sys, "argv", ["export", *weights, "--format", "safetensors", "--out",
                                      str(tmp_path / "out"), flag, "vits16"])
    assert main() == 1
    assert "this is no vits16: width is 32 there, 384 here" in capsys.readouterr().err
  for weights in ([], [run, "--weights", run]):
    monkeypatch.setattr(sys, "argv", ["export", *weights, "--format", "hf", "--out", "x"])
    with pytest.raises(SystemExit):
      main()
    assert "give the weights once, as WEIGHTS or as --weights W" in capsys.readouterr().err
