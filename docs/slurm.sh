#!/usr/bin/env bash
# Training on two nodes of four GPUs under Slurm, one process a GPU:
#
#   sbatch docs/slurm.sh
#
# from a checkout on a file system that all nodes share, with .venv in it
# (pip install '.[cuda]'). The same command again goes on from the last checkpoint.
#SBATCH --job-name=prefix
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
set -euo pipefail

# srun starts the processes, and they find each other by what it tells them.
srun --kill-on-bad-exit=1 .venv/bin/prefix-jax train configs/e2e_gpt2_medium.py \
  --data.path data/e2e --workdir runs/e2e --train.batch-size 16 --train.steps 13144
srun --kill-on-bad-exit=1 .venv/bin/prefix-jax evaluate --workdir runs/e2e
