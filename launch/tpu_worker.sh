#!/bin/bash
# One worker of a TPU pod: starts the command in the background, so that a lost connection does not end it.
# launch/tpu_pod.sh calls it; nothing is to be set here.
#
#   bash launch/tpu_worker.sh start COMMAND    its output goes to train.log
#   bash launch/tpu_worker.sh status           "worker running", "worker ended CODE" (launch/run_once.sh) or "worker lost"
#   bash launch/tpu_worker.sh stop             lets it save and end
set -u

alive() {
  [[ -f worker.pid ]] && kill -0 -- "-$(<worker.pid)" 2>/dev/null
}

stop() {
  alive || return 0
  # run_once.sh hands the signal on; the process's peers must not get it twice.
  kill -TERM "$(<worker.pid)" 2>/dev/null
  for ((second = 0; second < ${STOP_SECONDS:-300}; second++)); do
    alive || return 0
    sleep 1
  done
  kill -KILL -- "-$(<worker.pid)" 2>/dev/null
}

case ${1:-} in
  start)
    stop
    rm -f worker.code worker.pid
    # shellcheck disable=SC2016 # expanded by the inner shell
    setsid bash -c 'bash launch/run_once.sh bash -c "exec $1" & echo $$ >worker.pid
      child=$!
      trap "kill -TERM $child" TERM
      wait "$child"; code=$?
      while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
      echo "$code" >worker.code' worker "$2" >>train.log 2>&1 </dev/null &
    for ((tenth = 0; tenth < 100; tenth++)); do
      [[ -s worker.pid ]] && exit 0
      sleep 0.1
    done
    exit 1
    ;;
  status)
    if [[ -s worker.code ]]; then
      echo "worker ended $(<worker.code)"
    elif alive; then
      echo "worker running"
    else
      echo "worker lost"
    fi
    ;;
  stop) stop ;;
  *)
    echo "error: expected start, status or stop, got '${1:-}'" >&2
    exit 2
    ;;
esac
