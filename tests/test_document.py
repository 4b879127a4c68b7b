from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from racm3 import document
from racm3.document import Document, Hole, Image, Text
from racm3.errors import DocumentError, FormatError, ImageError

RED, BLUE = (255, 0, 0), (0, 0, 255)
ORIENTATION = 0x0112  # the EXIF tag


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(picture: PIL.Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


# Text and holes


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_blank_text_is_refused(text: str) -> None:
    with pytest.raises(DocumentError, match="the text is empty"):
        Text(text)


@pytest.mark.parametrize("text", [None, 3, b"fox"])
def test_text_is_a_string(text: object) -> None:
    with pytest.raises(DocumentError, match=f"but {type(text).__name__} was given"):
        Text(text)  # type: ignore[arg-type]


def test_what_is_hidden_of_a_text_takes_the_blank_before_it() -> None:
    text = Text("a red fox in the snow", hidden=(2, 9))
    assert (text.around, text.visible) == (("a", " in the snow"), "a in the snow")
    assert Text("a fox in snow", hidden=(5, 5)).around == ("a fox", " in snow")  # nothing there yet
    assert Text("two foxes", hidden=(0, 3)).around == ("", " foxes")
    assert Text("a fox ").visible == "a fox "
    assert Document.of(text, Hole("image")).text == "a in the snow"


@pytest.mark.parametrize(
    ("hidden", "message"), [((2, 9), "within the text's 5"), ((3, 2), "within"), ((0, 5), "all of the text is hidden")]
)
def test_what_can_be_hidden_of_a_text(hidden: tuple[int, int], message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        Text("a fox", hidden=hidden)


def test_a_hole_has_one_of_two_modalities() -> None:
    with pytest.raises(DocumentError, match="'text' or 'image', but 'sound' was given"):
        Hole("sound")  # type: ignore[arg-type]


# Image: what is accepted


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        [[0, 0, 0]],
        None,
    ],
)
def test_pixels_of_another_shape_or_type_are_refused(array: object) -> None:
    with pytest.raises(ImageError, match=r"\(H, W, 3\) uint8 RGB array"):
        Image(array)  # type: ignore[arg-type]


@pytest.mark.parametrize("mask", [np.zeros((4, 5), bool), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 1), bool)])
def test_a_mask_is_bool_and_of_the_pictures_size(mask: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"bool array of shape \(4, 4\)"):
        Image(pixels(4, 4), mask)


def test_boxes_are_hidden_beside_what_is() -> None:
    image = Image(pixels(4, 6)).hiding((0, 0, 2, 1)).hiding((4, 2, 2, 2), (5, 0, 1, 1))
    expected = np.zeros((4, 6), dtype=bool)
    expected[0, :2] = expected[2:, 4:] = expected[0, 5] = True
    assert image == Image(pixels(4, 6), expected)
    for box in ((-1, 0, 2, 2), (5, 0, 2, 2), (0, 0, 0, 2)):
        with pytest.raises(ImageError, match="is not inside the picture, which is 6 x 4 px"):
            image.hiding(box)


def test_images_are_equal_by_content() -> None:
    mask = np.eye(4, dtype=bool)
    assert Image(pixels(4, 4)) == Image(pixels(4, 4))
    assert hash(Image(pixels(4, 4))) == hash(Image(pixels(4, 4)))
    assert Image(pixels(4, 4)) != Image(pixels(4, 4, seed=1))
    assert Image(pixels(4, 4), mask) == Image(pixels(4, 4), mask.copy())
    assert Image(pixels(4, 4), mask) != Image(pixels(4, 4), ~mask)
    assert Image(pixels(4, 4), mask) != Image(pixels(4, 4))
    assert Image(pixels(4, 4)) != "a picture"


# Image: reading


