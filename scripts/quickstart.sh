#!/usr/bin/env bash
# bash scripts/quickstart.sh
# From nothing to a distilled student on two CPU cores: makes an environment and a synthetic data set, trains a teacher,
# the student alone and the student by HMKD for the same iterations, evaluates all three.
# Results: work_dirs/quickstart/{table.md,curves.png,panel.png}. A second call goes on where the first one stopped.
set -euo pipefail
source "$(dirname "$0")/_environment.sh"
use_environment requirements.txt

out=work_dirs/quickstart
data=data/synthetic
python scripts/make_synthetic.py --out $data --train 210 --val 50 --size 96 128
head -n 200 $data/train.txt > $data/train_many.txt # the teacher's
tail -n 10 $data/train.txt > $data/train_few.txt   # the students': labels are few, and a teacher makes up for some
for run in teacher student hmkd; do
  echo "== $run"
  python train_kd.py "configs/demo/$run.py" --work-dir "$out/$run" --resume auto
  python eval.py "configs/demo/$run.py" "$out/$run/student.safetensors" --json "$out/$run/eval.json"
done
python scripts/report.py "$out"/{teacher,student,hmkd} --titles teacher "student alone" HMKD --out "$out"
