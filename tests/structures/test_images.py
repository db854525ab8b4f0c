"""Pictures as people have them: transparency, two colours, orientation, what is refused."""

import numpy as np
import pytest
from PIL import Image

from pointcept3m.structures.images import read_color, read_picture, read_with_alpha

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)


def test_what_is_transparent_lies_on_white_paper(tmp_path):
    alpha = np.zeros((6, 8), np.uint8)
    alpha[2:4] = 255
    alpha[5] = 128
    Image.fromarray(np.dstack([PHOTO, alpha])).save(tmp_path / "clear.png")
    Image.fromarray(np.dstack([PHOTO[..., 0], alpha])).save(tmp_path / "grey.png")
    for name, colors in (("clear", PHOTO), ("grey", PHOTO[..., :1].repeat(3, axis=2))):
        found = read_picture(tmp_path / f"{name}.png")
        assert np.array_equal(found[2:4], colors[2:4]) and (found[:2] == 255).all()
        np.testing.assert_allclose(found[5], (colors[5] * (128 / 255) + 255 * (127 / 255)), atol=1)
        assert np.array_equal(read_with_alpha(tmp_path / f"{name}.png")[..., 3], alpha)
    palette = Image.fromarray(PHOTO).convert("P")
    palette.save(tmp_path / "palette.png", transparency=int(np.asarray(palette)[0, 0]))
    assert (read_picture(tmp_path / "palette.png")[0, 0] == 255).all()


def test_two_colours_and_a_phone_held_upright(tmp_path):
    bits = PHOTO[..., 0] > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert np.array_equal(read_picture(tmp_path / "bits.png"), np.where(bits, 255, 0)[..., None].repeat(3, axis=2))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(PHOTO).save(tmp_path / "phone.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "phone.png"), np.rot90(PHOTO, -1))
    assert np.array_equal(read_color(tmp_path / "phone.png"), PHOTO)  # a frame lies as its camera's intrinsic says


def test_plain_pictures_are_as_they_are_and_others_refused(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "plain.png")
    assert np.array_equal(read_picture(tmp_path / "plain.png"), PHOTO)
    Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 200).save(tmp_path / "depth.png")
    with pytest.raises(ValueError, match="depth.png: wanted a picture of 8 bits a channel"):
        read_picture(tmp_path / "depth.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "plain.png").read_bytes()[:80])
    with pytest.raises(ValueError, match="cut.png"):
        read_picture(tmp_path / "cut.png")
