#!/bin/bash
# Runs a command as one process of a run, and ends with a code that says whether to start it again:
#
#   0    done
#   2    a mistake of the user: starting again would not help
#   143  stopped by a signal after saving (the command itself ends with 0 then)
#   100  anything else; what a signal killed keeps its code, 128 + the signal
#
# The highest code of several processes, which srun gives, is then the one that decides.
#
# usage: bash launch/run_once.sh COMMAND…
set -u

"$@" &
child=$!
stopped=""
trap 'stopped=1; kill -TERM "$child" 2>/dev/null' TERM INT HUP

wait "$child"
code=$?
if [[ -n $stopped ]]; then # the signal ended `wait`; the command is still saving
  wait "$child"
  code=$?
fi

case $code in
  0) [[ -n $stopped ]] && exit 143 ;;
  2) ;;
  *) ((code < 128)) && code=100 ;;
esac
exit "$code"
