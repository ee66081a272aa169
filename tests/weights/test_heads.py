import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from dinov3_jax.train.state import init_state
from dinov3_jax.weights import heads, naming


@pytest.fixture
def teacher(tiny_config):
  tiny_config.ibot.update(layers=1, prototypes=24, bottleneck=8)
  return jax.device_get(init_state(tiny_config).teacher)


SIZES = dict(dino_head=dict(prototypes=64, hidden=32, bottleneck=16, layers=3),
             ibot_head=dict(prototypes=24, hidden=8, bottleneck=8, layers=1))


def check(found, teacher):
  sizes, params = found
  assert sizes == SIZES
  for name in heads.NAMES:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params[name]), teacher[name])


@pytest.mark.parametrize("prefix", ["", "teacher.", "model.teacher."])
def test_safetensors_whatever_stands_before_the_names(teacher, tmp_path, prefix):
  path = tmp_path / "model.safetensors"
  save_file({f"{prefix}{name}": x for name, x in naming.flatten(teacher).items()}, path)
  check(heads.read(path), teacher)


def test_a_pth_with_teacher_and_student(teacher, tmp_path):
  torch = pytest.importorskip("torch")
  as_torch = lambda factor: {name: torch.from_numpy(np.array(factor * x))
                             for name, x in naming.flatten(teacher).items()}
  torch.save({"teacher": as_torch(1), "student": as_torch(2), "epoch": 3}, tmp_path / "a.pth")
  check(heads.read(tmp_path / "a.pth"), teacher)
  check(heads.read(tmp_path / "a.pth", "student"), jax.tree.map(lambda x: 2 * x, teacher))


def test_the_file_beside_an_export_for_hugging_face(teacher, tmp_path):
  save_file({"embeddings.cls_token": np.zeros((1, 1, 32), np.float32)},
            tmp_path / "model.safetensors")
  save_file(naming.flatten({name: teacher[name] for name in heads.NAMES}),
            tmp_path / "heads.safetensors")
  check(heads.read(tmp_path), teacher)


def refused(arrays, tmp_path):
  path = tmp_path / "model.safetensors"
  save_file(arrays, path)
  with pytest.raises(ValueError) as error:
    heads.read(path)
  assert "\n" not in str(error.value) and str(path) in str(error.value)
  return str(error.value)


def test_what_has_no_heads(teacher, tmp_path):
  assert "has no heads of DINO and iBOT" in refused(naming.flatten(teacher["backbone"]), tmp_path)


def test_what_has_half_of_them(teacher, tmp_path):
  arrays = naming.flatten(teacher)
  lacking = {name: x for name, x in arrays.items() if not name.startswith("ibot_head.")}
  assert "has no whole ibot_head" in refused(lacking, tmp_path)
  lacking = {name: x for name, x in arrays.items() if name != "dino_head.mlp.2.bias"}
  assert "missing: dino_head.mlp.2.bias" in refused(lacking, tmp_path)


def test_what_has_several(teacher, tmp_path):
  arrays = {f"{network}.{name}": x for network in ("a", "b")
            for name, x in naming.flatten(teacher).items()}
  assert "the heads of several networks (a, b)" in refused(arrays, tmp_path)


def test_the_heads_that_are_there_are_known_and_can_be_read_alone(teacher, tmp_path):
  path = tmp_path / "model.safetensors"
  arrays = naming.flatten(teacher)
  save_file(arrays, path)
  assert heads.sizes_of(path) == SIZES
  save_file({name: x for name, x in arrays.items() if not name.startswith("ibot_head.")}, path)
  assert heads.sizes_of(path) == {"dino_head": SIZES["dino_head"]}
  sizes, params = heads.read(path, names=["dino_head"])
  assert list(sizes) == list(params) == ["dino_head"]
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(params["dino_head"]),
               teacher["dino_head"])
  save_file(naming.flatten(teacher["backbone"]), path)
  assert heads.sizes_of(path) == {}
