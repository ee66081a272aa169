"""Training. Called as a function, `dinov3_jax.train` is `dinov3_jax.main.train`."""

from dinov3_jax.callable_module import make_callable

make_callable(__name__, "dinov3_jax.main", "train")
