"""`python -m dinov3_jax.train` is the console script's `dinov3 train`, and `dinov3_jax.main`."""

from dinov3_jax import signals

signals.exit_at_once("interrupted before the first step")

import sys

from dinov3_jax.main import main

if __name__ == "__main__":
  sys.exit(main())
