import argparse

import pytest
from absl import flags

import dinov3_jax
from dinov3_jax import arguments


@pytest.mark.parametrize("text, expected", [("224", 224), ("480,640", (480, 640)), ("07", 7)])
def test_sizes(text, expected):
  assert arguments.size(text) == expected


@pytest.mark.parametrize("text", ["0", "0,3", "1,2,3", "x", "16,", ",16", "", "-3", "1.5", "²"])
def test_sizes_that_are_none(text):
  with pytest.raises(argparse.ArgumentTypeError, match="a size is one number or HEIGHT,WIDTH"):
    arguments.size(text)


def test_patches():
  assert arguments.patch("0,31") == (0, 31)
  for text in ("3", "3,", "1,2,3", "-1,2", "²,1", ""):
    with pytest.raises(argparse.ArgumentTypeError, match="a patch is ROW,COLUMN, counted from 0"):
      arguments.patch(text)


def test_a_parser_with_the_flags_of_a_model(capsys, monkeypatch):
  monkeypatch.setattr(arguments, "_caller", arguments.MODULE)
  monkeypatch.setenv("HOME", "/home/someone")
  parser = arguments.Parser("name", "Does something.")
  arguments.add_model(parser)
  assert vars(parser.parse_args(["--weights", "~/w"])) == dict(
    weights="/home/someone/w", model=None, dtype=None)
  for flag, answer in (("--version", f"dinov3_jax {dinov3_jax.__version__}\n"),
                       ("-h", "usage: python -m dinov3_jax.name ")):
    with pytest.raises(SystemExit) as stop:
      parser.parse_args([flag])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith(answer)


def test_the_version_is_that_of_the_package():
  from importlib.metadata import version
  assert dinov3_jax.__version__ == version("dinov3_jax")


def test_commands_are_spelled_as_they_are_called():
  text = "python -m dinov3_jax.main, python -m dinov3_jax.features, dinov3_jax.load"
  assert arguments.spelled(text) == text
  with arguments.called_as("dinov3 "):
    assert arguments.spelled(text) == "dinov3 train, dinov3 features, dinov3_jax.load"
    assert arguments.Parser("main", text).format_usage() == "usage: dinov3 train [-h] [--version]\n"
  assert arguments.spelled(text) == text


def test_flags_of_absl_in_a_parser():
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "Where.", flag_values=values)
  flags.DEFINE_bool("fast", False, "Soon.", flag_values=values)
  parser = arguments.Parser("x", "X.")
  arguments.add_flags(parser, "a title", values, workdir="DIR", fast=None)
  shown = " ".join(parser.format_help().split())
  assert "a title: --workdir DIR Where. --fast Soon." in shown
  assert "[--fast]" in shown and "[--workdir" not in shown
