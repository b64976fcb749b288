# L = L_task + weight * mean (G(M * align(S)) - T)^2. The published weight is 2e-5 on a sum, which is
# 2e-5 * 2048 * 64 * 64 on our mean. For smaller crops or narrower teachers use 2e-5 * C * h * w of the teacher's map.
distill = dict(type="mgd", weight=168.0, pairs=[("stage4", "stage4")], mask_ratio=0.75)
