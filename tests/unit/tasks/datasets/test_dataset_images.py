"""Decoding by content, resizing, and refusing what is not a whole image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.datasets.images import UnreadableImageError, decode_image


def encoded(pixels, mode=None, image_format="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, image_format, **options)
    return buffer.getvalue()


def test_pixels_of_a_lossless_image_come_out_exactly():
    pixels = np.random.RandomState(0).randint(0, 256, (5, 5, 3), dtype=np.uint8)
    for image_format, options in (("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})):
        image = decode_image(encoded(pixels, image_format=image_format, **options), size=5)
        torch.testing.assert_close(image, torch.tensor(pixels).permute(2, 0, 1) / 255, rtol=0, atol=0)


def test_area_resize_is_the_mean_over_the_pixels_covered():
    pixels = np.random.RandomState(0).randint(0, 256, (8, 8, 3), dtype=np.uint8)
    image = decode_image(encoded(pixels), size=2, resize="area")
    means = torch.tensor(pixels / 255).permute(2, 0, 1).unfold(1, 4, 4).unfold(2, 4, 4).mean((-1, -2))
    torch.testing.assert_close(
        image.double(), means, rtol=0, atol=1.001 / 255
    )  # rows, then columns, are rounded


def test_bicubic_resize_is_antialiased():
    checkers = np.indices((64, 64)).sum(0) % 2 * 255
    image = decode_image(encoded(checkers.astype(np.uint8)), size=16)
    assert (image - 0.5).abs().max() < 0.1  # without antialiasing it would be black or white


def test_the_centred_square_of_an_oblong_image_is_kept():
    pixels = np.zeros((4, 12, 3), dtype=np.uint8)
    pixels[:, 4:8] = 255
    assert (decode_image(encoded(pixels), size=4) == 1).all()
    assert (decode_image(encoded(pixels.transpose(1, 0, 2).copy()), size=4) == 1).all()


def test_grey_palette_and_transparent_images_become_rgb():
    grey = decode_image(encoded(np.full((4, 4), 51, dtype=np.uint8)), size=4)
    assert grey.shape == (3, 4, 4) and (grey == 0.2).all()
    palette = Image.new("RGB", (4, 4), (255, 0, 51)).convert("P", palette=Image.Palette.ADAPTIVE)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=b"\x80")
    assert decode_image(buffer.getvalue(), size=4)[:, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    see_through = np.full((4, 4, 4), (255, 0, 51, 9), dtype=np.uint8)
    assert decode_image(encoded(see_through), size=4)[:, 0, 0].tolist() == pytest.approx([1, 0, 0.2])


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_truncated_images_are_refused(image_format):
    data = encoded(
        np.random.RandomState(0).randint(0, 256, (32, 32, 3), dtype=np.uint8), image_format=image_format
    )
    with pytest.raises(UnreadableImageError, match="not a complete image"):
        decode_image(data[: len(data) // 2], size=8)


def test_what_is_no_image_and_what_has_16_bits_is_refused():
    with pytest.raises(UnreadableImageError, match="not a complete image"):
        decode_image(b"<html>404</html>", size=8)
    with pytest.raises(UnreadableImageError, match=r"8 bits per channel are wanted, this has mode I;16"):
        decode_image(encoded(np.full((4, 4), 60000, dtype=np.uint16)), size=4)
