#!/usr/bin/env bash
# bash scripts/quickstart.sh
# From nothing to a distilled student on two CPU cores: makes an environment and a synthetic data set, trains a teacher,
# the student alone, the student by HMKD, and by HMKD with unlabelled images too, for the same iterations; evaluates all.
# Results: work_dirs/quickstart/{index.html,table.md,curves.png,panel.png}. A second call resumes where the first one stopped.
set -euo pipefail
[ $# -eq 0 ] || { sed -n '2,5s/^# //p' "$0"; exit 2; }
source "$(dirname "$0")/_environment.sh"
use_environment requirements.txt

out=work_dirs/quickstart
# Many labelled images for the teacher; ten of other streets for the students, where a teacher is worth having.
python scripts/make_synthetic.py --out data/many --train 200 --val 50 --size 96 128
python scripts/make_synthetic.py --out data/few --train 10 --val 50 --size 96 128 --seed 1
python scripts/make_synthetic.py --out data/unlabelled --train 190 --val 1 --size 96 128 --seed 2  # labels are not read
for run in teacher student hmkd unlabelled; do
  echo "== $run"
  python train_kd.py "configs/demo/$run.py" --work-dir "$out/$run" --resume auto
  python eval.py "configs/demo/$run.py" "$out/$run/student.safetensors" --json "$out/$run/eval.json"
done
python scripts/report.py "$out"/{student,hmkd,unlabelled} --titles "student alone" HMKD "HMKD + unlabelled" \
  --images 2 --out "$out"
