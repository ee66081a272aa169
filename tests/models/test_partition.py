import jax
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from dinov3_jax.models.convnext import ConvNeXt
from dinov3_jax.models.partition import param_sharding, spec_of
from dinov3_jax.models.vit import VisionTransformer


def make_mesh(**axes):
  return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(data=2, fsdp=2, tensor=2)


def shapes(make):
  return nnx.to_pure_dict(nnx.state(nnx.eval_shape(make)))


def test_every_parameter_has_a_rule(mesh):
  vit = shapes(lambda: VisionTransformer(
      width=32, depth=2, num_heads=2, ffn="swiglu", storage_tokens=4, rngs=nnx.Rngs(0),
      untie_cls_and_patch_norms=True, untie_global_and_local_cls_norm=True))
  placed = param_sharding(mesh, vit)
  assert placed["blocks"]["attn"]["qkv"]["kernel"].spec == P(None, "fsdp", None, "tensor")
  assert placed["blocks"]["mlp"]["w3"]["kernel"].spec == P(None, "tensor", "fsdp")
  assert placed["local_cls_norm"]["scale"].spec == P()
  convnext = shapes(lambda: ConvNeXt((1, 2, 1, 1), (8, 8, 8, 8), rngs=nnx.Rngs(0)))
  placed = param_sharding(mesh, convnext)
  assert placed["stages"]["1"]["mlp"]["fc1"]["kernel"].spec == P(None, "fsdp", "tensor")
  assert placed["downsample"]["2"]["conv"]["kernel"].spec == P(None, None, None, "fsdp")
  assert placed["stages"]["0"]["norm"]["bias"].spec == P()


def test_what_cannot_be_divided_stays_whole(mesh):
  assert spec_of("blocks/mlp/fc1/kernel", (2, 6, 7), mesh) == P(None, "fsdp", None)
  with pytest.raises(ValueError, match="no sharding rule covers blocks/new"):
    spec_of("blocks/new", (2,), mesh)


def test_a_mesh_of_other_axes():
  with pytest.raises(ValueError, match="the mesh has no axis fsdp or tensor"):
    param_sharding(make_mesh(x=8), {})
