#!/bin/bash
# Stands for every program that would leave the machine or change it. Notes what it was called with, and answers.
name=$(basename "$0")
printf '%s\n' "$name $*" >> "$BOX/calls"

case "$name $*" in
  "aws ssm get-parameter --with-decryption"*) cat "$BOX/secret" ;;
  "aws ssm get-parameter"*) # there at the third look
    echo look >> "$BOX/looks"
    (($(wc -l < "$BOX/looks") >= 3)) && cat "$BOX/address" ;;
  "aws s3 cp"*) cp "$BOX/s3/$(basename "$4")" "$5" ;;
  "curl"*"/latest/api/token") echo token ;;
  "curl"*"/latest/meta-data/instance-id") echo i-0123 ;;
  "curl"*"/latest/meta-data/local-ipv4") echo 10.0.0.7 ;;
  "curl"*"/latest/meta-data/public-ipv4") echo 198.51.100.7 ;;
  "curl"*"--output"*) cp "$BOX/web/$(basename "${*: -1}")" "${@: -2:1}" ;;
  "apt-get"*)
    if [[ -e $BOX/apt_fails ]]; then
      rm "$BOX/apt_fails"
      exit 100
    fi ;;
  "git -C"*" rev-parse HEAD") echo 0123456789abcdef0123456789abcdef01234567 ;;
  "git clone"*) mkdir -p "${*: -1}" && echo numpy > "${*: -1}/requirements.txt" ;;
  "python3 -m venv"*)
    mkdir -p "$3/bin"
    ln -s "$BOX/bin/stub" "$3/bin/pip"
    ln -s "$BOX/bin/stub" "$3/bin/python" ;;
  "python -m btard.swarm.identity"*) echo 12D3KooWpeer ;;
  "python -m albert."*)
    printf '%s\n' "instance=$BTARD_INSTANCE key=$WANDB_API_KEY" > "$BOX/environment"
    if [[ -e $BOX/hang ]]; then
      trap 'kill $!; exit 0' TERM
      sleep 60 &> /dev/null &
      touch "$BOX/hanging"
      wait
    fi
    exit "$(cat "$BOX/code" 2> /dev/null || echo 0)" ;;
  "id btard"*) exit 1 ;;
esac
