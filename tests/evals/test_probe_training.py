"""Trainings of probes go on where they were stopped."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax.evals import attentive, dense_probe, linear, probe_training
from dinov3_jax.evals.probe_training import Kept


class Killed(Exception):
  pass


def until(batches, count):
  """The first `count` batches, and then a kill."""
  yield from batches[:count]
  raise Killed


def clips(seed):
  rng = np.random.default_rng(seed)
  return (rng.standard_normal((4, 2, 3, 3, 6)).astype(np.float32),
          np.tile(np.array([0, 1], np.float32), (4, 1)), rng.integers(0, 2, 4))


def maps(seed):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((3, 4, 4, 6)).astype(np.float32), rng.integers(0, 3, (3, 8, 8))


SMALL = attentive.Shape(12, 2, 1, 2)
TRAININGS = {
  "dense": (maps, lambda batches, kept: dense_probe.train(
      batches, np.linspace(1, 0.1, 6), 3, rates=(0.1, 0.01), decays=(0.1,), clip=1.0, kept=kept)),
  "attentive": (clips, lambda batches, kept: attentive.train(
      batches, 6, 2, (1e-2, 1e-3), (0.1,), shape=SMALL, kept=kept))}


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("seconds", [0, 1e6], ids=["every step", "when it stops"])
def test_a_stop_in_the_middle_changes_no_bit(tmp_path, name, seconds):
  """The probes, their statistics and all losses; what is done is not done again."""
  make, train = TRAININGS[name]
  batches = [make(i) for i in range(6)]
  whole = train(batches, None)
  with pytest.raises(Killed):
    train(until(batches, 4), Kept(tmp_path / "state.npz", seconds))
  kept = Kept(tmp_path / "state.npz", seconds)
  assert kept.step == 4
  rest = train(batches[kept.step:], kept)
  again = train(batches[5:], Kept(tmp_path / "state.npz"))  # nothing is left to do
  for own in (rest, again):
    jax.tree.map(np.testing.assert_array_equal, vars(own), vars(whole))
  assert len(rest.losses) == 6


def test_linear_probes_too(tmp_path, monkeypatch):
  monkeypatch.setattr(linear, "CHUNK", 3)
  monkeypatch.setattr(probe_training, "SHARE", np.inf)  # every chunk is kept
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((40, 5)).astype(np.float32), rng.integers(0, 3, 40)
  train = lambda kept: linear.train(x, y, (0.1, 1.0), (0.0,), steps=8, batch=10, kept=kept)
  whole, steps, seen = train(None), linear._steps, []

  def some(*rest, **how):
    if len(seen) == 2:
      raise Killed
    seen.append(rest)
    return steps(*rest, **how)

  monkeypatch.setattr(linear, "_steps", some)
  with pytest.raises(Killed):
    train(Kept(tmp_path / "state.npz", 0))
  monkeypatch.setattr(linear, "_steps", steps)
  for done in (2, 3):  # chunks of 3, 3 and 2 steps
    kept = Kept(tmp_path / "state.npz", 0)
    assert kept.step == done
    jax.tree.map(np.testing.assert_array_equal, vars(train(kept)), vars(whole))


def count(i, state, batch):
  return state + batch, jnp.full((1, 1), i)


def run(kept, batches, steps=4):
  return probe_training.run(batches, steps, lambda _: jnp.zeros(2), count, kept)


def test_a_state_is_kept_now_and_then(tmp_path, monkeypatch):
  """Not at every step, and less often where keeping it takes long."""
  times = iter([0.0, 1.0, 70.0, 70.0, 80.0, 275.0])
  monkeypatch.setattr(probe_training, "time", SimpleNamespace(monotonic=lambda: next(times)))
  kept, state = Kept(tmp_path / "a.npz", 60), jnp.ones(1)
  kept.keep(1, state, [np.zeros((1, 1))])  # at 1 s
  assert not (tmp_path / "a.npz").exists()
  kept.keep(2, state, [np.zeros((1, 1))])  # at 70 s, and it takes 10 s
  kept.keep(3, state, [np.zeros((1, 1))])  # at 275 s: 200 s have to pass
  monkeypatch.undo()
  assert Kept(tmp_path / "a.npz").step == 2


def test_damage_begins_anew(tmp_path, caplog):
  (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and so on")
  kept = Kept(tmp_path / "a.npz")
  assert kept.step == 0 and "is damaged" in caplog.text
  state, losses = run(kept, [1, 2, 3, 4])
  assert state.tolist() == [10, 10] and losses.ravel().tolist() == [0, 1, 2, 3]
  with pytest.raises(ValueError, match="there are 2 batches for 4 steps"):
    run(None, [1, 2])


def test_a_full_disk_does_not_end_the_work(tmp_path, caplog):
  (tmp_path / "folder").mkdir()
  (tmp_path / "folder/a.new").mkdir()  # cannot be written to
  state, _ = run(Kept(tmp_path / "folder/a.npz", 0), [1, 2, 3, 4])
  assert state.tolist() == [10, 10] and "cannot be kept" in caplog.text


def test_items_come_once_an_epoch():
  epochs = [np.concatenate([probe_training.drawn(10, 3, 3 * e + i)[0] for i in range(3)])
            for e in range(2)]
  assert all(len(set(own)) == 9 for own in epochs) and (epochs[0] != epochs[1]).any()
  (first, rng), (again, same) = (probe_training.drawn(10, 3, 7) for _ in range(2))
  assert (first == again).all() and rng.random() == same.random()
  assert probe_training.drawn(10, 3, 8)[1].random() != probe_training.drawn(10, 3, 7)[1].random()
