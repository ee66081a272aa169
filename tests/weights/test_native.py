import pytest

from dinov3_jax.weights import native


@pytest.fixture
def run(tmp_path):
  """A run with two whole checkpoints, and one that a kill left unfinished."""
  for step in (4, 12):
    folder = tmp_path / native.FOLDER / str(step)
    (folder / "state").mkdir(parents=True)
    (folder / "_CHECKPOINT_METADATA").write_text("{}")
  (tmp_path / native.FOLDER / "20.orbax-checkpoint-tmp-1").mkdir()
  return tmp_path


def test_the_newest_whole_checkpoint_is_a_runs(run):
  assert native.latest(run).name == native.locate(run).name == "12"


def test_a_checkpoint_may_be_named_itself(run):
  assert native.locate(run / native.FOLDER / "4").name == "4"


def test_where_there_is_none(tmp_path):
  assert native.latest(tmp_path) is None
  with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*: give the --workdir of a run"):
    native.locate(tmp_path)
