"""The command: what it prints, and its errors."""

import sys

import numpy as np
import pytest
from PIL import Image

from dinov3_jax import pack
from dinov3_jax.data.sources import open_source


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
  monkeypatch.setenv("DINOV3_JAX_CACHE", str(tmp_path / "cache"))

  def call(*args):
    monkeypatch.setattr(sys, "argv", ["pack", *map(str, args)])
    code = pack.main()
    return code, capsys.readouterr()

  return call


def test_it_says_what_it_saves(run, tmp_path):
  rng = np.random.default_rng(0)
  (tmp_path / "in").mkdir()
  for i in range(6):
    Image.fromarray(rng.integers(0, 256, (80, 60, 3), np.uint8)).save(tmp_path / "in" / f"{i}.png")
  (tmp_path / "in" / "5.png").write_bytes(b"broken")
  out = tmp_path / "out"
  code, said = run(tmp_path / "in", "--out", out, "--split", "train", "--shorter", 30,
                   "--workers", 1)
  assert code == 0 and f"{out}: " in said.out and " images in 1 shards; " in said.out
  assert "% of 0.1 MB; reading one takes " in said.out and " ms of CPU, " in said.out
  source = open_source(out, "train")
  assert source[0]["image"].shape == (40, 30, 3)


def test_errors_are_one_line(run, tmp_path):
  for args, message in (((tmp_path / "no",), "no folder of images at"),
                        ((tmp_path, "--quality", 0), "a quality is from 1 to 100")):
    code, said = run(*args, "--out", tmp_path / "out")
    assert code and said.err.startswith("error: ") and message in said.err
    assert said.err.count("\n") == 1
