#!/bin/bash
# Copies the coordinator's run folder to S3, but for its private key.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. /opt/btard/lib.sh
aws s3 sync --only-show-errors --exclude "$IDENTITY*" /var/lib/btard/run "$RESULTS"
