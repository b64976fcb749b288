# L = L_task + inter * L_inter + intra * L_intra: the authors' segmentation weights (NeurIPS 2022).
distill = dict(type="dist", inter=1.0, intra=1.0, temperature=1.0)
