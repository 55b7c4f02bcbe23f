#!/bin/bash
# Installs the project into .venv of its folder; on Ubuntu also a Python that is new enough.
#
# usage: bash launch/install.sh EXTRAS      such as tpu,gcs or cuda,gcs
set -eu

python=$(command -v python3.11 python3.12 python3.13 | head -n 1 || true)
if [[ -z $python ]]; then
  sudo apt-get update -qq
  sudo apt-get install -y -qq python3.11 python3.11-venv
  python=python3.11
fi
[[ -x .venv/bin/python ]] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet -c constraints.txt ".[$1]"
.venv/bin/python -m pip install --quiet --no-deps --ignore-requires-python promptsource==0.2.3
