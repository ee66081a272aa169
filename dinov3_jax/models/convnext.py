"""The ConvNeXt backbones of DINOv3: distilled from the 7B ViT, for where convolutions run best."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from dinov3_jax.models.layers import LayerScale, Mlp, init, make_norm
from dinov3_jax.models.products import inference_dot
from dinov3_jax.models.vit import REMAT, check_images

STRIDE = 32  # of the last stage: the image's pixels along a patch
EPS = 1e-6


class PatchConv(nnx.Module):
  """A convolution whose stride is its kernel; rows and columns that fill no patch are left out."""

  def __init__(self, size: int, in_features: int, width: int, *, rngs: nnx.Rngs):
    self.kernel = nnx.Param(init(rngs.params(), (size, size, in_features, width)))
    self.bias = nnx.Param(jnp.zeros(width))

  def __call__(self, x: jax.Array) -> jax.Array:
    p, _, channels, width = self.kernel.shape
    b, h, w = x.shape[0], x.shape[1] // p, x.shape[2] // p
    x = x[:, :h * p, :w * p].reshape(b, h, p, w, p, channels).swapaxes(2, 3)
    x = x.reshape(b, h, w, p * p * channels)
    return x @ self.kernel[...].reshape(-1, width) + self.bias[...]


def depthwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """x [B, H, W, D], each channel with its own odd kernel [k, k, 1, D]; zeros beyond the border."""
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", feature_group_count=x.shape[-1],
                                      dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def depthwise_sum(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`depthwise_conv` as a sum over the kernel's offsets, in float32."""
  height, width = x.shape[1:3]
  size = len(kernel)
  padded, kernel = _pad(x, size), kernel.astype(jnp.float32)
  return sum(padded[:, i:i + height, j:j + width] * kernel[i, j, 0]
             for i in range(size) for j in range(size)).astype(x.dtype)


def _pad(x, size):
  return jnp.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))


