"""Small real image files for the readers."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Encodes an image of one colour, without loss unless it is a JPEG."""

    def encode(
        color: tuple[int, int, int], image_format: str = "PNG", size: tuple[int, int] = (8, 8)
    ) -> bytes:
        buffer = io.BytesIO()
        lossless = {"lossless": True} if image_format == "WEBP" else {}
        Image.new("RGB", size, color).save(buffer, image_format, **lossless)
        return buffer.getvalue()

    return encode


@pytest.fixture
def write_class_folders(encode: Callable[..., bytes]) -> Callable[[Path, dict[str, int]], None]:
    """Writes {class name: number of images}; image i of the class numbered c has the colour (c, i, 7)."""

    def write(folder: Path, counts: dict[str, int]) -> None:
        for label, (name, count) in enumerate(counts.items()):
            (folder / name).mkdir(parents=True)
            for i in range(count):
                (folder / name / f"{i:03d}.png").write_bytes(encode((label, i, 7)))

    return write
