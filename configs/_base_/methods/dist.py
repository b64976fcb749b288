# L = L_task + inter * L_inter + intra * L_intra, with the authors' weights for segmentation (NeurIPS 2022).
distill = dict(type="dist", inter=1.0, intra=1.0, temperature=1.0)
