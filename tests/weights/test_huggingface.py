import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dinov3_jax
from dinov3_jax.models.variants import VARIANTS, differences
from dinov3_jax.weights import huggingface

STRUCTURES = dict(
    mlp=dict(num_register_tokens=4),
    gated=dict(num_register_tokens=4, use_gated_mlp=True, hidden_act="silu", intermediate_size=43),
    bare=dict(query_bias=False, value_bias=False, proj_bias=False, mlp_bias=False),
    gated_without_qkv_bias=dict(num_register_tokens=1, use_gated_mlp=True, hidden_act="silu",
                                query_bias=False, value_bias=False),
    biased_keys=dict(num_register_tokens=2, key_bias=True, rope_theta=30.0, layer_norm_eps=1e-3),
)
SIZE = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
            patch_size=8)
SQUARE, WIDE = (24, 24), (16, 40)


def save(folder, model, **kwargs):
  """A model of theirs with lively random parameters, written as they write it."""
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  for name, p in model.named_parameters():
    torch.nn.init.normal_(p, mean="norm" in name or "scale" in name, std=0.3)
  model.save_pretrained(folder, **kwargs)
  return model.eval()


def make_vit(folder, structure, **kwargs):
  transformers = pytest.importorskip("transformers")
  config = transformers.DINOv3ViTConfig(**SIZE | STRUCTURES[structure])
  return save(folder, transformers.DINOv3ViTModel(config), **kwargs)


def draw(height, width):
  rng = np.random.default_rng(0)
  masks = rng.random((2, height * width // 64)) < 0.4
  return rng.normal(size=(2, height, width, 3)).astype("f4"), masks


def theirs_of(model, images, masks=None):
  import torch
  with torch.no_grad():
    x = model(torch.tensor(images).permute(0, 3, 1, 2),
              **{} if masks is None else {"bool_masked_pos": torch.tensor(masks)})
  x, n = x.last_hidden_state.numpy(), 1 + getattr(model.config, "num_register_tokens", 0)
  return dict(cls=x[:, 0], storage=x[:, 1:n], patches=x[:, n:])


@jax.jit
def run(model, inputs):
  return [(model(images), model(images, masks)) for images, masks in inputs]


def assert_close(ours, theirs, tolerance):
  assert ours.keys() == theirs.keys()
  for name, x in theirs.items():
    assert ours[name].shape == x.shape
    np.testing.assert_allclose(np.float32(ours[name]), x, rtol=0, atol=tolerance)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_tokens_agree_with_transformers(tmp_path, structure):
  theirs = make_vit(tmp_path, structure)
  inputs = [draw(*SQUARE), draw(*WIDE)]
  for (images, masks), (plain, masked) in zip(
      inputs, run(dinov3_jax.load(None, tmp_path), inputs)):
    assert_close(plain, theirs_of(theirs, images), 1e-5)
    assert_close(masked, theirs_of(theirs, images, masks), 1e-5)
    assert np.abs(masked["patches"] - plain["patches"]).max() > 0.1


def test_bfloat16_agrees_to_a_tenth(tmp_path):
  """Tokens are about 1 large; bfloat16 carries 8 bits through three blocks of lively weights."""
  theirs = make_vit(tmp_path, "gated")
  (images, masks), model = draw(*WIDE), dinov3_jax.load(None, tmp_path, jnp.bfloat16)
  assert {x.dtype for x in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("bfloat16")}
  (plain, masked), = run(model, [(images, masks)])
  assert_close(plain, theirs_of(theirs, images), 0.1)
  assert_close(masked, theirs_of(theirs, images, masks), 0.1)


def test_convnext_agrees_with_transformers(tmp_path):
  transformers = pytest.importorskip("transformers")
  config = transformers.DINOv3ConvNextConfig(depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 24, 32])
  theirs = save(tmp_path, transformers.DINOv3ConvNextModel(config))
  images = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype("f4")
  ours = jax.jit(lambda model, x: model(x))(dinov3_jax.load(None, tmp_path), images)
  x = theirs_of(theirs, images)
  assert_close(ours, x, 1e-5)


def test_several_files_and_another_dtype(tmp_path):
  torch = pytest.importorskip("torch")
  model = make_vit(tmp_path / "one", "mlp")
  model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
  assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
  one, many = (nnx.state(dinov3_jax.load(None, tmp_path / name)) for name in ("one", "many"))
  jax.tree.map(np.testing.assert_array_equal, one, many)
  model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
  half = nnx.state(dinov3_jax.load(None, tmp_path / "half"))
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype("f4"), one)
  jax.tree.map(np.testing.assert_array_equal, half, rounded)


@pytest.mark.parametrize("name", VARIANTS)
def test_settings_of_every_variant(name):
  settings = VARIANTS[name].settings
  config = json.loads(json.dumps(huggingface.config(settings)))
  assert differences(huggingface.settings(config), settings) == []
  transformers = pytest.importorskip("transformers")
  theirs = transformers.AutoConfig.for_model(**config).to_dict()
  assert {key: theirs[key] for key in config if key not in ("dtype", "architectures")} == {
      key: x for key, x in config.items() if key not in ("dtype", "architectures")}


@pytest.mark.parametrize("width, hidden", [(64, 100), (64, 101), (49, 77), (384, 1536), (192, 513)])
def test_any_hidden_width(width, hidden):
  for gated in (False, True):
    config = dict(model_type="dinov3_vit", hidden_size=width, intermediate_size=hidden,
                  use_gated_mlp=gated, hidden_act="silu" if gated else "gelu")
    assert huggingface.config(huggingface.settings(config) | dict(num_heads=1))[
        "intermediate_size"] == hidden


