student = dict(backbone="mit_b0", head="segformer", width=256, drop_path=0.1, pretrained="pretrained/mit_b0.pth")
