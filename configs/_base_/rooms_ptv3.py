"""Point Transformer V3 at a size that a CPU trains like the SpUNet of rooms.py, for whoever takes it as a base."""

backbone = dict(
    _delete_=True,
    type="PT-v3m1",
    in_channels=6,
    order=("z", "z-trans", "hilbert", "hilbert-trans"),
    stride=(2, 2, 2),
    enc_depths=(1, 1, 1, 1),
    enc_channels=(16, 32, 48, 64),
    enc_num_head=(1, 2, 3, 4),
    enc_patch_size=(64, 64, 64, 64),
    dec_depths=(1, 1, 1),
    dec_channels=(32, 32, 48),
    dec_num_head=(2, 2, 3),
    dec_patch_size=(64, 64, 64),
    mlp_ratio=2,
    drop_path=0.1,
)
