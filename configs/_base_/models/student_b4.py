student = dict(backbone="mit_b4", head="segformer", width=768, drop_path=0.1, pretrained="pretrained/mit_b4.pth")
