#!/bin/bash
# Runs a command as one process of a run, and ends with a code that says whether to start it again:
#
#   0    done
#   2    a mistake of the user: starting again would not help; or $MISTAKE_CODE
#   143  stopped by a signal after saving (the command itself ends with 0 then)
#   100  anything else; what a signal killed keeps its code, 128 + the signal
#
# Where one process of several had a mistake and could not notify the others, these end with another code. The mistake
# has to win: with srun, which gives the highest code, by MISTAKE_CODE=200; on Kubernetes, which acts on the first pod
# that fails, by FAILURE_DELAY, the seconds that a process waits before it ends with 100 or more.
#
# usage: bash launch/run_once.sh COMMAND…
set -u

"$@" &
child=$!
signals=0
trap 'signals=$((signals + 1)); kill -TERM "$child" 2>/dev/null' TERM INT HUP

before=-1
while ((before != signals)); do # a signal ends `wait` while the command is still saving
  before=$signals
  wait "$child"
  code=$?
done

case $code in
  0) ((signals)) && exit 143 ;;
  2) exit "${MISTAKE_CODE:-2}" ;;
  *) ((code < 128)) && code=100 ;;
esac
if ((code)) && ! ((signals)); then
  sleep "${FAILURE_DELAY:-0}" &
  wait $!
fi
exit "$code"
