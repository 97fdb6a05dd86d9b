"""Images of every kind, as features see them and as browsers do."""

import io

import numpy as np
import pytest
from PIL import Image

from fastbadge.errors import InputError
from fastbadge.label.features import hog, hog_and_colour, maker, pixels
from fastbadge.label.images import as_shown, opened


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, kind, **options
    )
    return file.getvalue()


def test_grey_values_of_12_bits_are_told_apart_and_shown():
    ramp_HW = np.linspace(0, 4095, 32 * 32).reshape(32, 32).astype(np.uint16)
    wide, narrow = file_of(ramp_HW), file_of((ramp_HW * (255 / 4095)).round().astype(np.uint8))
    for make in (pixels, hog, hog_and_colour):
        np.testing.assert_allclose(make([wide]), make([narrow]), atol=0.02)
    shown, kind = as_shown(wide)
    with Image.open(io.BytesIO(shown)) as image:
        assert (kind, image.mode, np.ptp(np.asarray(image))) == ("image/png", "L", 255)
    level = file_of(np.full((9, 9), 3000, dtype=np.uint16))
    assert np.ptp(pixels([level])) == 0


@pytest.mark.parametrize("kind", ["TIFF", "PPM"])
def test_what_browsers_do_not_know_is_shown_as_a_png_and_what_they_know_as_it_is(kind):
    noise_HW3 = np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)
    shown, found = as_shown(file_of(noise_HW3, kind))
    assert found == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(shown))), noise_HW3)
    for each in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        content = file_of(noise_HW3, each)
        assert as_shown(content) == (content, f"image/{each.lower()}")
    shown, _ = as_shown(file_of(Image.new("CMYK", (5, 5), (0, 90, 90, 0)), "TIFF"))
    assert Image.open(io.BytesIO(shown)).mode == "RGB"
    with pytest.raises(InputError, match="it is no image"):
        as_shown(b"<svg/>")


@pytest.mark.parametrize("grey", [0, 255])
def test_shapes_are_seen_through_transparency_black_ones_and_white_ones(grey):
    alpha_HW = np.zeros((40, 40), dtype=np.uint8)
    alpha_HW[10:30, 5:20] = 255
    image_HW4 = np.dstack([np.full((40, 40, 3), grey, dtype=np.uint8), alpha_HW])
    with opened(file_of(image_HW4)) as image:
        np.testing.assert_array_equal(
            np.asarray(image.convert("RGB"))[..., 0], np.where(alpha_HW, grey, 128)
        )
    for make in (pixels, hog, hog_and_colour):
        assert np.ptp(make([file_of(image_HW4)])) > 0.2
    palette = Image.fromarray(image_HW4).quantize()
    assert np.ptp(pixels([file_of(palette, transparency=int(palette.getpixel((0, 0))))])) > 0.2


def test_colour_stands_beside_the_histograms():
    image_HW3 = np.zeros((64, 48, 3), dtype=np.uint8)
    image_HW3[8:16, 6:12] = (255, 51, 0)  # the second of 8 x 8 squares, both ways
    (made_D,) = hog_and_colour([file_of(image_HW3)])
    np.testing.assert_array_equal(made_D[:576], hog([file_of(image_HW3)])[0])
    square_883 = made_D[576:].reshape(8, 8, 3)
    np.testing.assert_allclose(square_883[1, 1], [0.5, 0.1, 0], atol=1e-6)
    square_883[1, 1] = 0
    assert not square_883.any()
    assert maker("hog+colour") is hog_and_colour