def test_a_path_a_string_bytes_and_a_pil_image_are_read_alike(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(pixels(5, 7))
    path = tmp_path / "picture.png"
    picture.save(path)
    for source in (path, str(path), path.read_bytes(), picture):
        assert np.array_equal(Image.open(source).pixels, pixels(5, 7))


@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_png_gives_back_the_same_picture(height: int, width: int, seed: int) -> None:
    image = Image(pixels(height, width, seed))
    assert Image.open(image.png()) == image


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"there is no file .*nowhere\.png; check the path"):
        Image.open(tmp_path / "nowhere.png")


def test_a_folder_is_not_a_picture(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a folder; give the path of one picture"):
        Image.open(tmp_path)


@pytest.mark.parametrize("data", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n"])
def test_what_is_not_a_picture_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(ImageError, match="not a picture that can be read|cannot be read as a picture"):
            Image.open(source)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_picture_is_refused(format: str, kept: float) -> None:
    data = encoded(PIL.Image.fromarray(pixels(64, 64)), format)
    with pytest.raises(ImageError):
        Image.open(data[: int(kept * len(data))])


@pytest.mark.filterwarnings("ignore:::PIL")  # about damaged tags, and sizes that are damaged into huge ones
@given(data=st.data())
def test_damaged_bytes_give_a_picture_or_the_named_error(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]))
    whole = bytearray(encoded(PIL.Image.fromarray(pixels(8, 8)), format))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        Image.open(bytes(whole))
    except ImageError:
        pass


