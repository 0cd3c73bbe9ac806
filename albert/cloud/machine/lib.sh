# What the other scripts share: the settings, and what the machine knows about itself.
# shellcheck shell=bash source=/dev/null
. /opt/btard/settings

metadata() { # metadata NAME, such as instance-id
  local token
  token=$(curl --fail --silent --request PUT --header 'X-aws-ec2-metadata-token-ttl-seconds: 60' \
    http://169.254.169.254/latest/api/token)
  curl --fail --silent --header "X-aws-ec2-metadata-token: $token" "http://169.254.169.254/latest/meta-data/$1"
}
