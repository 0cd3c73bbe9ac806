#!/usr/bin/env bash
# A sweep split over the jobs of a SLURM array, one GPU each. An example: adapt the #SBATCH lines to your cluster.
#   sbatch scripts/sweep_slurm.sh configs/resnet/paper.yaml /shared/runs/paper --data.path /shared/data/cifar10
# All jobs write into one folder; a job that is requeued, or submitted again, goes on where it was.
# If compute nodes have no network, let resnet.train download CIFAR-10 once on the login node.
#SBATCH --job-name=btard-sweep
#SBATCH --array=1-20
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
usage="usage: sbatch scripts/sweep_slurm.sh GRID.yaml DIR [--key value ...]"
grid=${1:?$usage} out=${2:?$usage}
: "${SLURM_ARRAY_TASK_ID:?run it by sbatch: $usage}"

# sbatch runs a copy of this file from elsewhere; the repository is where it was submitted.
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
export OMP_WAIT_POLICY=passive
exec "${PYTHON:-.venv/bin/python}" -m resnet.sweep "$grid" --out "$out" \
    --shard "$SLURM_ARRAY_TASK_ID/${SLURM_ARRAY_TASK_COUNT:-1}" "${@:3}"
