#!/usr/bin/env bash
# bash scripts/train.sh CONFIG [GPUS] [arguments of train_kd.py...]
# Trains on this machine with GPUS processes (default: one for each GPU; one where there is none).
#   bash scripts/train.sh configs/demo/hmkd.py
#   bash scripts/train.sh configs/hmkd/camvid_b4_r18.py 4 --resume auto
#   nohup bash scripts/train.sh configs/hmkd/camvid_b4_r18.py 4 > train.log &
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
launch train_kd.py "$@"
