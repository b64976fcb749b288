# L = L_task + target * L_target + nontarget * L_nontarget, with the weights published for CIFAR-100 (CVPR 2022). The
# paper has none for segmentation.
distill = dict(type="dkd", target=1.0, nontarget=8.0, temperature=4.0)
