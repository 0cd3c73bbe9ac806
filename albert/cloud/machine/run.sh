#!/bin/bash
# The machine's service: finds the coordinator, or says where it is, and runs the process. A process that ends with 0 has
# finished, a trainer that ends with 3 was removed by the others; anything else is a failure, after which it is run again.
set -euo pipefail

STATE=/var/lib/btard
# shellcheck source-path=SCRIPTDIR source=lib.sh
. /opt/btard/lib.sh

coordinator_address() {
  aws ssm get-parameter --name "$ADDRESS_PARAMETER" --query Parameter.Value --output text 2> /dev/null
}

if [[ $PUBLIC == true ]]; then announce=$(metadata public-ipv4); else announce=$(metadata local-ipv4); fi
BTARD_INSTANCE=$(metadata instance-id) # what the swarm's records call this machine
export BTARD_INSTANCE

if [[ $KIND == coordinator ]]; then
  if [[ -n $WANDB_PARAMETER ]]; then # The key goes into the process's environment, and nowhere else.
    WANDB_API_KEY=$(aws ssm get-parameter --with-decryption --name "$WANDB_PARAMETER" \
      --query Parameter.Value --output text)
    export WANDB_API_KEY
  fi
  peer=$("$PYTHON" -m btard.swarm.identity "$STATE/run/$IDENTITY" | tail -n 1)
  aws ssm put-parameter --name "$ADDRESS_PARAMETER" --type String --overwrite \
    --value "/ip4/$announce/tcp/$PORT/p2p/$peer" > /dev/null
  peers=()
else
  until address=$(coordinator_address); do
    echo "the coordinator has not said yet where it is"
    sleep "$POLL_SECONDS"
  done
  peers=(--network.initial_peers "$address")
fi

# A process that ends with 0 because it was stopped has not finished.
rm -f "$STATE/moved"
stopped=
trap 'stopped=yes' TERM INT
"$PYTHON" -m "albert.$KIND" /opt/btard/swarm.yaml --out "$STATE/run" --network.host 0.0.0.0 \
  --network.announce "$announce" --code "$(< /opt/btard/installed)" "${peers[@]}" "${OPTIONS[@]}" &
process=$!
watcher=
if [[ $KIND == trainer ]]; then # A new coordinator has a new address, and peers look for it only when they start.
  while sleep "$WATCH_SECONDS"; do
    now=$(coordinator_address) || continue
    if [[ $now != "$address" ]]; then
      echo "the coordinator has moved to $now; starting again"
      touch "$STATE/moved"
      kill "$process"
      break
    fi
  done &
  watcher=$!
fi
code=0
wait "$process" || code=$?
if [[ -n $watcher ]]; then kill "$watcher" 2> /dev/null || true; fi
if [[ -n $stopped ]]; then
  wait "$process" || true
  exit 0
fi
if [[ -e $STATE/moved ]]; then exit 1; fi
if [[ $code == 0 || ($code == 3 && $KIND == trainer) ]]; then
  echo "$code" > "$STATE/finished"
  exit 0
fi
exit "$code"