def test_what_each_side_cannot_do():
  vit = dict(model_type="dinov3_vit")
  for config, message in ((dict(model_type="bert"), "that of a 'bert'"),
                          (vit | dict(hidden_act="relu"), r"hidden_act='relu' \(only 'gelu'\)"),
                          (vit | dict(value_bias=False), "value_bias=False"),
                          (vit | dict(query_bias=False, value_bias=False, key_bias=True),
                           "key_bias=True"),
                          (dict(model_type="dinov3_convnext", layer_norm_eps=1e-5), "layer_norm")):
    with pytest.raises(ValueError, match=message):
      huggingface.settings(config)
  with pytest.raises(ValueError, match=r"no stem=conv, norm=rmsnorm, untie_cls_and_patch_norms, "
                                       r"layerscale=0, rope\.min_period, rope\.normalize: export"):
    huggingface.config(dict(
        width=32, depth=2, num_heads=2, norm="rmsnorm", untie_cls_and_patch_norms=True,
        stem="conv", layerscale=0,
        rope=dict(base=0, min_period=1.0, max_period=9.0, normalize="max")))


def test_repositories(monkeypatch, tmp_path):
  hub = pytest.importorskip("huggingface_hub")
  assert huggingface.is_repo("facebook/dinov3-vits16-pretrain-lvd1689m")
  for path in ("vits16", "/a/b", "a/b/c", "weights/vits16.pth", "a/model.safetensors", "a/b.bin",
               "a/b.ckpt"):
    assert not huggingface.is_repo(path)
  asked = []

  def answer(with_):
    def snapshot_download(repo, **_):
      asked.append(repo)
      if isinstance(with_, type):
        raise with_.__new__(with_)
      return str(with_)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)

  make_vit(tmp_path, "mlp")
  answer(tmp_path)
  assert dinov3_jax.load(None, "owner/model").depth == 3
  with pytest.raises(ValueError, match="sat493m: this is no vitl16: width is 32 there, 1024 here"):
    dinov3_jax.load("vitl16", "sat493m")
  assert asked == ["owner/model", "facebook/dinov3-vitl16-pretrain-sat493m"]
  for error, raised, message in (
      (hub.errors.GatedRepoError, PermissionError, "ask for access on https://huggingface.co/o/m"),
      (hub.errors.RepositoryNotFoundError, FileNotFoundError, "neither a path here nor"),
      (hub.errors.LocalEntryNotFoundError, FileNotFoundError, "cannot be reached")):
    answer(error)
    with pytest.raises(raised, match=message):
      dinov3_jax.load(None, "o/m")
  with pytest.raises(FileNotFoundError, match="vitl16plus's weights are not on"):
    dinov3_jax.load("vitl16plus", "lvd1689m")


def test_repositories_without_safetensors(monkeypatch, tmp_path):
  """Files of PyTorch are fetched only where the repository has nothing else."""
  hub = pytest.importorskip("huggingface_hub")
  asked = []

  def snapshot_download(repo, allow_patterns):
    asked.append(allow_patterns)
    (tmp_path / ("config.json" if len(asked) == 1 else "pytorch_model.bin")).touch()
    return str(tmp_path)

  monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
  assert huggingface.download("owner/model") == tmp_path
  assert asked == [["*.json", "*.safetensors"], ["*.pth", "*.pt", "*.bin", "*.ckpt"]]
  (tmp_path / "model.safetensors").touch()
  huggingface.download("owner/model")
  assert len(asked) == 3


@pytest.mark.parametrize("key, value, said", [
    ("hidden_size", "384", "hidden_size must be a whole number from 1"),
    ("hidden_size", 384.0, "hidden_size must be a whole number"),
    ("hidden_size", 10**30, "hidden_size must be a whole number"),
    ("num_hidden_layers", 0, "num_hidden_layers must be"),
    ("num_register_tokens", -1, "num_register_tokens must be a whole number from 0"),
    ("use_gated_mlp", 1, "use_gated_mlp must be true or false"),
    ("layer_norm_eps", None, "layer_norm_eps must be a positive number"),
    ("rope_theta", float("nan"), "rope_theta must be a positive number"),
    ("pos_embed_rescale", "2", "pos_embed_rescale must be a number, or null"),
    ("hidden_act", ["gelu"], "hidden_act=")])
def test_values_of_a_wrong_type(key, value, said):
  with pytest.raises(ValueError, match=said):
    huggingface.settings({"model_type": "dinov3_vit", key: value})
  for stages in (3, [1, 2, 3], [1, 2, 3, "4"]):
    with pytest.raises(ValueError, match="depths must be four whole numbers"):
      huggingface.settings(dict(model_type="dinov3_convnext", depths=stages))


def test_older_and_newer_names_of_layers(tmp_path):
  """Files say `layer.0` or `model.layer.0`, and may be PyTorch's."""
  torch = pytest.importorskip("torch")
  model = make_vit(tmp_path / "a", "mlp")
  plain = {name.removeprefix("model."): x for name, x in model.state_dict().items()}
  expected = nnx.state(dinov3_jax.load(None, tmp_path / "a"))
  newer = {f"model.{name}" if name.startswith("layer.") else name: x for name, x in plain.items()}
  assert newer.keys() != plain.keys()
  for i, tensors in enumerate((plain, newer)):
    folder = tmp_path / str(i)
    folder.mkdir()
    (folder / "config.json").write_bytes((tmp_path / "a" / "config.json").read_bytes())
    torch.save(tensors, folder / "pytorch_model.bin")
    jax.tree.map(np.testing.assert_array_equal, nnx.state(dinov3_jax.load(None, folder)), expected)
