#!/usr/bin/env bash
# The main job on real images: ResNet-18 of width 16, 16 peers, 7 of them attacking, with and without BTARD.
# Usage: bash scripts/cifar10_attacks.sh DATA OUT [LABEL]   DATA: an image-folder tree or archive of CIFAR-10
# Finished runs are skipped and interrupted ones go on, so the command can be repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
data=${1:?usage: bash scripts/cifar10_attacks.sh DATA OUT [LABEL]} out=${2:?where to write the runs} label=${3:-CIFAR-10}
python=${PYTHON:-.venv/bin/python}
export OMP_WAIT_POLICY=passive

run() { # run NAME [--key value ...]
    local name=$1
    shift
    "$python" -m resnet.train configs/resnet/small.yaml --out "$out/$name" \
        --data.path "$data" --data.label "$label" --threads 2 "$@"
}
run no_attack_tau10 --aggregator.tau 10
run sign_flip_mean --aggregator.name mean --attack.name sign_flip --byzantine 7
run sign_flip_tau1 --aggregator.tau 1 --attack.name sign_flip --byzantine 7
run sign_flip_tau10 --aggregator.tau 10 --attack.name sign_flip --byzantine 7
run alie_tau1 --aggregator.tau 1 --attack.name alie --byzantine 7
run alie_tau10 --aggregator.tau 10 --attack.name alie --byzantine 7
run no_attack_tau1 --aggregator.tau 1
