# L = L_task + weight * mean (G(M * align(S)) - T)^2: published as 2e-5 on the sum, which is 2e-5 * 2048 * 64 * 64 here.
# On small crops or narrow teachers it is more than published: 2e-5 * C h w of the teacher's map is the weight.
distill = dict(type="mgd", weight=168.0, pairs=[("stage4", "stage4")], mask_ratio=0.75)
