# L = L_task + kd * L_kd + feature * L_feature + contrast * L_contrast, with the weights published for Cityscapes. There
# the feature weight is 2e-6 on a sum, which is 2e-6 * 2048 * 64 * 128 on our mean.
# For CamVid: contrast=0.01, pool=1 and the same feature weight.
distill = dict(
    type="afdcd", kd=1.0, feature=33.5, contrast=0.005, pair=("stage4", "stage4"),
    temperature=1.0, mask_ratio=0.75, tau=0.07, groups=16, patch=4, pool=4,
)  # fmt: skip