def test_a_pil_image_whose_file_is_truncated_is_refused() -> None:
    data = encoded(PIL.Image.fromarray(pixels(64, 64)))
    with pytest.raises(ImageError):
        Image.open(PIL.Image.open(io.BytesIO(data[: len(data) // 2])))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    # The tag says where the stored row 0 and column 0 belong; see the EXIF standard, "Orientation".
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:, :16], upright[:8, 16:] = RED, BLUE
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(PIL.Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert np.array_equal(Image.open(data).pixels, upright)


def test_transparency_is_laid_on_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)]
    opened = Image.open(encoded(PIL.Image.fromarray(rgba)))
    assert opened.pixels[0].tolist() == [[255, 0, 0], [255, 255, 255], [127, 127, 127]]


def test_a_transparent_colour_of_a_palette_is_laid_on_white() -> None:
    picture = PIL.Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putdata([0, 1])
    assert Image.open(encoded(picture, transparency=0)).pixels[0].tolist() == [[255, 255, 255], [0, 0, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
def test_every_mode_of_pil_becomes_rgb(mode: str) -> None:
    opened = Image.open(PIL.Image.new(mode, (3, 2)))
    assert opened.pixels.shape == (2, 3, 3)


def test_grey_stays_the_same_grey() -> None:
    assert Image.open(PIL.Image.new("L", (1, 1), 77)).pixels.tolist() == [[[77, 77, 77]]]


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    picture = PIL.Image.fromarray(np.full((1, 1), 0x8000, np.uint16))
    assert Image.open(encoded(picture)).pixels.tolist() == [[[128, 128, 128]]]


def test_reading_leaves_the_given_pil_image_alone() -> None:
    picture = PIL.Image.fromarray(pixels(4, 4))
    opened = Image.open(picture)
    opened.pixels[:] = 0
    assert np.array_equal(np.array(picture), pixels(4, 4))


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MAX_PIXELS", 99)
    data = encoded(PIL.Image.fromarray(pixels(10, 10)))
    with pytest.raises(ImageError, match="10 x 10 pixels; at most 99 are read"):
        Image.open(data[: len(data) // 2])  # truncated, which only decoding would notice


def test_a_decompression_bomb_is_refused() -> None:
    bomb = encoded(PIL.Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with pytest.raises(ImageError, match="20000 x 20000 pixels|too many pixels"):
        Image.open(bomb)


def test_large_pictures_are_read_or_refused_in_our_own_words(capfd: pytest.CaptureFixture[str]) -> None:
    document.formats.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        large = encoded(PIL.Image.new("L", (10_000, 9_000)), "JPEG")
        assert Image.open(large).pixels.shape == (4_500, 5_000, 3)
        with pytest.raises(ImageError, match=r"too many pixels to be opened \(.*\); scale it down"):
            Image.open(encoded(PIL.Image.new("L", (20_000, 9_000)), "JPEG"))
    assert not caught
    assert capfd.readouterr().err == ""


# Image: formats and grey of more than 8 bits


def tiff(array: np.ndarray) -> bytes:
    return encoded(PIL.Image.fromarray(array), "TIFF")


@pytest.mark.parametrize(
    ("format", "mode"),
    [
        *(("AVIF", "RGB"), ("JPEG2000", "RGB"), ("TGA", "RGBA"), ("DDS", "RGB"), ("ICO", "RGBA"), ("PPM", "RGB")),
        *(("PCX", "RGB"), ("SGI", "RGB"), ("QOI", "RGB"), ("ICNS", "RGBA"), ("DIB", "RGB"), ("MSP", "1"), ("XBM", "1")),
    ],
)
def test_what_pillow_reads_is_read(format: str, mode: str) -> None:
    given = PIL.Image.new(mode, (32, 32), (200, 60, 60) if mode.startswith("RGB") else 1)
    opened = Image.open(encoded(given, format))
    np.testing.assert_allclose(opened.pixels.mean((0, 1)), np.array(given.convert("RGB")).mean((0, 1)), atol=4)


def test_a_photoshop_picture_is_read() -> None:
    channels = b"".join(bytes([value]) * 6 for value in (200, 60, 10))
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 2, 3, 8, 3)
    assert Image.open(header + struct.pack(">IIIH", 0, 0, 0, 0) + channels).pixels.tolist() == [[[200, 60, 10]] * 3] * 2


@pytest.mark.parametrize(
    ("head", "title", "cure"),
    [
        (b"\xff\x0a", "JPEG XL", "convert it to PNG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC", "install racm3[heif]"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript", "convert it to PNG"),
    ],
)
def test_a_format_that_is_not_read_is_named(
    head: bytes, title: str, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "formats", lambda: document.FORMATS)  # as without the extra
    (tmp_path / "a.png").write_bytes(head + bytes(50))
    for source in (head + bytes(50), tmp_path / "a.png"):
        with pytest.raises(FormatError, match=f"its format is {title}; {re.escape(cure)}"):
            Image.open(source)


def test_heic_is_read_with_its_extra() -> None:
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(PIL.Image.new("RGB", (64, 64), (200, 60, 60))).save(buffer, quality=90)
    np.testing.assert_allclose(Image.open(buffer.getvalue()).pixels.mean((0, 1)), (200, 60, 60), atol=4)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_of_a_png_is_white(bits: int) -> None:
    """Written by hand: Pillow writes no PNG of 2 and 4 bits of grey. Black is transparent, the other pixel is not."""
    row = (
        bytes(2) + b"\xff\xff"
        if bits == 16
        else bytes([0, 255])
        if bits == 8
        else bytes([((1 << bits) - 1) << (8 - 2 * bits)])
    )
    assert Image.open(png(2, 1, row, bits, 0, bytes(2))).pixels[0, :, 0].tolist() == [255, 255]
    top = struct.pack(">H", (1 << bits) - 1)
    assert Image.open(png(2, 1, row, bits, 0, top)).pixels[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_colour_of_a_png_is_white(bits: int) -> None:
    wide = struct.Struct(f">6{'B' if bits == 8 else 'H'}")
    scale = 1 if bits == 8 else 257
    row = wide.pack(*(value * scale for value in (10, 20, 30, 40, 50, 60)))
    clear = struct.pack(">3H", *(value * scale for value in (10, 20, 30)))
    assert Image.open(png(2, 1, row, bits, 2, clear)).pixels[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def png(width: int, height: int, row: bytes, bits: int, colour: int, clear: bytes) -> bytes:
    """A PNG of equal rows, with a transparent colour."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"tRNS", clear), (b"IDAT", zlib.compress((b"\0" + row) * height)), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("values", "grey"),
    [
        (np.array([[0, 128, 65535]], np.int32), [0, 0, 255]),
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0, 77, 255]], np.int32), [0, 77, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 77.9, 255]], np.float32), [0, 77, 255]),
        (np.array([[0, 256, 65535]], np.float32), [0, 1, 255]),
    ],
)
def test_grey_of_32_bits_is_scaled(values: np.ndarray, grey: list[int]) -> None:
    assert Image.open(tiff(values)).pixels[0, :, 0].tolist() == grey
    assert Image.open(PIL.Image.fromarray(values)).pixels[0, :, 2].tolist() == grey


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-1, 5]], np.int32),
        np.array([[0, 65536]], np.int32),
        np.array([[-0.5, 1]], np.float32),
        np.array([[0, np.inf]], np.float32),
        np.array([[0, 1e9]], np.float32),
        np.array([[np.nan, 1]], np.float32),
    ],
)
def test_values_without_a_scale_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ImageError, match="what is black and what is white|are no numbers"):
        Image.open(tiff(values))


def raw_tiff(bits: int, data: bytes, width: int, photometric: int, sample_format: int) -> bytes:
    """A TIFF of one row of grey."""
    entries = [(256, 3, width), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 134)]
    entries += [(277, 3, 1), (278, 3, 1), (279, 4, len(data)), (339, 3, sample_format)]
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries) + bytes(4) + data


@pytest.mark.parametrize(
    ("bits", "data", "photometric", "kind", "grey"),
    [
        (16, struct.pack("<2H", 0, 65535), 0, 1, [255, 0]),  # white is zero
        (8, bytes([0, 255]), 0, 1, [255, 0]),
        (32, struct.pack("<2f", 0, 1), 0, 3, [255, 0]),
        (12, bytes([0x80, 0x0F, 0xFF]), 1, 1, [128, 255]),
        (8, bytes([0, 100]), 1, 2, [0, 100]),  # signed, without anything below zero
        (16, struct.pack("<2h", 0, 32767), 1, 2, [0, 127]),
    ],
)
def test_unusual_tiffs(bits: int, data: bytes, photometric: int, kind: int, grey: list[int]) -> None:
    assert Image.open(raw_tiff(bits, data, 2, photometric, kind)).pixels[0, :, 0].tolist() == grey


@pytest.mark.parametrize(
    ("bits", "data"), [(8, b"\0\xff"), (16, struct.pack("<2h", -1, 5)), (32, struct.pack("<2i", -1, 5))]
)
def test_a_signed_tiff_below_zero_is_refused(bits: int, data: bytes) -> None:
    with pytest.raises(ImageError, match="what is black and what is white"):
        Image.open(raw_tiff(bits, data, 2, 1, 2))


def test_a_dark_16_bit_graymap_stays_dark() -> None:
    assert Image.open(b"P5 2 1 65535\n" + struct.pack(">2H", 200, 65535)).pixels[0, :, 0].tolist() == [0, 255]
    assert Image.open(b"P5 2 1 65535\n" + struct.pack(">2H", 200, 250)).pixels[0, :, 0].tolist() == [0, 0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "I;16", "F", "CMYK"])
def test_bands_change_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = PIL.Image.fromarray(pixels(13, 7)).convert("L" if mode == "I;16" else mode.replace("LA", "RGBA"))
    if mode in ("I;16", "LA"):
        picture = picture.convert(mode)
    whole = Image.open(picture)
    monkeypatch.setattr(document, "BAND_PIXELS", 20)
    assert Image.open(picture) == whole


@pytest.mark.parametrize("format", ["JPEG", "JPEG2000"])
def test_a_jpeg_of_too_many_pixels_is_scaled_down_while_it_is_decoded(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(PIL.Image.fromarray(pixels(64, 48)).resize((480, 640)), format)
    monkeypatch.setattr(document, "MAX_PIXELS", 20_000)
    assert Image.open(data).pixels.shape == (160, 120, 3)
    monkeypatch.setattr(document, "MAX_PIXELS", 200)
    with pytest.raises(ImageError, match="60 x 80 pixels; at most 200 are read"):
        Image.open(data)


# Image: resizing


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 100), (100, 40), (1, 1), (3, 500)])
def test_resized_is_square(height: int, width: int) -> None:
    image = Image(pixels(height, width), np.zeros((height, width), bool))
    small = image.resized(16)
    assert small.pixels.shape == (16, 16, 3)
    assert small.mask is not None
    assert small.mask.shape == (16, 16)


def test_resized_to_the_same_size_changes_nothing() -> None:
    image = Image(pixels(8, 8))
    assert image.resized(8) is image


def test_resized_keeps_the_centre_and_the_mask_follows() -> None:
    wide = Image(pixels(10, 30), pixels(10, 30, seed=1)[:, :, 0] > 127)
    assert wide.mask is not None
    assert wide.resized(10) == Image(wide.pixels[:, 10:20], wide.mask[:, 10:20])
    tall = Image(wide.pixels.transpose(1, 0, 2), wide.mask.T)
    assert tall.resized(10) == Image(tall.pixels[10:20], tall.mask[10:20])


def test_resized_mask_hides_the_same_part_of_the_picture() -> None:
    mask = np.zeros((64, 64), bool)
    mask[16:32, 32:48] = True
    small = Image(pixels(64, 64), mask).resized(8).mask
    expected = np.zeros((8, 8), bool)
    expected[2:4, 4:6] = True
    assert np.array_equal(small, expected)


# Document


def test_of_turns_strings_into_text() -> None:
    assert Document.of("a fox", Hole("image")).parts == (Text("a fox"), Hole("image"))


def test_parts_may_be_given_as_a_list() -> None:
    assert Document([Text("a fox")]).parts == (Text("a fox"),)  # type: ignore[arg-type]


def test_an_empty_document_is_refused() -> None:
    with pytest.raises(DocumentError, match="at least one part"):
        Document.of()


def test_a_part_of_another_type_is_refused() -> None:
    with pytest.raises(DocumentError, match="a Text, an Image or a Hole, but int was given"):
        Document.of("a fox", 3)  # type: ignore[arg-type]


def test_holes_are_holes_and_what_is_partly_hidden() -> None:
    whole, masked = Image(pixels(2, 2)), Image(pixels(2, 2), np.eye(2, dtype=bool))
    assert Document.of("a", Hole("image"), whole, masked, Hole("text")).holes == (1, 3, 4)
    assert Document.of(Text("a fox", hidden=(2, 5)), whole).holes == (0,)


def test_text_and_images_in_their_order() -> None:
    first, second = Image(pixels(2, 2)), Image(pixels(2, 2, seed=1))
    mixed = Document.of("a fox", first, "in the snow", second)
    assert mixed.text == "a fox in the snow"
    assert mixed.images == (first, second)
    assert Document.of(first).text is None
    assert Document.of("a fox").images == ()


def test_only_keeps_one_modality_without_holes() -> None:
    picture = Image(pixels(2, 2))
    mixed = Document.of("a fox", picture, Hole("text"), Hole("image"))
    assert mixed.only("text") == Document.of("a fox")
    assert mixed.only("image") == Document.of(picture)
    assert Document.of("a fox", Hole("image")).only("image") is None


def test_filled_replaces_parts_and_leaves_the_request_alone() -> None:
    request = Document.of("a fox", Hole("image"), Hole("text"))
    picture = Image(pixels(2, 2))
    answer = request.filled({1: picture, 2: Text("in the snow")})
    assert answer == Document.of("a fox", picture, "in the snow")
    assert answer.holes == ()
    assert request.holes == (1, 2)
