#!/bin/bash
# After the service has ended, as root. If its work is done, a coordinator ends the run, and a trainer leaves for good; an
# honest one that was removed by the others leaves as well, but AWS starts another in its place, which is a new peer.
# An error here fails the service, so that systemd comes back to this.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. /opt/btard/lib.sh

if [[ ! -e /var/lib/btard/finished ]]; then exit 0; fi
if [[ $KEEP_FINISHED == true ]]; then
  echo "finished; this machine stays until the run's end (keep_finished)"
  exit 0
fi
if [[ $KIND == coordinator ]]; then
  echo "finished; the run ends"
  for group in "${TRAINER_GROUPS[@]}"; do
    aws autoscaling update-auto-scaling-group --auto-scaling-group-name "$group" \
      --min-size 0 --max-size 0 --desired-capacity 0
  done
else
  place=--should-decrement-desired-capacity
  if [[ $(< /var/lib/btard/finished) == 3 && $BYZANTINE != true ]]; then place=--no-should-decrement-desired-capacity; fi
  echo "finished; this machine leaves ($place)"
  aws autoscaling terminate-instance-in-auto-scaling-group --instance-id "$(metadata instance-id)" "$place" > /dev/null
fi
systemctl start --no-block btard-end.service
