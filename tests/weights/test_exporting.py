import json
import sys

import chex
import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import dinov3_jax
from dinov3_jax.evals.backbone import open_model
from dinov3_jax.train import checkpoint
from dinov3_jax.train.state import init_state
from dinov3_jax.weights import exporting as module
from dinov3_jax.weights import naming
from dinov3_jax.weights.exporting import export

FORMATS = ["hf", "official", "safetensors"]


def lively(params, seed=0):
  """The same tree with random numbers, and without the bias that keys do not have."""
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda x: rng.normal(0.5, 0.3, x.shape).astype("f4"), params)
  params["backbone"]["blocks"]["attn"]["qkv"]["bias"][:, 1] = 0
  return params


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
  def make(config):
    state = jax.eval_shape(lambda: init_state(config))
    student = lively(state.student)
    folder = tmp_path_factory.mktemp("run")
    with checkpoint.Writer(folder, keep=1, keep_every=0) as writer:
      writer.save(1, {"student": student, "teacher": lively(student, 1)}, {}, config)
    return folder
  return make


@pytest.fixture
def config(tiny_config):
  tiny_config.model.update(mask_k_bias=True, norm_eps=1e-5, untie_global_and_local_cls_norm=True)
  tiny_config.crops.update(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
  return tiny_config


def params_of(weights, **kwargs):
  return nnx.to_pure_dict(nnx.state(dinov3_jax.load(None, weights, **kwargs)))


@pytest.mark.parametrize("network", ["teacher", "student"])
@pytest.mark.parametrize("format", FORMATS)
def test_round_trip_is_exact(make_run, config, tmp_path, format, network):
  if format == "official":
    pytest.importorskip("torch")
  run = make_run(config)
  written = export(run, format, tmp_path / "out", network=network)
  assert sorted(tmp_path.glob("out/*")) == written
  expected = params_of(run, network=network)
  got = params_of(tmp_path / "out")
  if format == "hf":
    del expected["local_cls_norm"]
  chex.assert_trees_all_equal(got, expected)
  prepare = dinov3_jax.preprocess(tmp_path / "out")
  assert (prepare.mean, prepare.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
  model, original = dinov3_jax.load(None, tmp_path / "out"), dinov3_jax.load(None, run)
  assert (model.patch_size, model.norm.epsilon, model.rope.periods.tolist()) == (
      original.patch_size, original.norm.epsilon, original.rope.periods.tolist())


def test_the_hf_folder_loads_in_transformers(make_run, config, tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  images = np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype("f4")
  runs = [dict(ffn="swiglu"), dict(storage_tokens=0, mask_k_bias=False, qkv_bias=True)]
  for i, changes in enumerate(runs):
    config.model.update(changes)
    run = make_run(config)
    export(run, "hf", tmp_path / str(i))
    theirs, report = transformers.AutoModel.from_pretrained(tmp_path / str(i),
                                                            output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
      x = theirs(torch.tensor(images).permute(0, 3, 1, 2)).last_hidden_state.numpy()
    ours = jax.jit(lambda model, x: model(x))(dinov3_jax.load(None, run), images)
    ours = np.concatenate([ours["cls"][:, None], ours["storage"], ours["patches"]], 1)
    np.testing.assert_allclose(ours, x, rtol=0, atol=1e-5)


def test_one_file_becomes_many(make_run, config, tmp_path, monkeypatch):
  transformers = pytest.importorskip("transformers")
  run = make_run(config)
  monkeypatch.setattr(module, "SHARD_BYTES", 20_000)
  export(run, "hf", tmp_path / "out")
  files = sorted(tmp_path.glob("out/*.safetensors"))
  assert len(files) > 2 and max(file.stat().st_size for file in files) < 25_000
  assert files[-1].name == f"model-{len(files):05}-of-{len(files):05}.safetensors"
  expected = params_of(run)
  del expected["local_cls_norm"]
  chex.assert_trees_all_equal(params_of(tmp_path / "out"), expected)
  transformers.AutoModel.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("format", FORMATS)
def test_heads(make_run, config, tmp_path, format):
  run = make_run(config)
  export(run, format, tmp_path / "out", heads=True)
  teacher = lively(jax.eval_shape(lambda: init_state(config)).teacher, 1)
  heads = {name: teacher[name] for name in ("dino_head", "ibot_head")}
  if format == "official":
    torch = pytest.importorskip("torch")
    content = torch.load(tmp_path / "out" / "teacher_checkpoint.pth")
    assert list(content) == ["teacher"]
    arrays = {name: x.numpy() for name, x in content["teacher"].items()}
  else:
    file = "heads" if format == "hf" else "model"
    arrays = load_file(tmp_path / "out" / f"{file}.safetensors")
  if format == "hf":
    chex.assert_trees_all_equal(naming.unflatten(arrays, heads), heads)
  else:
    chex.assert_trees_all_equal(naming.unflatten(arrays, teacher), teacher)
    assert arrays["backbone.rope_embed.periods"].dtype == np.float32
    assert "backbone.blocks.1.attn.qkv.bias_mask" in arrays
    chex.assert_trees_all_equal(params_of(tmp_path / "out"), teacher["backbone"])


def test_the_official_file_is_that_of_the_hub(make_run, config, tmp_path):
  torch = pytest.importorskip("torch")
  run = make_run(config)
  export(run, "official", tmp_path / "out")
  tensors = torch.load(tmp_path / "out" / "backbone.pth")
  expected = naming.flatten(params_of(run)) | naming.buffers(config.model.to_dict())
  assert set(tensors) == set(expected)
  for name, x in expected.items():
    assert tensors[name].dtype == torch.float32 and tensors[name].is_contiguous()
    np.testing.assert_array_equal(tensors[name].numpy(), x)


def test_from_one_format_to_the_next(make_run, config, tmp_path):
  """Any weights can be exported, not only our trainer's."""
  export(make_run(config), "safetensors", tmp_path / "a")
  export(tmp_path / "a", "hf", tmp_path / "b")
  export(tmp_path / "b", "safetensors", tmp_path / "c")
  first, last = (load_file(tmp_path / x / "model.safetensors") for x in "ac")
  assert set(first) - set(last) == {"local_cls_norm.weight", "local_cls_norm.bias"}
  chex.assert_trees_all_equal({name: first[name] for name in last}, last)
  assert dinov3_jax.preprocess(tmp_path / "c").mean == (0.1, 0.2, 0.3)
  with pytest.raises(ValueError, match="has no heads: only our trainer's checkpoints do"):
    export(tmp_path / "b", "hf", tmp_path / "d", heads=True)
  assert not (tmp_path / "d").exists()


def test_what_cannot_be_written(make_run, config, tmp_path, monkeypatch):
  config.model.update(norm="rmsnorm", untie_cls_and_patch_norms=True)
  run = make_run(config)
  with pytest.raises(ValueError, match="has no norm=rmsnorm, untie_cls_and_patch_norms: export wit"
                                       "h --format safetensors, which keeps every model as it is"):
    export(run, "hf", tmp_path / "out")
  assert not (tmp_path / "out").exists()
  with pytest.raises(ValueError, match="is not empty: choose another --out"):
    export(run, "safetensors", run)
  config.model.stem = "conv"
  run = make_run(config)
  with pytest.raises(ValueError, match="no convolutional stem: export with --format safetensors"):
    export(run, "official", tmp_path / "out")
  export(run, "safetensors", tmp_path / "ours")
  chex.assert_trees_all_equal(params_of(tmp_path / "ours"), params_of(run))
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(ModuleNotFoundError, match="pip install torch, or take --format safetensors"):
    export(run, "official", tmp_path / "out")


@pytest.mark.parametrize("format", FORMATS)
def test_the_size_travels(make_run, config, tmp_path, format):
  """What comes out of a run's images is what comes out of its export's."""
  if format == "official":
    pytest.importorskip("torch")
  config.crops.global_sizes = (48, 64)
  run, out = make_run(config), tmp_path / "out"
  export(run, format, out)
  image = np.random.default_rng(0).integers(256, size=(70, 90, 3), dtype="u1")
  outputs = []
  file = out / ("backbone.pth" if format == "official" else "model.safetensors")
  for weights in (run, out, file):
    model, prepare = open_model(str(weights))
    assert prepare == dinov3_jax.preprocess(weights) and prepare.size == 48
    outputs.append(model(prepare(image)[None]))
  chex.assert_trees_all_equal(*outputs)
  processor = json.loads((out / "preprocessor_config.json").read_text())
  assert processor["size"] == dict(height=48, width=48)
  if format == "hf":
    assert json.loads((out / "config.json").read_text())["image_size"] == 48


def test_the_processor_of_transformers(make_run, config, tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  pytest.importorskip("torchvision")
  config.crops.global_sizes = (48,)
  export(make_run(config), "hf", tmp_path / "out")
  processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
  assert dict(processor.size) == dict(height=48, width=48)
  assert tuple(processor.image_mean) == (0.1, 0.2, 0.3)
  assert tuple(processor.image_std) == (0.4, 0.5, 0.6)
  image = np.random.default_rng(0).integers(256, size=(70, 90, 3), dtype="u1")
  theirs = processor(torch.tensor(image).permute(2, 0, 1), return_tensors="pt").pixel_values[0]
  ours = dinov3_jax.preprocess(tmp_path / "out")(image)
  np.testing.assert_allclose(ours, theirs.permute(1, 2, 0).numpy(), rtol=0, atol=1e-5)


def test_a_size_that_is_no_square(make_run, config, tmp_path):
  """Settings of others are passed on, too."""
  export(make_run(config), "safetensors", tmp_path / "a")
  processor = json.loads((tmp_path / "a" / "preprocessor_config.json").read_text())
  processor["size"] = dict(height=16, width=40)
  (tmp_path / "a" / "preprocessor_config.json").write_text(json.dumps(processor))
  export(tmp_path / "a" / "model.safetensors", "hf", tmp_path / "b")
  assert dinov3_jax.preprocess(tmp_path / "b").size == (16, 40)
  assert json.loads((tmp_path / "b" / "config.json").read_text())["image_size"] == 40


def test_the_home_directory(make_run, config, tmp_path, monkeypatch):
  run = make_run(config)
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "run").symlink_to(run)
  written = export("~/run", "safetensors", "~/out")
  assert written == sorted((tmp_path / "out").iterdir())


def test_only_the_folder_that_was_asked_for_is_written(make_run, config, tmp_path):
  """Files have our names, whatever those of the weights are."""
  source = tmp_path / "source"
  export(make_run(config), "hf", source)
  (source / "parts").mkdir()
  (source / "model.safetensors").rename(source / "parts" / "..x.safetensors")
  names = load_file(source / "parts" / "..x.safetensors")
  (source / "model.safetensors.index.json").write_text(
      json.dumps(dict(weight_map=dict.fromkeys(names, "parts/..x.safetensors"))))
  before = set(tmp_path.rglob("*"))
  written = export(source, "hf", tmp_path / "out")
  assert set(tmp_path.rglob("*")) - before == {tmp_path / "out", *written}
  assert [path.name for path in written] == ["config.json", "model.safetensors",
                                             "preprocessor_config.json"]


def test_where_it_cannot_be_written(tmp_path):
  (tmp_path / "file").touch()
  (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
  for out, said in (("file", "is there already and no folder"), ("link", "is there already and no"),
                    ("file/out", "cannot be written: .* is no folder")):
    with pytest.raises(ValueError, match=said):  # before the weights are looked at
      export(tmp_path / "absent", "safetensors", tmp_path / out)
  assert not (tmp_path / "elsewhere").exists()


