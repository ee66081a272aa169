#!/usr/bin/env bash
# Trains on GPUs under Slurm, with a process for each, as JAX takes them there.
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh \
#     --config=configs/vitl16_in1k.py --workdir=/shared/runs/vitl16 --config.data.source=/shared/in1k
#
# Submit it from the repository's root, on a file system that all nodes see, after
#   . launch/environment.sh cuda,tfds
#SBATCH --job-name=dinov3
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
set -euo pipefail
. .venv/bin/activate
exec srun --kill-on-bad-exit=1 python -m dinov3_jax.main --distributed "$@"
