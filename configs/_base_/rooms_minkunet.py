"""A MinkUNet about as wide and as fast as the SpUNet of rooms.py, for whoever takes it as a base."""

backbone = dict(
    _delete_=True,
    type="MinkUNet14A",
    in_channels=6,
    out_channels=0,
    planes=(16, 32, 48, 64, 64, 48, 32, 32),
    init_dim=16,
)
