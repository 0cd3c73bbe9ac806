#!/bin/bash
# Prepares a machine of the swarm, once, at its first boot: the end first, then programs, code, data, and the service.
set -Eeuo pipefail
exec > >(tee -a /var/log/btard-setup.log) 2>&1
trap 'echo "setup failed in line $LINENO" >&2' ERR

BASE=/opt/btard
STATE=/var/lib/btard
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$BASE/lib.sh"

retry() { # Downloads fail now and then, and nobody is here to try again.
  local try
  for try in 1 2 3 4 5; do
    "$@" && return 0
    echo "try $try failed: $1" >&2
    sleep $((RETRY_SECONDS * try))
  done
  return 1
}

apt() { retry apt-get -qq -o DPkg::Lock::Timeout=300 "$@"; }

fetch() { # fetch ADDRESS FILE
  case $1 in
    s3://*) retry aws s3 cp --only-show-errors "$1" "$2" ;;
    *) retry curl --fail --silent --show-error --location --output "$2" "$1" ;;
  esac
}

# 1. The end: from here on the machine ends itself, whatever goes wrong below.
systemctl daemon-reload
systemctl enable --now btard-end.timer
if (($(date +%s) >= ENDS)); then
  echo "the run's time is over"
  shutdown -h now
  exit 0
fi

# 2. Programs. apt-get is Debian's and Ubuntu's.
export DEBIAN_FRONTEND=noninteractive
apt update || echo "going on with the lists of packages there are" >&2
apt install git curl zstd python3-venv
if ! command -v aws > /dev/null; then
  python3 -m venv "$BASE/aws"
  retry "$BASE/aws/bin/pip" install --quiet awscli
  ln -sf "$BASE/aws/bin/aws" /usr/local/bin/aws
fi

# 3. The code.
mkdir -p "$BASE/code"
"$INTERPRETER" -m venv "$BASE/venv"
pip() { retry "$BASE/venv/bin/pip" install --quiet "$@"; }
pip --upgrade pip
if [[ -n $WHEEL ]]; then
  wheel=$BASE/$(basename "$WHEEL")
  fetch "$WHEEL" "$wheel"
  pip "${wheel}[experiments]" # with what requirements.txt says, which stands in it under that name
  sha256sum < "$wheel" | cut --delimiter=' ' --fields=1 > "$BASE/installed"
else
  clone() { rm -rf "$BASE/code" && git clone --quiet "$REPOSITORY" "$BASE/code"; }
  retry clone
  git -C "$BASE/code" checkout --quiet --detach "$COMMIT"
  git -C "$BASE/code" rev-parse HEAD > "$BASE/installed"
  if [[ -n $REQUIREMENTS ]]; then pip -r "$BASE/code/$REQUIREMENTS"; fi
fi
if ((${#PACKAGES[@]})); then pip "${PACKAGES[@]}"; fi

# 4. The data, and what an earlier coordinator of this run left.
id btard > /dev/null 2>&1 || useradd --system --home-dir "$STATE" --shell /usr/sbin/nologin btard
mkdir -p "$STATE/run" "$STATE/data"
if [[ -n $DATA && $DATA_IS_ARCHIVE == true ]]; then
  archive=$STATE/$(basename "$DATA")
  fetch "$DATA" "$archive"
  if [[ -n $DATA_SHA256 ]]; then echo "$DATA_SHA256  $archive" | sha256sum --check --quiet; fi
  tar --extract --file "$archive" --directory "$STATE/data" --no-same-owner
  rm "$archive"
elif [[ -n $DATA ]]; then
  retry aws s3 sync --only-show-errors "$DATA" "$STATE/data"
fi
if [[ -n $START_FROM ]]; then fetch "$START_FROM" "$START"; fi
if [[ -n $RESULTS ]]; then retry aws s3 sync --only-show-errors "$RESULTS" "$STATE/run"; fi
chown -R btard: "$STATE"

# 5. The service.
if [[ -n $RESULTS ]]; then systemctl enable --now btard-upload.timer; fi
systemctl enable --now btard.service
echo "ready"