def _depthwise_sum_backward(saved, gradient):
  x, kernel = saved
  size = len(kernel)
  padded = _pad(x, size)

  def of_offset(offset):
    shifted = jax.lax.dynamic_slice(padded, (0, offset // size, offset % size, 0), x.shape)
    return (shifted * gradient).sum((0, 1, 2))

  of_kernel = jax.lax.map(of_offset, jnp.arange(size**2)).reshape(kernel.shape)
  return depthwise_sum(gradient, kernel[::-1, ::-1]), of_kernel


depthwise_sum.defvjp(lambda x, kernel: (depthwise_sum(x, kernel), (x, kernel)),
                     _depthwise_sum_backward)


class DepthwiseConv(nnx.Module):
  """Each channel convolved with its own kernel."""

  def __init__(self, size: int, width: int, *, rngs: nnx.Rngs):
    self.kernel = nnx.Param(init(rngs.params(), (size, size, 1, width)))
    self.bias = nnx.Param(jnp.zeros(width))

  def __call__(self, x: jax.Array) -> jax.Array:
    # XLA's grouped convolution takes over ten times as long on a CPU as the sum.
    x = jax.lax.platform_dependent(x, self.kernel[...], cpu=depthwise_sum, default=depthwise_conv)
    return x + self.bias[...]


class Block(nnx.Module):
  """Depthwise 7x7 convolution, LayerNorm, MLP, LayerScale, around a residual."""

  def __init__(self, width: int, layerscale: float, *, rngs: nnx.Rngs):
    self.dwconv = DepthwiseConv(7, width, rngs=rngs)
    self.norm = make_norm("layernorm", width, EPS, rngs=rngs)
    self.mlp = Mlp(width, 4 * width, True, rngs=rngs)
    self.ls = LayerScale(width, layerscale)

  def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
    """x [B, H, W, D] -> the same; `keep` [B] multiplies the branch of each image."""
    branch = self.ls(self.mlp(self.norm(self.dwconv(x))))
    branch = branch.astype(x.dtype)
    return x + (branch if keep is None else branch * keep[:, None, None, None].astype(x.dtype))


class Downsample(nnx.Module):
  """Where a stage begins: the stem (patches of 4, then a norm), or a norm and patches of 2."""

  def __init__(self, in_features: int, width: int, stem: bool, *, rngs: nnx.Rngs):
    self.stem = stem
    self.conv = PatchConv(4 if stem else 2, in_features, width, rngs=rngs)
    self.norm = make_norm("layernorm", width if stem else in_features, EPS, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.norm(self.conv(x)) if self.stem else self.conv(self.norm(x))


class ConvNeXt(nnx.Module):
  """A ConvNeXt of four stages that speaks like the ViT: a pooled CLS, patches, no storage tokens.

  The blocks of a stage are stacked on a leading axis and scanned.

  Args:
    depths: blocks of each of the four stages.
    dims: their widths.
    patch_size: `features` resizes its maps to this grid; None leaves each stage at its own stride
      of 4, 8, 16 and 32.
    in_channels: of the images.
    drop_path: the last block's rate of stochastic depth; the first has 0, linear between.
    layerscale: initial value.
    rngs: draws the parameters: N(0, 0.02^2) for every kernel.
  """

  def __init__(self, depths: Sequence[int], dims: Sequence[int], patch_size: int | None = None,
               in_channels: int = 3, drop_path: float = 0.0, layerscale: float = 1e-6, *,
               rngs: nnx.Rngs):
    if len(depths) != 4 or len(dims) != 4:
      raise ValueError(f"a ConvNeXt has four stages, not depths {depths} and dims {dims}")
    self.depths = tuple(depths)
    self.patch_size = patch_size
    self.drop_path = drop_path

    def make_stage(depth, width):
      make = nnx.vmap(lambda rngs: Block(width, layerscale, rngs=rngs))
      return nnx.split_rngs(splits=depth)(make)(rngs)

    inputs = (in_channels, *dims[:-1])
    self.downsample = nnx.Dict({str(i): Downsample(c, d, i == 0, rngs=rngs)
                                for i, (c, d) in enumerate(zip(inputs, dims))})
    self.stages = nnx.Dict({str(i): make_stage(n, d) for i, (n, d) in enumerate(zip(depths, dims))})
    self.norm = make_norm("layernorm", dims[-1], EPS, rngs=rngs)

  def __call__(self, images: jax.Array, masks: jax.Array | None = None, *, pad: bool = False,
               key: jax.Array | None = None, remat: str = "none") -> dict[str, jax.Array]:
    """Normed tokens of preprocessed images.

    It is compiled: the first call with images of a new shape takes a while, the others do not. This
    holds for `features`, too.

    Args:
      images: float [B, H, W, C], each side at least 32; what fills no patch of 32 is left out.
      masks: ignored (reference); a ConvNeXt has no mask token.
      pad: nothing is left out: zeros, which are the mean colour, on the right and below make the
        sides multiples of 32.
      key: draws stochastic depth, for each image on its own; None turns it off.
      remat: what the backward pass computes again; a key of `vit.REMAT`.

    Returns:
      `cls` [B, D], the mean of the last map; `storage` [B, 0, D]; `patches` [B, N, D], the last map
      at stride 32, in rows. All went through the one norm.
    """
    del masks
    return _forward(self, _checked(images, pad), key, remat)

  def features(self, images: jax.Array, layers: int | Sequence[int] = 1, *, norm: bool = True,
               reshape: bool = False, pad: bool = False) -> list[dict[str, jax.Array]]:
    """The maps after chosen stages, in the stages' order.

    For dense tasks take all four: they differ in width and, without a `patch_size`, in stride.

    Args:
      images: float [B, H, W, C], each side at least 32.
      layers: how many of the last stages, or the indices of stages (negative from the end).
      norm: apply the final norm to the last stage; earlier stages have none.
      reshape: patches as [B, h, w, D] instead of [B, h * w, D].
      pad: as in `__call__`; the maps are those of the larger image.

    Returns:
      A dict for each stage, as from `__call__`. With a `patch_size` the patches are resized
      (bilinear, antialiased) to its grid; `cls` is the mean of the map before that.
    """
    last = len(self.depths) - 1
    if isinstance(layers, int):
      chosen = range(last + 1 - layers, last + 1)
    else:
      chosen = sorted({i + last + 1 if i < 0 else i for i in layers})
    if not chosen or chosen[0] < 0 or chosen[-1] > last:
      raise ValueError(f"layers {layers} do not fit a model of {last + 1} stages")
    return _features(self, _checked(images, pad), tuple(chosen), norm, reshape)

  def forward_crops(self, global_crops: jax.Array, local_crops: jax.Array | None = None,
                    masks: jax.Array | None = None, *, key: jax.Array | None = None,
                    shards: int = 1, remat: str = "none") -> tuple[dict, dict | None]:
    """The training forward, as the ViT's; `masks` and `shards` change nothing here."""
    del masks, shards
    keys = (None, None) if key is None else jax.random.split(key)
    outputs = [crops if crops is None else self._tokens(
                 self._stages(_checked(crops, pad=False), k, remat)[-1], self.norm)
               for crops, k in zip((global_crops, local_crops), keys)]
    return outputs[0], outputs[1]

  def _stages(self, images, key=None, remat="none", last=3, dot=None) -> list[jax.Array]:
    """The map after each stage up to `last`; `dot` takes the place of the blocks' own product."""
    if remat not in REMAT:
      raise ValueError(f"train.remat must be one of {', '.join(REMAT)}, not {remat!r}")
    x = images.astype(self.downsample["0"].conv.kernel.dtype)
    keep = [None] * len(self.depths)
    if key is not None and self.drop_path:
      ends = [sum(self.depths[:i]) for i in range(1, len(self.depths))]
      keep = jnp.split(self._keep(key, len(x)), ends)
    maps = []
    for i in range(last + 1):
      x = self.downsample[str(i)](x)
      graphdef, params = nnx.split(self.stages[str(i)])

      def body(x, layer, graphdef=graphdef):
        params, keep = layer
        block = nnx.merge(graphdef, params)
        if dot is not None:
          block.set_attributes(dot_general=dot)
        return block(x, keep), None

      if remat != "none":
        body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=False)
      x, _ = jax.lax.scan(body, x, (params, keep[i]))
      maps.append(x)
    return maps

  def _keep(self, key: jax.Array, images: int) -> jax.Array:
    """Factors [blocks, images]: 0 where stochastic depth leaves the branch out, 1 on average."""
    rates = jnp.linspace(0, self.drop_path, sum(self.depths))[:, None]
    return jax.random.bernoulli(key, 1 - rates, (len(rates), images)) / (1 - rates)

  def _tokens(self, x, norm, grid=None, reshape=False) -> dict[str, jax.Array]:
    norm = norm or (lambda x: x)
    cls = norm(x.mean((1, 2)))
    if grid is not None:
      x = jax.image.resize(x, (len(x), *grid, x.shape[-1]), "linear")
    x = norm(x)
    patches = x if reshape else x.reshape(len(x), -1, x.shape[-1])
    return {"cls": cls, "storage": patches.reshape(len(x), -1, x.shape[-1])[:, :0],
            "patches": patches}


def _checked(images: jax.Array, pad: bool) -> jax.Array:
  """Images that are fit for the network, or a ValueError."""
  check_images(images)
  height, width = images.shape[1:3]
  if pad:
    return jnp.pad(images, ((0, 0), (0, -height % STRIDE), (0, -width % STRIDE), (0, 0)))
  if min(height, width) < STRIDE:
    raise ValueError(f"images of {height}x{width} are too small for a ConvNeXt: each side needs at "
                     f"least {STRIDE} pixels; pass pad=True to fill them up")
  return images


@functools.partial(jax.jit, static_argnums=3)
def _forward(model: ConvNeXt, images, key, remat):
  return model._tokens(model._stages(images, key, remat, dot=inference_dot)[-1], model.norm)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _features(model: ConvNeXt, images, chosen, norm, reshape):
  maps = model._stages(images, last=chosen[-1], dot=inference_dot)
  grid = model.patch_size and [side // model.patch_size for side in images.shape[1:3]]
  last = len(model.depths) - 1
  return [model._tokens(maps[i], model.norm if norm and i == last else None, grid, reshape)
          for i in chosen]
