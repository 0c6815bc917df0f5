"""Data sets: made-up files for everything that can go wrong, the real ones where they are at hand."""

from __future__ import annotations

import gc
import gzip
import hashlib
import http.server
import io
import struct
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("platformdirs", reason="needs the extra `experiments`")
from PIL import Image
from sklearn.datasets import load_digits

from igr.experiments import data
from igr.experiments.data import DataError, load, omniglot
from igr.experiments.data.idx import Idx
from igr.experiments.data.omniglot import Omniglot
from igr.experiments.data.source import Archive

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keeps the user's data and cache out of it."""
    monkeypatch.delenv("IGR_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def fails(match: str, call: Callable[[], object]) -> str:
    with pytest.raises(DataError, match=match) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------- digits


def test_digits_are_all_there_and_split_the_same_way_each_time() -> None:
    digits = load("digits")
    assert (digits.train.shape, digits.test.shape) == ((1500, 64), (297, 64))
    known = data.source_of("digits")
    assert (known.num_train, known.num_test) == (1500, 297)
    assert digits.train.dtype == torch.float32
    assert digits.shape == (8, 8)
    assert digits.binary

    raw = load_digits()
    expected = sorted(map(tuple, (raw.data / 16 >= 0.5).astype(int).tolist()))
    assert sorted(map(tuple, torch.cat([digits.train, digits.test]).int().tolist())) == expected

    fingerprint = hashlib.sha256(digits.test.byte().numpy().tobytes()).hexdigest()
    assert fingerprint.startswith("9cf5698cf2a65b57")


# ------------------------------------------------------------------------------------- idx


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()


class Made:
    """A small made-up data set in the format of MNIST, its files and what is published of them."""

    def __init__(self, folder: Path, url: str = NOWHERE, binary: bool = False) -> None:
        rng = np.random.default_rng(1)
        self.folder = folder
        self.values = {
            "train": rng.integers(0, 256, (6, 4, 4)),
            "test": rng.integers(0, 256, (3, 4, 4)),
        }
        self.values["train"][0, 0] = [0, 127, 128, 255]
        self.packed = {split: gzip.compress(idx(v), mtime=0) for split, v in self.values.items()}
        self.archives = {
            split: Archive(
                name := f"{split}-images.gz",
                f"{url}/{name}",
                hashlib.md5(self.packed[split]).hexdigest(),
                hashlib.sha256(idx(v)).hexdigest(),
            )
            for split, v in self.values.items()
        }
        self.source = Idx(
            binary=binary,
            citation="made up",
            archives=self.archives,
            num_train=6,
            num_test=3,
            shape=(4, 4),
            held_out=2,
        )

    def path(self, split: str = "train") -> Path:
        return self.folder / "data" / "made" / self.archives[split].name

    def write(self) -> Made:
        self.path().parent.mkdir(parents=True, exist_ok=True)
        for split in self.archives:
            self.path(split).write_bytes(self.packed[split])
        return self

    def load(self, **options: object) -> data.Dataset:
        folder = self.folder / "data"
        options = {"folder": folder if folder.exists() else None, **options}
        return load("made", cache=self.folder / "cache", sources={"made": self.source}, **options)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path).write()


def test_grey_levels(made: Made) -> None:
    dataset = made.load()
    for split, images in (("train", dataset.train), ("test", dataset.test)):
        expected = torch.from_numpy(made.values[split]).reshape(-1, 16) / 255
        torch.testing.assert_close(images.double(), expected.double(), rtol=1e-7, atol=0)
        assert images.dtype == torch.float32
    assert not dataset.binary


def test_binarization_is_at_one_half(tmp_path: Path) -> None:
    dataset = Made(tmp_path, binary=True).write().load()
    assert dataset.train[0, :4].tolist() == [0, 0, 1, 1]  # of 0, 127, 128, 255
    assert set(dataset.test.unique().tolist()) == {0.0, 1.0}


def test_archives_packed_anew_are_as_good(made: Made) -> None:
    made.path().write_bytes(gzip.compress(idx(made.values["train"]), 1, mtime=7))
    made.load()


