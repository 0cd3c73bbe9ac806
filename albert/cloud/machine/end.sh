#!/bin/bash
# Before the machine ends: stops the process, so that what it wrote is whole, and copies the coordinator's folder.
set -uo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. /opt/btard/lib.sh
timeout 60 systemctl stop btard.service
if [[ -n $RESULTS ]]; then timeout 240 /opt/btard/upload.sh last; fi
exit 0
