#!/usr/bin/env bash
# The whole study, from the repository's root: bash docs/results/camvid_gain/run.sh. It needs data/camvid (SegNet split) and
# pretrained/resnet18.pth. Stopped, it resumes when it is started again. JOBS runs at a time, one thread each.
set -euo pipefail
export OMP_NUM_THREADS=1
HERE=docs/results/camvid_gain OUT=work_dirs/camvid_gain METHODS=configs/_base_/methods
JOBS=${JOBS:-2} SEEDS=${SEEDS:-10,11,12,13,14,15}

awk 'NR % 8 == 1' data/camvid/train.txt > data/camvid/train_8th.txt
python scripts/pack_dataset.py $HERE/b0_few/hmkd.py --out data/camvid_packed_gain --splits train val unlabelled
python scripts/pack_dataset.py $HERE/b0_all/hmkd.py --out data/camvid_packed_all

train() {  # NAME CONFIG OPTIONS
    [ -f $OUT/"$1"/student.safetensors ] ||
        python train_kd.py "$2" --work-dir $OUT/"$1" --resume auto --cfg-options "${@:3}"
}
compare() {  # PAIR ITERATIONS ARGUMENTS
    python scripts/compare.py $HERE/"$1"/hmkd.py --budget-iters "$2" --jobs "$JOBS" --out $OUT/"$1" \
        --seeds "$SEEDS" "${@:3}" --cfg-options log.interval=200
}
train teacher_r18 $HERE/teacher_r18.py data.packed=data/camvid_packed_all
compare b0_few 4000 --methods $METHODS/hmkd.py $HERE/methods/*.py --configs $HERE/b0_few/{kd_labelled,self_training}.py
for seed in ${SEEDS//,/ }; do  # the crops of a seed are its own, so are the kept outputs
    train b0_all_fine/runs/student_alone/seed_"$seed" $HERE/b0_all/alone.py train.seed="$seed"
    train b0_all_fine/runs/hmkd_fine/seed_"$seed" $HERE/b0_all/hmkd_fine.py train.seed="$seed" teacher.cache=$OUT/cache
    rm -rf $OUT/cache
done
train teacher_b0 $HERE/b0_all/hmkd.py schedule.max_iters=8000
compare r18_imagenet_few 2000 --methods $METHODS/hmkd.py $HERE/methods/*.py
compare r18_imagenet_all 2000 --methods $METHODS/hmkd.py $HERE/methods/*.py
for pair in b0_few b0_all_fine r18_imagenet_few; do
    python $HERE/endpoints.py $OUT/$pair $HERE/${pair}_endpoints.json
done
