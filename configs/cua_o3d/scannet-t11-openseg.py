"""ScanNet, OpenSeg alone (Table 11); OpenScene's downloads of its features are read as they are."""

_base_ = ["scannet.py"]
_options_ = dict(teachers=("openseg",), uncertainty=None)

text_encoder = dict(model_name="ViT-L-14-336-quickgelu", weight="weights/clip_vit_l_14_336.safetensors")
