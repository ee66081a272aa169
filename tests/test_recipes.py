import importlib

import pytest

from configs import base
from dinov3_jax import recipes


def test_every_recipe_has_a_name_and_is_what_its_file_makes():
  assert {"quickstart", "vits16", "vit7b_gram"} <= set(recipes.names())
  assert not {"base", "__init__"} & set(recipes.names())
  for name in recipes.names():
    config = recipes.load(name)
    assert config.to_dict() == importlib.import_module(f"configs.{name}").get_config().to_dict()
    assert config.is_locked
  assert recipes.load("base").to_dict() == base.get_config().to_dict()


@pytest.mark.parametrize("spelled", ["quickstart", "quickstart.py", "configs/quickstart.py",
                                     "configs/quickstart"])
def test_ours_are_found_from_anywhere(spelled, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert recipes.find(spelled) == str(recipes.FOLDER / "quickstart.py")
  assert recipes.find(f"{spelled}:x") == f"{recipes.FOLDER / 'quickstart.py'}:x"


def test_a_file_of_ones_own_comes_first(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  mine = tmp_path / "quickstart"
  mine.write_text("from configs import base\n"
                  "def get_config(seed='3'):\n"
                  "  config = base.get_config()\n  config.seed = int(seed)\n  return config\n")
  assert recipes.find("quickstart") == "quickstart" and recipes.load("quickstart").seed == 3
  assert recipes.load("~/quickstart:7").seed == 7 and recipes.load(mine).seed == 3


@pytest.mark.parametrize("name", ["nothing", "../setup", "configs/../../setup.py", "", "__init__/"])
def test_what_is_no_recipe(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=r"no config file .*: give a file, or one of adapt, "):
    recipes.load(name)


@pytest.mark.parametrize("text, reason", [
  ("", "is no valid config: KeyError: get_config"),
  ("def get_config(): return 3", "returns a int, not a ConfigDict"),
  ("def get_config(: pass", "is no valid config: SyntaxError"),
  ("def get_config(x): return x", "is no valid config: TypeError")])
def test_what_is_no_valid_recipe(tmp_path, text, reason):
  (tmp_path / "wrong.py").write_text(text)
  with pytest.raises(ValueError, match=reason):
    recipes.load(tmp_path / "wrong.py")


def test_changed_settings():
  before = base.get_config()
  after = recipes.changed(before, {"train.steps": 3, "seed": 5, "crops.global_sizes": (32,)})
  assert (after.train.steps, after.seed, after.crops.global_sizes) == (3, 5, (32,))
  assert before.to_dict() == base.get_config().to_dict() and after.is_locked
  assert recipes.load("quickstart", {"train.steps": 3}).train.steps == 3
  for key, said in (("train.stepz", "did you mean train.steps?"), ("zzz", "see configs/base.py")):
    with pytest.raises(ValueError, match=f"unknown setting {key}; {said}"):
      recipes.changed(before, {key: 3})
  with pytest.raises(TypeError, match=r"train\.steps cannot be 'many'"):
    recipes.changed(before, {"train.steps": "many"})
  with pytest.raises(TypeError, match="train cannot be 3"):
    recipes.changed(before, {"train": 3})