def with_magic(content: bytes, magic: bytes) -> bytes:
    return magic + content[4:]


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda b: b"", "is no gzip file .*begins with nothing"),
    "page": (lambda b: b"<html>not found</html>", "is no gzip file .*begins with 3c68"),
    "cut short": (lambda b: b[: len(b) // 2], "is cut short"),
    "without its end": (lambda b: b[:-4], "is cut short"),
    "bit flipped": (lambda b: b[:20] + bytes([b[20] ^ 8]) + b[21:], "is damaged|is cut short"),
    "magic": (
        lambda b: gzip.compress(with_magic(gzip.decompress(b), b"\0\0\x0d\x03")),
        "is no IDX file .*expected magic 00000803, got 00000d03",
    ),
    "labels for images": (
        lambda b: gzip.compress(idx(np.zeros(6))),
        "is no IDX file .*expected magic 00000803, got 00000801",
    ),
    "nothing in it": (lambda b: gzip.compress(b""), "is no IDX file .*got nothing"),
    "half a header": (lambda b: gzip.compress(gzip.decompress(b)[:10]), "has another shape"),
    "fewer images": (
        lambda b: gzip.compress(idx(np.zeros((5, 4, 4)))),
        r"has another shape \(expected \(6, 4, 4\), got \(5, 4, 4\)\)",
    ),
    "fewer pixels": (
        lambda b: gzip.compress(gzip.decompress(b)[:-1]),
        "has another length .expected 96 values, got 95",
    ),
    "altered": (
        lambda b: gzip.compress(gzip.decompress(b)[:-1] + b"\x05"),
        "was altered .expected content of sha256 [0-9a-f]{64}, got [0-9a-f]{64}",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files(made: Made, name: str) -> None:
    damage, match = DAMAGE[name]
    made.path().write_bytes(damage(made.path().read_bytes()))
    message = fails(match, made.load)
    assert str(made.path()) in message
    assert message.endswith("replace it")


def test_damaged_files_in_the_cache_are_to_be_deleted(made: Made) -> None:
    cached = made.folder / "cache" / "made" / made.path().name
    cached.parent.mkdir(parents=True)
    made.path().rename(cached)
    made.load()
    cached.write_bytes(b"")
    message = fails("is no gzip file", made.load)
    assert message.endswith("delete it, and it is downloaded anew")


def test_only_evaluation_reads_the_test_set(made: Made) -> None:
    made.path("test").write_bytes(b"broken")
    dataset = made.load()
    fails("test-images.gz is no gzip file", lambda: dataset.test)


def test_unreadable(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    fails("cannot be read .PermissionError: Permission denied", made.load)


# ------------------------------------------------------------------------------------- where files are


def test_unknown_data_set() -> None:
    fails(
        "dataset: expected one of digits, mnist, fashion-mnist, omniglot, omniglot-grey, got 'imagenet'",
        lambda: load("imagenet"),
    )
    assert fails("got 'MNST'", lambda: load("MNST")).endswith("did you mean 'mnist'?")


def test_the_environment_names_the_folder(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGR_DATA", str(made.folder / "data"))
    assert len(made.load(folder=None, download=False).train) == 6
    monkeypatch.setenv("IGR_DATA", str(made.folder / "nowhere"))
    fails(
        "IGR_DATA: expected a folder that holds made/, got .*nowhere",
        lambda: made.load(folder=None),
    )
    fails("folder: expected a folder", lambda: made.load(folder=made.folder / "nowhere"))


def test_no_folder_and_no_network(tmp_path: Path) -> None:
    message = fails("train-images.gz is not in .* cannot be downloaded", Made(tmp_path).load)
    assert f"{NOWHERE}/train-images.gz" in message
    assert message.endswith("put train-images.gz into $IGR_DATA/made/")
    assert not list((tmp_path / "cache" / "made").iterdir())
    fails("downloads are off: put train-images.gz", lambda: Made(tmp_path).load(download=False))


def test_the_real_sources_name_what_is_missing(tmp_path: Path) -> None:
    for name in ("mnist", "fashion-mnist", "omniglot"):
        fails(
            f"{name}: .* is not in .*downloads are off",
            lambda name=name: load(name, cache=tmp_path, download=False),
        )


def test_the_default_cache_is_the_users(tmp_path: Path) -> None:
    message = fails("is not in", lambda: load("mnist", download=False))
    assert str(Path("igr", "mnist")) in message


def test_a_cache_that_cannot_be_made(made: Made) -> None:
    made.path().unlink()
    (made.folder / "cache").write_text("a file stands in the way")
    fails("cannot create folder", made.load)


# ------------------------------------------------------------------------------------- downloads


class Server:
    """Serves files from memory, and may hang up halfway."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.hang_up = False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                content = outer.files.get(self.path.lstrip("/"))
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if outer.hang_up else content)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False  # closing waits for them
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    server.thread.start()
    yield server
    server.server.shutdown()
    server.server.server_close()
    server.thread.join()
    # pooch leaves the connection of a failed download to the garbage collector: here, not in a later test.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def remote(server: Server, tmp_path: Path) -> Made:
    made = Made(tmp_path, server.url)
    server.files = {made.archives[split].name: content for split, content in made.packed.items()}
    return made


def test_downloads_once(server: Server, remote: Made) -> None:
    messages: list[str] = []
    first = remote.load(notify=messages.append)
    assert server.requests == ["/train-images.gz"]
    assert len(messages) == 1
    assert f"{server.url}/train-images.gz" in messages[0]
    again = remote.load(notify=messages.append)
    assert torch.equal(first.train, again.train)
    assert len(server.requests) == len(messages) == 1
    assert len(again.test) == 3
    assert server.requests[1:] == ["/test-images.gz"]


def test_an_empty_folder_of_data_leads_to_a_download(server: Server, remote: Made) -> None:
    (remote.folder / "data").mkdir()
    remote.load()
    assert server.requests


def test_a_download_cut_short_leaves_nothing(server: Server, remote: Made) -> None:
    server.hang_up = True
    fails("cannot be downloaded", remote.load)
    assert not list((remote.folder / "cache" / "made").iterdir())
    server.hang_up = False
    remote.load()


def test_a_download_of_something_else_leaves_nothing(server: Server, remote: Made) -> None:
    server.files["train-images.gz"] = b"captive portal"
    fails("is not the published one .expected md5 [0-9a-f]{32}", remote.load)
    assert not list((remote.folder / "cache" / "made").iterdir())


def test_a_file_gone_from_its_mirror(server: Server, remote: Made) -> None:
    server.files.clear()
    fails("cannot be downloaded .*404|HTTPError", remote.load)
    assert not list((remote.folder / "cache" / "made").iterdir())


def test_disk_full(server: Server, remote: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.move", full)
    fails("cannot write .*train-images.gz: OSError: No space left on device", remote.load)
    assert not list((remote.folder / "cache" / "made").iterdir())


# ------------------------------------------------------------------------------------- Omniglot


def png(ink: np.ndarray) -> bytes:
    """As the published ones: one bit for each pixel, ink is 0."""
    content = io.BytesIO()
    Image.fromarray(ink == 0).save(content, "png")
    return content.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in files.items():
            archive.writestr(name, value)
    return content.getvalue()


def by_hand(ink: np.ndarray) -> np.ndarray:
    """The 28x28 image: each pixel of 105x105 cut into 4x4, and 15x15 of the pieces make a new one."""
    pieces = np.kron(ink, np.ones((4, 4))).reshape(28, 15, 28, 15)
    return (pieces.mean((1, 3)) > 0.5).astype(np.float32).reshape(-1)


class MadeOmniglot:
    """Three background images and four for evaluation, of which the training set gets one."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(2)
        strokes = [np.kron(rng.random((21, 21)) < 0.3, np.ones((5, 5))) for _ in range(7)]
        self.ink = [stroke.astype(np.uint8) for stroke in strokes]
        self.ink[0] = np.zeros((105, 105), np.uint8)
        self.ink[0][:4, 50:] = 1  # a bar at the top, on the right
        names = [f"images_background/A/character0{i}/1_0{i}.png" for i in (1, 2, 3)]
        names += [f"images_evaluation/B/character0{i}/1_0{i}.png" for i in (1, 2, 3, 4)]
        self.files = {name: png(ink) for name, ink in zip(names, self.ink, strict=True)}
        self.folder = folder
        expected = np.stack([by_hand(ink) for ink in self.ink])
        self.train, self.test = expected[:4], expected[4:]
        self.source = Omniglot(
            background=Archive("images_background.zip", f"{NOWHERE}/images_background.zip", ""),
            evaluation=Archive("images_evaluation.zip", f"{NOWHERE}/images_evaluation.zip", ""),
            prepared={
                split: hashlib.sha256(
                    np.packbits(images.astype(bool), axis=1).tobytes()
                ).hexdigest()
                for split, images in (("train", self.train), ("test", self.test))
            },
            num_background=3,
            num_evaluation=4,
            num_borrowed=1,
        )
        (folder / "data" / "small").mkdir(parents=True)
        self.write()

    def path(self, part: str) -> Path:
        return self.folder / "data" / "small" / f"images_{part}.zip"

    def write(self, order: int = 1) -> None:
        for part in ("background", "evaluation"):
            mine = {n: c for n, c in self.files.items() if n.startswith(f"images_{part}/")}
            self.path(part).write_bytes(
                zipped({"images_" + part + "/": b"", **dict(list(mine.items())[::order])})
            )

    def load(self, **options: object) -> data.Dataset:
        return load(
            "small",
            folder=self.folder / "data",
            cache=self.folder / "cache",
            download=False,
            sources={"small": self.source},
            **options,
        )


@pytest.fixture
def small(tmp_path: Path) -> MadeOmniglot:
    return MadeOmniglot(tmp_path)


def test_omniglot_is_resized_then_binarized(small: MadeOmniglot) -> None:
    dataset = small.load()
    assert torch.equal(dataset.train, torch.from_numpy(small.train))
    assert torch.equal(dataset.test, torch.from_numpy(small.test))
    bar = dataset.train[0].reshape(28, 28)
    assert bar[0, 14:].all()  # column 13 is ink from 50 to 52.5, of 48.75 to 52.5: more than half
    assert bar[0, :13].sum() == bar[1:].sum() == 0


def test_shrinking_cannot_tie_and_never_rounds() -> None:
    ink = (np.random.default_rng(3).random((40, 105, 105)) < 0.5).astype(np.uint8)
    expected = np.stack([by_hand(image) for image in ink])
    assert np.array_equal(omniglot._shrink(ink, (28, 28)), expected)
    assert np.array_equal(omniglot._shrink(1 - ink, (28, 28)), 1 - expected)


def interpolated(paper: np.ndarray) -> np.ndarray:
    """The 28x28 grey levels of a binary image: from the four pixels around the middle of each new one."""
    middle = (np.arange(28) + 0.5) * 105 / 28 - 0.5
    before = np.floor(middle).astype(int)
    after = middle - before
    weights = np.zeros((28, 105))
    weights[np.arange(28), before] += 1 - after
    weights[np.arange(28), before + 1] += after
    return np.round(255 * (weights @ paper @ weights.T)).reshape(-1)


def test_released_omniglot_is_binarized_then_resized(small: MadeOmniglot) -> None:
    """Erratum E13."""
    noise = (np.random.default_rng(4).random((40, 105, 105)) < 0.5).astype(np.uint8)
    expected = np.stack([interpolated(image) for image in noise])
    assert np.array_equal(omniglot._interpolate(noise, (28, 28)), expected)
    levels = np.stack([interpolated(1 - ink.astype(float)) for ink in small.ink]).astype(np.uint8)
    small.source = replace(
        small.source,
        binary=False,
        prepared={
            split: hashlib.sha256(images.tobytes()).hexdigest()
            for split, images in (("train", levels[:4]), ("test", levels[4:]))
        },
    )
    dataset = small.load()
    assert not dataset.binary
    for images, expected in ((dataset.train, levels[:4]), (dataset.test, levels[4:])):
        assert torch.equal(images, torch.from_numpy(expected.astype(np.float32)) / 255)
    small.source = replace(small.source, prepared={"train": "0" * 64, "test": "0" * 64})
    fails("was altered", small.load)


def test_order_is_that_of_the_names(small: MadeOmniglot) -> None:
    small.write(order=-1)
    assert torch.equal(small.load().train, torch.from_numpy(small.train))


def test_omniglot_is_prepared_once(small: MadeOmniglot) -> None:
    messages: list[str] = []
    first = small.load(notify=messages.append).train
    assert messages == ["preparing the train images of small (once)"]
    assert torch.equal(small.load(notify=messages.append).train, first)
    assert len(messages) == 1
    (kept,) = (small.folder / "cache" / "small").iterdir()

    # One that was damaged or written by half is made anew.
    for damage in (b"", b"junk", kept.read_bytes()[:-1], kept.read_bytes()[:-1] + b"\x07"):
        kept.write_bytes(damage)
        assert torch.equal(small.load(notify=messages.append).train, first)
    assert len(messages) == 5
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]

    # What was kept does not stand in for an archive that has changed since.
    name = "images_background/A/character01/1_01.png"
    small.files[name] = small.files["images_background/A/character02/1_02.png"]
    small.write()
    fails("images_background.zip or .*images_evaluation.zip was altered", small.load)


def test_only_evaluation_reads_omniglots_test_images(small: MadeOmniglot) -> None:
    small.files["images_evaluation/B/character03/1_03.png"] = b"no picture"
    small.write()
    dataset = small.load()
    fails("images_evaluation.zip is no zip file, cut short or damaged", lambda: dataset.test)


def test_omniglot_without_a_cache_says_so(small: MadeOmniglot) -> None:
    (small.folder / "cache").write_text("a file stands in the way")
    with pytest.warns(UserWarning, match="cannot create folder .* prepared anew each time"):
        dataset = small.load()
    assert torch.equal(dataset.train, torch.from_numpy(small.train))


ZIP_DAMAGE: dict[str, tuple[Callable[[dict[str, bytes]], bytes], str]] = {
    "empty": (lambda files: b"", "is no zip file"),
    "page": (lambda files: b"<html>not found</html>", "is no zip file"),
    "cut short": (lambda files: zipped(files)[:-100], "is no zip file, cut short"),
    "an image missing": (
        lambda files: zipped(dict(list(files.items())[1:])),
        "is not whole .expected 3 images, got 2",
    ),
    "another size": (
        lambda files: zipped({**files, next(iter(files)): png(np.zeros((28, 20)))}),
        "has another shape .expected 105x105 pixels, .*1_01.png has 20x28",
    ),
    "no picture": (lambda files: zipped({**files, next(iter(files)): b"?"}), "damaged"),
    "half a picture": (
        lambda files: zipped({**files, next(iter(files)): next(iter(files.values()))[:60]}),
        "damaged",
    ),
}


@pytest.mark.parametrize("name", ZIP_DAMAGE)
def test_damaged_zip_files(small: MadeOmniglot, name: str) -> None:
    damage, match = ZIP_DAMAGE[name]
    files = {n: c for n, c in small.files.items() if n.startswith("images_background/")}
    small.path("background").write_bytes(damage(files))
    message = fails(match, small.load)
    assert str(small.path("background")) in message


def test_a_flipped_bit_in_a_zip_file(small: MadeOmniglot) -> None:
    content = bytearray(small.path("background").read_bytes())
    content[200] ^= 16
    small.path("background").write_bytes(content)
    fails("images_background.zip is no zip file, cut short or damaged", small.load)


# ------------------------------------------------------------------------------------- real data

# name: images, and the mean of all pixels, of train and test
REAL = {
    "mnist": (60_000, 10_000, 0.13226, 0.13423),
    "fashion-mnist": (60_000, 10_000, 0.28604, 0.28685),
    "omniglot": (24_345, 8_115, 0.07913, 0.08374),
    "omniglot-grey": (24_345, 8_115, 0.92060, 0.91599),
}
LEVELS = {"mnist": 2, "fashion-mnist": 256, "omniglot": 2, "omniglot-grey": 30}


@pytest.mark.parametrize(
    "name", [*list(REAL)[:3], pytest.param("omniglot-grey", marks=pytest.mark.slow)]
)
def test_real_data(name: str, data_dir: Path, tmp_path: Path) -> None:
    num_train, num_test, train_mean, test_mean = REAL[name]
    known = data.source_of(name)
    assert (known.num_train, known.num_test) == (num_train, num_test)
    dataset = load(name, folder=data_dir, cache=tmp_path, download=False)
    assert (dataset.train.shape, dataset.test.shape) == ((num_train, 784), (num_test, 784))
    assert dataset.train.double().mean().item() == pytest.approx(train_mean, abs=1e-5)
    assert dataset.test.double().mean().item() == pytest.approx(test_mean, abs=1e-5)
    levels = dataset.test.unique()
    assert (levels.min(), levels.max(), len(levels)) == (0, 1, LEVELS[name])
    assert dataset.binary == (len(levels) == 2)
    assert known.held_out == (5_000 if name.startswith("omniglot") else 10_000)


def test_a_changed_field_changes_what_is_expected(data_dir: Path, tmp_path: Path) -> None:
    """The hashes are compared, not only written down."""
    source = data.SOURCES["mnist"]
    other = replace(source.archives["train"], sha256="0" * 64)
    sources = {"mnist": replace(source, archives={**source.archives, "train": other})}
    fails("was altered", lambda: load("mnist", folder=data_dir, cache=tmp_path, sources=sources))
