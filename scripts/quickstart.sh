#!/usr/bin/env bash
# Trains on handwritten digits three times: without attack; under attack, undefended; under attack, with BTARD.
# Ends with a table, a figure, and where the files lie. Interrupt and run it again: it goes on where it was.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_venv requirements.txt

OUT=runs/quickstart
train() {
    local name=$1
    shift
    echo
    echo "== $name: python -m resnet.train configs/resnet/digits.yaml --out $OUT/$name $*"
    "$PY" -m resnet.train configs/resnet/digits.yaml --out "$OUT/$name" "$@"
}

train no_attack --byzantine 0 --aggregator.name mean
train undefended --byzantine 7 --attack.name sign_flip --aggregator.name mean
train btard --byzantine 7 --attack.name sign_flip --aggregator.name btard

echo
"$PY" -m resnet.figures "$OUT/no_attack" "$OUT/undefended" "$OUT/btard" --out "$OUT/accuracy.png" --table
echo
echo "Figure:      $OUT/accuracy.png and $OUT/accuracy.svg"
echo "Run folders: $OUT/no_attack  $OUT/undefended  $OUT/btard"
echo "Ledger:      $OUT/btard/ledger.jsonl (every ban with its evidence and votes)"
