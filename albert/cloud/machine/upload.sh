#!/bin/bash
# Copies the coordinator's run folder to S3, but for its private key. summary.json says that the run has finished and that
# all of it is there, so it goes last, and only once nothing is written any more: `upload.sh last` if the process is stopped.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. /opt/btard/lib.sh
copy() { aws s3 sync --only-show-errors --exclude "$IDENTITY*" "$@" /var/lib/btard/run "$RESULTS"; }

whole=
if [[ ${1:-} == last || -e /var/lib/btard/finished ]]; then whole=yes; fi
copy --exclude summary.json
if [[ -n $whole ]]; then copy; fi
