"""Images from the digits and from folders of strangers; views, and what their transformation is."""

import struct
import zlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
Image = pytest.importorskip("PIL.Image")

from pyjepa.errors import PyjepaError  # noqa: E402
from pyjepa.training.image_config import Views  # noqa: E402
from pyjepa.training.images import ImageError, digits, folder, read_image  # noqa: E402
from pyjepa.training.views import two_views, view  # noqa: E402

STILL = {"shift": 0.0, "rotation": 0.0, "scale": 0.0, "shear": 0.0, "elastic": 0.0, "flip": 0.0, "brightness": 0.0}
NOTHING = Views(**STILL, colour=0.0, noise=0.0, padding="zeros")


def picture(path, size=(20, 16), colour=(200, 30, 60), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **options)
    return path


# ---- what is read ---------------------------------------------------------------------------------------------------


def test_the_digits():
    images = digits()
    assert images.pixels.shape == (1797, 1, 8, 8)
    assert images.pixels.dtype == np.uint8
    assert images.pixels.max() == 255
    assert images.classes == tuple("0123456789")
    assert np.bincount(images.labels).min() > 170
    assert images.fingerprint() == digits().fingerprint() != images.subset(np.arange(5)).fingerprint()


def test_a_folder_of_classes(tmp_path):
    picture(tmp_path / "red" / "a.png")
    picture(tmp_path / "red" / "b.JPG", colour=(255, 0, 0))
    picture(tmp_path / "blue" / "c.gif", colour=(0, 0, 255))
    picture(tmp_path / "blue" / "d.webp", mode="RGBA")
    (tmp_path / "blue" / ".hidden.png").write_bytes(b"nothing")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    images = folder(tmp_path, size=8)
    assert images.classes == ("blue", "red")
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.pixels.shape == (4, 3, 8, 8)
    assert images.pixels[0, :, 4, 4].tolist() == [0, 0, 255]
    assert images.pixels[2, :, 4, 4].tolist() == [200, 30, 60]


def test_a_folder_without_classes_in_grey(tmp_path):
    for name in ("b.png", "a.png"):
        picture(tmp_path / name, colour=(255, 255, 255) if name == "a.png" else (0, 0, 0))
    images = folder(tmp_path, size=5, channels=1)
    assert images.labels is None
    assert images.pixels.shape == (2, 1, 5, 5)
    assert images.pixels[:, 0, 0, 0].tolist() == [255, 0]


def test_images_are_turned_upright_and_cropped_in_the_middle(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    assert (read_image(tmp_path / "a.png", size=10) == 255).all()


def damaged(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def enormous(path):
    """A sound header that announces a picture of 16 gigapixels."""
    header = struct.pack(">IIBBBBB", 1 << 17, 1 << 17, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000)))):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)


def large(path):
    Image.new("1", (9000, 9000)).save(path)


def animated(path):
    frames = [Image.new("RGB", (4, 4), (i * 90, 0, 0)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("text.png", lambda p: p.write_text("no picture"), "text.png: not an image"),
        ("empty.jpg", lambda p: p.write_bytes(b""), "empty.jpg: not an image"),
        ("cut.png", damaged, "cut.png: cut short or damaged"),
        ("cut.jpeg", damaged, "cut.jpeg: cut short or damaged"),
        ("bomb.png", enormous, "bomb.png: more than 50,000,000 pixels"),
        ("large.png", large, "large.png: 9000x9000 pixels, more than 50,000,000"),
        ("moving.gif", animated, "moving.gif: 3 frames; an animation is no image"),
        ("deep.png", lambda p: Image.new("I;16", (4, 4)).save(p), "deep.png: mode I;16; expected 8 bits"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, write, message):
    picture(tmp_path / "good.png")
    write(tmp_path / name)
    with pytest.raises(ImageError, match=message) as caught:
        folder(tmp_path, size=8)
    assert isinstance(caught.value, PyjepaError)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no images in it or one level below"),
        (["cats/a.png", "cats/b.png"], r"one class only \(cats\); a probe needs two"),
        (["a.png", "cats/b.png"], r"images both in the folder \(a\.png\) and below it \(cats/\)"),
        (["deep/deeper/a.png"], "no images in it"),
    ],
)
def test_a_folder_that_cannot_be_learnt_from_is_named(tmp_path, files, message):
    for name in files:
        picture(tmp_path / name)
    with pytest.raises(ImageError, match=message):
        folder(tmp_path, size=8)


def test_a_place_without_a_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder at"):
        folder(tmp_path / "nowhere", size=8)
    with pytest.raises(NotADirectoryError, match="a file, not a folder"):
        folder(picture(tmp_path / "a.png"), size=8)


def test_too_many_images_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("pyjepa.training.images.MOST_BYTES", 100)
    (tmp_path / "a.png").write_text("not even an image")
    with pytest.raises(ImageError, match="1 images of 8 px exceed"):
        folder(tmp_path, size=8)


# ---- views ----------------------------------------------------------------------------------------------------------


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_no_change_is_no_change():
    images = torch.randint(0, 256, (4, 3, 9, 7), generator=seeded()).float()
    seen, parameters = view(images, NOTHING, seeded())
    assert torch.allclose(seen, images, atol=1e-3)
    assert parameters.shape == (4, 6)
    assert (parameters.abs() <= 1).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_the_action_says_how_far_a_view_is_shifted(axis):
    settings = NOTHING.model_copy(update={"shift": 3.0})
    images = torch.zeros(64, 1, 21, 21)
    images[:, :, 10, 10] = 255
    x, y, actions = two_views(images, settings, seeded())
    weights = torch.arange(21.0)

    def centre(seen):
        along = seen.sum(dim=(1, 2 if axis == 0 else 3))
        return (along * weights).sum(dim=1) / along.sum(dim=1)

    # A view shows what lies further to the right for a positive shift: the dot moves to the left.
    assert torch.allclose(centre(x) - centre(y), actions[:, axis] * 3.0, atol=1e-3)


def test_views_are_those_of_their_seed_and_differ_from_each_other():
    images = torch.randint(0, 256, (4, 3, 16, 16), generator=seeded(), dtype=torch.uint8)
    one, same, other = (two_views(images, Views(), seeded(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[0], one[1])
    assert (one[2].abs() <= 2).all()


def test_both_views_are_flipped_or_neither():
    images = torch.arange(8.0).expand(64, 1, 8, 8)
    x, y, _ = two_views(images, NOTHING.model_copy(update={"flip": 0.5}), seeded())
    assert torch.allclose(x, y, atol=1e-3)
    flipped = (x[:, 0, 0, 0] > 3).float().mean()
    assert 0.2 < flipped < 0.8
