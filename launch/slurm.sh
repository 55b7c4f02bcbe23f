#!/bin/bash
# Trains on GPU nodes of a SLURM cluster, one process per GPU, and starts again after failures and time limits.
#
#   sbatch launch/slurm.sh                  from the project's folder
#   tail -f flipped-JOB.log                 follow it
#   scancel --batch --signal=TERM JOB       save and put the job back into the queue; scancel JOB ends it
#
# To set: partition and account, nodes, GPUs and cores of a node, time;
#SBATCH --job-name=flipped
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=flipped-%j.log
#
# and, here or in the environment (sbatch --export=ALL,MODEL_DIR=…):
MODEL=${MODEL:-xl}                               # a file of gin/models
RECIPE=${RECIPE:-flipped}                        # a file of gin/recipes
MODEL_DIR=${MODEL_DIR:?a folder or bucket that all nodes see}
VOCAB_PATH=${VOCAB_PATH:?a SentencePiece model, such as T5\'s}
INITIAL_CHECKPOINT_PATH=${INITIAL_CHECKPOINT_PATH:?the checkpoint to start from, or None}
DATA_DIR=${DATA_DIR:?the rows, a folder of \'flipped data prepare\'}
PYTHON=${PYTHON:-.venv/bin/python}               # with the extra cuda; the same path on all nodes
MAX_RESTARTS=${MAX_RESTARTS:-20}                 # after failures; a time limit does not count
PAUSE=${PAUSE:-30}                               # seconds before a restart
# Flags for mesh, memory and speed, between spaces: `flipped plan --model xl --topology h100:8*2 --only train --dtype
# bfloat16` proposes them. float32 is the recipe of the 3B models, bfloat16 that of the 11B model and of all measured speeds.
read -ra SETTINGS <<<"${SETTINGS:---gin.FSDP=True --gin.REMAT=minimal --gin.MICROBATCHES=1 --gin.DTYPE=bfloat16 --gin.T5Config.attention=cudnn}"

set -u

# JAX takes three quarters of a GPU's memory where nothing else is said.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/flipped/xla}
# srun ends with the highest code of all processes: that of a mistake has to be higher than those of signals.
export MISTAKE_CODE=200

data=()
[[ $DATA_DIR != None ]] && data=(--data_dir="$DATA_DIR")

start() { # in a shell of its own, which srun replaces, so that signals reach it
  # Each process sees all GPUs of its node, so that NCCL can use its links, and takes the one of its local number. Cores
  # and memory are those near the process. A failure is left to the processes, which all hear of it; after --wait
  # seconds those that are left are ended.
  exec srun --kill-on-bad-exit=0 --wait=600 --distribution=block:cyclic \
    --gpu-bind=none --cpu-bind=cores --mem-bind=local \
    bash launch/run_once.sh "$PYTHON" train.py \
    --gin_file="gin/models/$MODEL.gin" --gin_file="gin/recipes/$RECIPE.gin" --gin_file=gin/runs/train.gin \
    --gin.MODEL_DIR="$MODEL_DIR" --gin.VOCAB_PATH="$VOCAB_PATH" \
    --gin.INITIAL_CHECKPOINT_PATH="$INITIAL_CHECKPOINT_PATH" "${data[@]}" "${SETTINGS[@]}"
}

stopped=""
step=""
# The time limit comes near, or somebody asks: srun hands the signal on, and the run saves.
trap 'stopped=1; [[ -n $step ]] && kill -TERM "$step" 2>/dev/null' TERM

restarts=0
while :; do
  start &
  step=$!
  [[ -n $stopped ]] && kill -TERM "$step" 2>/dev/null # it came before there was a step
  wait "$step"
  code=$?
  if [[ -n $stopped ]]; then
    wait "$step"
    code=$?
  fi
  case $code in
    0) echo "done" && exit 0 ;;
    "$MISTAKE_CODE") echo "not started again: the settings are wrong, or a disk is full (code 2)" && exit 2 ;;
  esac
  if [[ -n $stopped ]]; then
    echo "stopped; the job goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    exit
  fi
  if ((restarts >= MAX_RESTARTS)); then
    echo "given up after $restarts restarts (code $code)"
    exit "$code"
  fi
  restarts=$((restarts + 1))
  echo "failed (code $code); restart $restarts of $MAX_RESTARTS in $PAUSE s"
  sleep "$PAUSE"
done
