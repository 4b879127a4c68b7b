from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from racm3 import document
from racm3.document import Document, Hole, Image, Text
from racm3.errors import DocumentError, ImageError

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
    with pytest.raises(ImageError, match="20000 x 20000 pixels|decompression bomb"):
        Image.open(bomb)


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
