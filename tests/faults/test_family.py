"""SIGKILL while a family learns, and while a run of several resolutions does."""

import pytest

from tests.distilled import TINY, write_run
from tests.killed import check_kills

MIXED = {"crops.global_sizes": (32, 16), "crops.local_sizes": (16, 8),
         "crops.size_weights": (0.5, 0.5), "train.steps": 8, "train.batch_size": 4,
         "checkpoint.every": 2, "checkpoint.keep": 2, "log_every": 1, "health.images": 0}


@pytest.mark.slow
def test_a_family_of_two_resolutions(quick_images, teacher_run, tmp_path, stored):
  """Killed when one student's checkpoint is begun and the other's not, and when both are."""
  recipe = ('import runpy\ntiny_family = runpy.run_path("tests/distilled.py")["tiny_family"]\n'
            f"config = tiny_family({quick_images!r}, {str(teacher_run)!r})")
  kills = [(4, "a"), (6, "b")]
  check_kills(recipe, MIXED | {"crops.gram_sizes": (0, 0)}, tmp_path, kills, stored, "ab")


@pytest.mark.slow
def test_the_high_resolution_stage(quick_images, tmp_path, stored):
  """In miniature: the recipe of mixed crops and a Gram teacher, from the run before."""
  from configs import vits16_highres
  changes = TINY | MIXED | {
    "crops.gram_sizes": (48, 24), "data.source": quick_images, "koleo.group": 2,
    "schedules.lr.cosine_steps": 4, "init_from": str(tmp_path / "before")}
  config = vits16_highres.get_config()
  config.update_from_flattened_dict(changes)
  write_run(tmp_path / "before", config)
  recipe = "from configs import vits16_highres\nconfig = vits16_highres.get_config()"
  check_kills(recipe, changes, tmp_path, [(5, "rough")], stored)
