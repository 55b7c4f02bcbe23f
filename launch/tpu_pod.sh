#!/bin/bash
# Trains on a Cloud TPU pod: creates it, copies the project, starts all workers, and starts again until done.
#
#   bash launch/tpu_pod.sh run       all of the following, and again after failures and preemptions, until done
#   bash launch/tpu_pod.sh create    the pod
#   bash launch/tpu_pod.sh copy      the project's files to all workers, and install it there
#   bash launch/tpu_pod.sh start     train on all workers, in the background
#   bash launch/tpu_pod.sh follow    the log of worker 0, until Ctrl-C
#   bash launch/tpu_pod.sh status    one line for each worker
#   bash launch/tpu_pod.sh stop      save and end
#   bash launch/tpu_pod.sh delete    the pod
#
# It needs gcloud, logged in; run it from the project's folder. Set here or in the environment:
NAME=${NAME:-flipped-xl}                         # of the pod
ZONE=${ZONE:-us-east5-a}
ACCELERATOR=${ACCELERATOR:-v5p-64}               # names of v4 and v5p count cores: v5p-64 has 32 chips
VERSION=${VERSION:-v2-alpha-tpuv5}               # the machines' system; tpu-ubuntu2204-base for v4
CREATE_FLAGS=${CREATE_FLAGS:-}                   # such as --spot, --network=NAME
MODEL=${MODEL:-xl}                               # a file of gin/models
RECIPE=${RECIPE:-flipped}                        # a file of gin/recipes
MODEL_DIR=${MODEL_DIR:-gs://BUCKET/runs/flipped_xl}
VOCAB_PATH=${VOCAB_PATH:-gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model}
INITIAL_CHECKPOINT_PATH=${INITIAL_CHECKPOINT_PATH:-gs://t5-data/pretrained_models/t5x/t5_1_1_lm100k_xl/checkpoint_1100000}
DATA_DIR=${DATA_DIR:-gs://BUCKET/data}           # a folder of 'flipped data prepare'; None is the made-up rows
# Flags for mesh, memory and speed, between spaces: `flipped plan --model xl --topology v5p-64 --dtype bfloat16` says what
# they take.
# float32 is the recipe of the 3B models, bfloat16 that of the 11B model and of all plans.
SETTINGS=${SETTINGS:---gin.DTYPE=bfloat16}
PYTHON=${PYTHON:-.venv/bin/python}               # on the workers
INSTALL=${INSTALL:-bash launch/install.sh tpu,gcs}
MAX_RESTARTS=${MAX_RESTARTS:-20}                 # after failures; 'run' only
POLL=${POLL:-30}                                 # seconds between looks at the workers
GRACE=${GRACE:-200}                              # seconds in which the other workers may end after the first

set -u -o pipefail
# shellcheck disable=SC2206 # several flags in one variable
create_flags=($CREATE_FLAGS)
where=(--zone="$ZONE")

on_all() { # a command in the project's folder of each worker
  gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="cd flipped && $1"
}

create() {
  gcloud compute tpus tpu-vm create "$NAME" "${where[@]}" \
    --accelerator-type="$ACCELERATOR" --version="$VERSION" "${create_flags[@]}"
}

delete() {
  gcloud compute tpus tpu-vm delete "$NAME" "${where[@]}" --quiet
}

train_command() { # what each worker runs
  local command=("$PYTHON" train.py --gin_file="gin/models/$MODEL.gin" --gin_file="gin/recipes/$RECIPE.gin"
    --gin_file=gin/runs/train.gin --gin.MODEL_DIR="$MODEL_DIR" --gin.VOCAB_PATH="$VOCAB_PATH"
    --gin.INITIAL_CHECKPOINT_PATH="$INITIAL_CHECKPOINT_PATH")
  local settings
  read -ra settings <<<"$SETTINGS"
  [[ $DATA_DIR != None ]] && command+=(--data_dir="$DATA_DIR")
  printf '%q ' "${command[@]}" "${settings[@]}"
}

copy() {
  local archive
  archive=$(mktemp -d)/flipped.tgz
  git ls-files -co --exclude-standard | tar czf "$archive" -T - || return
  gcloud compute tpus tpu-vm scp "$archive" "$NAME:flipped.tgz" "${where[@]}" --worker=all || return
  rm -r "$(dirname "$archive")"
  gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all \
    --command="mkdir -p flipped && tar xzf flipped.tgz -C flipped && cd flipped && $INSTALL"
}

start() {
  on_all "bash launch/tpu_worker.sh start $(printf '%q' "$(train_command)")"
}

follow() {
  gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=0 --command="tail -n +1 -F flipped/train.log"
}

status() {
  on_all "bash launch/tpu_worker.sh status"
}

stop() {
  on_all "bash launch/tpu_worker.sh stop"
}

ready() {
  local state
  state=$(gcloud compute tpus tpu-vm describe "$NAME" "${where[@]}" --format='value(state)' 2>/dev/null)
  [[ $state == READY ]]
}

make_ready() { # a pod with the project, whatever is there now
  ready && [[ -n ${copied:-} ]] && return 0
  if ! ready; then
    delete 2>/dev/null # what a preemption has left
    create || return
  fi
  copy && copied=1
}

# Waits until all workers have ended, or one has failed; prints its verdict: done, mistake or failed. Workers that
# failed otherwise decide only after GRACE seconds: one of the others may have had the mistake and still be ending.
outcome() {
  local states ended_at="" failure='worker lost|worker ended ([13-9]|[1-9][0-9]+)$'
  while :; do
    if ! states=$(status 2>/dev/null); then # a worker cannot be reached
      ready || { echo failed && return; }
    elif grep -q 'worker ended 2$' <<<"$states"; then
      echo mistake && return
    elif ! grep -q 'worker running' <<<"$states" && [[ -n $states ]]; then
      grep -qE "$failure" <<<"$states" && echo failed && return
      echo "done" && return
    elif grep -qE 'worker lost|worker ended' <<<"$states"; then # the others should end too
      ended_at=${ended_at:-$SECONDS}
      ((SECONDS - ended_at > GRACE)) && echo failed && return
    fi
    sleep "$POLL"
  done
}

run() {
  local restarts=0 verdict log
  while :; do
    verdict=failed
    if make_ready && start; then
      set -m # a process group of its own, to end gcloud and its ssh together
      follow &
      log=$!
      set +m
      verdict=$(outcome)
      kill -TERM -- "-$log" 2>/dev/null
    fi
    case $verdict in
      done) echo "done: bash launch/tpu_pod.sh delete" && return 0 ;;
      mistake)
        echo "not started again: the settings are wrong, or a disk is full (code 2)"
        stop 2>/dev/null
        return 2
        ;;
    esac
    if ((restarts >= MAX_RESTARTS)); then
      echo "given up after $restarts restarts"
      return 1
    fi
    restarts=$((restarts + 1))
    echo "failed; restart $restarts of $MAX_RESTARTS in $POLL s"
    sleep "$POLL"
    stop 2>/dev/null
  done
}

case ${1:-} in
  run | create | copy | start | follow | status | stop | delete)
    if [[ $1 =~ ^(run|start)$ && "$MODEL_DIR$DATA_DIR" == *gs://BUCKET* ]]; then
      echo "error: MODEL_DIR and DATA_DIR: expected a bucket of yours, got $MODEL_DIR and $DATA_DIR" >&2
      exit 2
    fi
    "$1"
    ;;
  *)
    echo "error: expected run, create, copy, start, follow, status, stop or delete, got '${1:-}'" >&2
    exit 2
    ;;
esac
