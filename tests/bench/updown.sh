#!/bin/sh
# A pair of nodes for side_by_side.py, as its contender `cmd:icx=tests/bench/updown.sh`: `up` starts `icx up` in both namespaces,
# `down` stops it. Environment: NS_A, NS_B, DIR as that program sets them; ICX_OPTIONS, further options for both nodes.
set -eu
icx=$(dirname "$0")/../../cli/icx

case $1 in
up)
  for side in a b; do
    "$icx" genkey "$DIR/$side.key" 2>"$DIR/$side.pub.log"
    "$icx" pubkey "$DIR/$side.key" >"$DIR/$side.pub"
  done
  number=1
  for side in a b; do
    case $side in
    a) namespace=$NS_A other=b ;;
    b) namespace=$NS_B other=a ;;
    esac
    # shellcheck disable=SC2086 # several options in one variable
    ip netns exec "$namespace" "$icx" up --identity-key "$DIR/$side.key" --peer-key "$DIR/$other.pub" \
      --address "10.9.0.$number/24" --allowed-route 10.9.0.0/24 --log-format json ${ICX_OPTIONS-} \
      "192.168.77.$((3 - number)):6081" >"$DIR/$side.log" 2>&1 &
    echo $! >"$DIR/$side.pid"
    number=$((number + 1))
  done
  ;;
down)
  for side in a b; do
    kill -INT "$(cat "$DIR/$side.pid")"
  done
  ;;
*)
  echo "usage: updown.sh up|down" >&2
  exit 2
  ;;
esac
