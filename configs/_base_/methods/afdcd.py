# L = L_task + kd * L_kd + feature * L_feature + contrast * L_contrast, as published for Cityscapes: the 2e-6 on the sum
# is 2e-6 * 2048 * 64 * 128 on the mean. For CamVid: contrast=0.01, pool=1 and the same weight on the mean.
distill = dict(
    type="afdcd", kd=1.0, feature=33.5, contrast=0.005, pair=("stage4", "stage4"),
    temperature=1.0, mask_ratio=0.75, tau=0.07, groups=16, patch=4, pool=4,
)  # fmt: skip
