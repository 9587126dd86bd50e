"""What the pixels of a file are: every mode that PIL opens gives the right colors or is refused by its name."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from reproduce.config.schema import Dataset
from reproduce.data.datasets.image_file import UnreadableImage, read_image
from reproduce.data.pipeline.image_io import decode_image
from reproduce.data.pipeline.nvjpeg import read_encoded
from reproduce.data.prepare import verify

GRAY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOR = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def stored(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def png(color_type: int, bits: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of 16 x 16 pixels; `rows` are without their filter bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    length = len(rows) // 16
    filtered = b"".join(b"\0" + rows[row * length : (row + 1) * length] for row in range(16))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 16, 16, bits, color_type, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(filtered)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, content) for name, content in parts)


def tiff(values: np.ndarray, bits: int, photometric: int, order: str = "<", sample_format: int = 1) -> bytes:
    """A TIFF file of 16 x 16 gray values; `photometric` 0: zero is white; `sample_format` 2: signed."""
    data = values.astype(f"{order}u2" if bits > 8 else "u1").tobytes()
    if bits == 12:
        flat = values.ravel().astype(int)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    entries = [(256, 16), (257, 16), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 16)]
    entries += [(279, len(data)), (339, sample_format)]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, value in entries:
        is_long = tag in (273, 279)
        directory += struct.pack(f"{order}HHI", tag, 4 if is_long else 3, 1)
        directory += struct.pack(f"{order}I", value) if is_long else struct.pack(f"{order}HH", value, 0)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}I", 8 + len(data)) + data + directory + bytes(4)


DEEP = (GRAY.astype(np.uint16) * 257).astype(">u2")
RIGHT: dict[str, tuple[bytes, np.ndarray]] = {
    "16-bit gray PNG": (png(0, 16, DEEP.tobytes()), GRAY),
    "16-bit gray PNG with a transparent value": (png(0, 16, DEEP.tobytes(), (b"tRNS", b"\x01\x01")), GRAY),
    "16-bit gray and alpha PNG": (png(4, 16, np.stack([DEEP, DEEP[::-1]], axis=2).tobytes()), GRAY),
    "16-bit color PNG": (png(2, 16, (COLOR.astype(np.uint16) * 257).astype(">u2").tobytes()), COLOR),
    "16-bit gray TIFF": (tiff(GRAY * np.uint16(257), 16, 1), GRAY),
    "16-bit gray TIFF of the other byte order": (tiff(GRAY * np.uint16(257), 16, 1, ">"), GRAY),
    "16-bit gray TIFF with zero as white": (tiff(GRAY * np.uint16(257), 16, 0), 255 - GRAY),
    "12-bit gray TIFF": (tiff((GRAY * np.int64(4095) + 127) // 255, 12, 1), GRAY),
    "16-bit PGM": (b"P5 16 16 65535\n" + DEEP.tobytes(), GRAY),
    "2-bit gray PNG": (png(0, 2, bytes([0b00011011] * 64)), np.tile([0, 85, 170, 255], (16, 4)).astype(np.uint8)),
    "gray and alpha PNG": (stored(Image.fromarray(np.stack([GRAY, GRAY[::-1]], axis=2), "LA"), "PNG"), GRAY),
    "palette PNG with transparent entries": (
        png(3, 8, GRAY.tobytes(), (b"PLTE", COLOR.tobytes()), (b"tRNS", GRAY.tobytes()[::-1])),
        COLOR.reshape(256, 3)[GRAY],
    ),
    "palette and alpha TIFF": (stored(Image.fromarray(GRAY).convert("PA"), "TIFF"), GRAY),
    "RGBA PNG": (stored(Image.fromarray(np.dstack([COLOR, GRAY]), "RGBA"), "PNG"), COLOR),
    "CMYK TIFF": (stored(Image.fromarray(COLOR).convert("CMYK"), "TIFF"), COLOR),
    "bilevel PNG": (stored(Image.fromarray(GRAY > 127), "PNG"), ((GRAY > 127) * 255).astype(np.uint8)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("case", RIGHT)
def test_every_mode_gives_its_own_colors(case: str) -> None:
    content, expected = RIGHT[case]
    expected = expected if expected.ndim == 3 else np.repeat(expected[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(np.asarray(read_image("there", content)), expected)
    pixels = torch.from_numpy(expected.copy()).permute(2, 0, 1)
    assert torch.equal(decode_image(content, "there"), pixels)
    assert torch.equal(read_encoded(content, "there")[0], pixels)


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        (stored(Image.fromarray(GRAY.astype(np.float32) / 255), "TIFF"), "F"),
        (stored(Image.fromarray(GRAY.astype(np.int32)), "TIFF"), "I"),
    ],
)
def test_values_of_unknown_range_are_refused_by_name(content: bytes, mode: str) -> None:
    for decode in (lambda: read_image("a.png", content), lambda: decode_image(content, "a.png")):
        with pytest.raises(UnreadableImage, match=rf"a\.png \(its pixels have PIL's mode {mode} in a TIFF file"):
            decode()


def test_signed_pixels_are_refused() -> None:
    """PIL takes -1 for 255, which is white."""
    content = tiff(GRAY, 8, 1, sample_format=2)
    for decode in (lambda: read_image("a.png", content), lambda: decode_image(content, "a.png")):
        with pytest.raises(UnreadableImage, match=r"a\.png \(its pixels are signed numbers, whose range is unknown"):
            decode()
    np.testing.assert_array_equal(np.asarray(read_image("a.png", tiff(GRAY, 8, 1)))[..., 0], GRAY)


def test_a_damaged_avif_is_unreadable() -> None:
    """PIL raises RuntimeError there, as for nothing else."""
    content = bytearray(stored(Image.fromarray(COLOR), "AVIF"))
    pixels = content.index(b"mdat") + 4
    content[pixels:] = bytes(len(content) - pixels)
    with pytest.raises(RuntimeError), Image.open(io.BytesIO(content)) as image:
        image.load()
    for decode in (read_image, lambda path, content: read_encoded(content, path)):
        with pytest.raises(UnreadableImage, match=r"a\.jpg \("):
            decode("a.jpg", bytes(content))


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, RuntimeError, IndexError, ZeroDivisionError])
def test_whatever_pil_raises_names_the_file(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error("of a plugin")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UnreadableImage, match=r"a\.jpg \(of a plugin\)"):
        read_image("a.jpg", b"")
    with pytest.raises(UnreadableImage, match=r"a\.jpg \(of a plugin\)"):
        read_encoded(b"\xff\xd8\xff\xff\xd9", "a.jpg")
    assert not _verified(tmp_path, lambda path: path.write_bytes(b"no picture"))
    assert "1.png (of a plugin)" in capsys.readouterr().out


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_no_fault_of_the_file_is_passed_on(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(error):
        read_image("a.jpg", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("padding", [0, 70_000], ids=["", "after a large color profile"])
def test_stored_pixels_whatever_the_orientation(orientation: int, padding: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = stored(Image.fromarray(COLOR[:, :12]), "JPEG", exif=exif, quality=95)
    segment = b"\xff\xe2" + struct.pack(">H", 35_002) + b"ICC?" + bytes(34_996)
    content = content[:2] + segment * (padding // 35_000) + content[2:]
    plain = stored(Image.fromarray(COLOR[:, :12]), "JPEG", quality=95)
    expected = torch.from_numpy(np.array(read_image("there", plain))).permute(2, 0, 1)
    assert torch.equal(decode_image(content, "there"), expected)
    assert torch.equal(torch.from_numpy(np.array(read_image("there", content))).permute(2, 0, 1), expected)


@pytest.mark.parametrize(("content", "fine"), [(RIGHT["16-bit gray PNG"][0], True), (b"", False)])
def test_verification_reads_as_runs_do(tmp_path: Path, content: bytes, fine: bool) -> None:
    assert _verified(tmp_path, lambda path: path.write_bytes(content)) is fine


def test_verification_refuses_what_runs_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    float_file = stored(Image.fromarray(GRAY.astype(np.float32)), "TIFF")
    assert not _verified(tmp_path, lambda path: path.write_bytes(float_file))
    assert "PIL's mode F" in capsys.readouterr().out


def _verified(root: Path, write: Callable[[Path], object]) -> bool:
    for name in ("train/a/1.png", "val/a/1.png"):
        path = root / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    return verify.verify_dataset(root, Dataset("own", "own", "folders", "own", "train", "val"), None, "all", print)
