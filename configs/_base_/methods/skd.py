# L = L_task + pixel * L_pixel + pairwise * L_pairwise, as in the authors' code without its adversarial term.
distill = dict(type="skd", pixel=10.0, pairwise=1.0, pairs=[("head", "head")], nodes=2, temperature=1.0)
