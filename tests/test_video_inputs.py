"""Videos in every form that users have: each gives the frames of the file that it stands for."""

from __future__ import annotations

import http.server
import io
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from video_files import noise_shots, numbered, numbers, sequential, write_file

from segmo.video import Clip, fetch, read
from segmo.video.given import as_source
from segmo.video.source import VideoError

FPS = 5.0


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds at 25 frames a second."""
    return write_file(tmp_path_factory.mktemp("film") / "film one.mp4", numbered(100), g="12")


@pytest.fixture(scope="module")
def expected(film: Path) -> Clip:
    return read(film, FPS)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one file, moved once, and breaks off where it is asked to."""

    data = b""

    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/film.mp4")
            self.end_headers()
            return
        if self.path not in ("/film.mp4", "/broken.mp4", "/film.mp4?token=a%20b"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.data)))
        self.end_headers()
        self.wfile.write(self.data if "broken" not in self.path else self.data[:1000])

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def server(film: Path) -> Iterator[str]:
    Handler.data = film.read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def check(clip: Clip, expected: Clip) -> None:
    np.testing.assert_array_equal(clip.frames, expected.frames)
    np.testing.assert_array_equal(clip.seconds, expected.seconds)
    assert (clip.fps, clip.duration, clip.cuts) == (expected.fps, expected.duration, expected.cuts)


@pytest.mark.parametrize("form", ["path", "str", "bytes path", "file url", "bytes", "bytearray", "memory", "open"])
def test_files_in_every_form(film: Path, expected: Clip, form: str) -> None:
    given: Any = {
        "path": film,
        "str": str(film),
        "bytes path": SimpleNamespace(__fspath__=lambda: None),
        "file url": film.as_uri(),
        "bytes": film.read_bytes(),
        "bytearray": bytearray(film.read_bytes()),
        "memory": io.BytesIO(film.read_bytes()),
        "open": film.open("rb"),
    }[form]
    if form == "bytes path":
        given = BytesPath(film)
    check(read(given, FPS), expected)
    if form not in ("memory", "open"):
        np.testing.assert_array_equal(fetch(given, [1.0, 3.0]), expected.frames[[5, 15]])


@dataclass(frozen=True)
class BytesPath:
    """A path whose name is bytes."""

    path: Path

    def __fspath__(self) -> bytes:
        return os.fsencode(self.path)


def test_files_in_the_home_folder(film: Path, expected: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(film.parent))
    check(read("~/film one.mp4", FPS), expected)
    with pytest.raises(VideoError, match="there is no file"):
        read("~nobody-of-this-name/film.mp4")


@pytest.mark.parametrize("name", [b"caf\xe9 \xff.mp4", "späti 🎬.mp4".encode(), b"100% a:b|c?.mp4", b"-.mp4"])
def test_names_of_any_bytes(film: Path, expected: Clip, tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118  # of bytes
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(film.read_bytes())
    text = os.fsdecode(path)
    for given in (text, Path(text), Path(text).as_uri()):
        clip = read(given, FPS)
        check(clip, expected)
        str(clip.path).encode()  # can be printed
    with pytest.raises(VideoError) as found:
        read(text + "x")
    str(found.value).encode()


@pytest.mark.parametrize("path", ["/film.mp4", "/moved", "/film.mp4?token=a%20b"])
def test_addresses(server: str, expected: Clip, path: str) -> None:
    clip = read(server + path, FPS)
    check(clip, expected)
    assert clip.source is not None
    assert str(clip.source) == server + path


def test_a_loaded_file_goes_with_its_clip(server: str) -> None:
    source = as_source(server + "/film.mp4")
    path = source.data  # type: ignore[union-attr]
    assert path.exists()
    del source
    assert not path.exists()


@pytest.mark.parametrize(
    ("path", "message"), [("/none.mp4", "404"), ("/broken.mp4", "broke off after 1,000 of|IncompleteRead")]
)
def test_addresses_that_give_no_file(server: str, path: str, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        read(server + path)


def test_an_address_where_nothing_answers() -> None:
    with pytest.raises(VideoError, match=r"there is no file to be had at http://127\.0\.0\.1:9/"):
        read("http://127.0.0.1:9/film.mp4")
    with pytest.raises(VideoError, match="on another machine"):
        read("file://elsewhere/film.mp4")


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.uint8]]:
    return noise_shots([3, 4, 5], 48, 32)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tiff"])
def test_a_folder_of_pictures(tmp_path: Path, pictures: list[NDArray[np.uint8]], suffix: str) -> None:
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"frame {number}{suffix}", lossless=True)
    (tmp_path / "notes.txt").write_text("none of them")
    Image.fromarray(pictures[0]).save(tmp_path / ".hidden.png")
    clip = read(tmp_path, 2.0)
    np.testing.assert_array_equal(clip.frames, np.stack(pictures))  # "frame 10" comes last
    assert clip.seconds.tolist() == [number / 2 for number in range(12)]
    assert clip.duration == 6.0
    np.testing.assert_array_equal(fetch(tmp_path, [2.0], index=clip.index), clip.frames[[4]])
    few = read(tmp_path, 2.0, (24, 16), max_frames=4)
    assert few.frames.shape == (4, 16, 24, 3)
    assert few.seconds.tolist() == [0, 1.5, 3.0, 4.5]


def test_a_folder_with_a_picture_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(VideoError, match=r"1\.png is not a picture that can be read"):
        read(tmp_path)


def test_pictures_of_other_kinds_and_sizes(tmp_path: Path) -> None:
    colour = Image.fromarray(noise_shots([1], 48, 32)[0])
    clear = Image.new("RGBA", (48, 32), (200, 100, 50, 128))
    deep = Image.fromarray(np.full((32, 48), 40_000, np.uint16))
    given = [colour, colour.convert("L"), colour.convert("P"), colour.convert("CMYK"), clear, deep, np.asarray(colour)]
    clip = read([*given, colour.resize((96, 64))], 1.0)
    assert clip.frames.shape == (8, 32, 48, 3)
    assert clip.frames[4][5, 5].tolist() == pytest.approx([100, 50, 25], abs=1)
    assert clip.frames[5][5, 5].tolist() == [round(40_000 / 257)] * 3
    turned = colour.getexif()
    turned[0x0112] = 6  # a camera held upright
    colour.save(tmp_path / "turned.jpg", exif=turned)
    assert read(tmp_path / "turned.jpg", 1.0).frames.shape == (1, 48, 32, 3)


def test_a_moving_webp_has_its_times(tmp_path: Path) -> None:
    pictures = [Image.fromarray(picture) for picture in noise_shots([1, 1, 1], 40, 30)]
    path = tmp_path / "moving.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 500, 400], lossless=True)
    clip = read(path, 10.0)
    assert clip.duration == pytest.approx(1.0)
    np.testing.assert_array_equal(clip.frames, np.stack([pictures[place] for place in [0, *[1] * 5, *[2] * 4]]))


ARRAYS = {
    "numpy": lambda frames: frames,
    "torch": torch.from_numpy,
    "channels first": lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2),
    "floats": lambda frames: frames.astype(np.float32) / 255,
    "half": lambda frames: torch.from_numpy(frames).to(torch.float16) / 255,
    "big floats": lambda frames: frames.astype(np.float64),
    "16 bits": lambda frames: frames.astype(np.uint16) * 257,
    "alpha": lambda frames: np.concatenate([frames, np.full_like(frames[..., :1], 255)], axis=-1),
    "tuple": tuple,
    "list of tensors": lambda frames: [torch.from_numpy(frame).permute(2, 0, 1) for frame in frames],
    "images": lambda frames: [Image.fromarray(frame) for frame in frames],
}


@pytest.mark.parametrize("form", ARRAYS)
def test_frames_in_memory(pictures: list[NDArray[np.uint8]], form: str) -> None:
    frames = np.stack(pictures)
    clip = read(ARRAYS[form](frames), 4.0)
    assert np.abs(clip.frames.astype(int) - frames).max() <= (1 if form == "half" else 0)
    assert clip.seconds.tolist() == [number / 4 for number in range(12)]
    again, other = as_source(ARRAYS[form](frames)).digest(), as_source(ARRAYS[form](frames[::-1].copy())).digest()
    assert again == as_source(ARRAYS[form](frames)).digest() != other


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 5, 5, 5), np.uint8), "has no colours"),
        (np.zeros((0, 5, 5, 3), np.uint8), "holds no frames"),
        (np.zeros((5,), np.uint8), "holds no frames"),
        (np.full((2, 5, 5, 3), -1.5), "values from -1.5 to -1.5"),
        (np.full((2, 5, 5, 3), np.nan), "values from nan"),
        (np.zeros((2, 5, 5, 3), bool), "holds no colours"),
        ([], "has no pictures"),
        ([object()], "is no picture"),
        (3.0, "is no video"),
        (None, "is no video"),
        (b"", r"is empty \(0 bytes\)"),
        (b"no video" * 100, "not a video"),
    ],
)
def test_what_is_no_video(given: Any, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        read(given)


@dataclass
class TorchcodecLike:
    """What ``torchcodec.decoders.VideoDecoder`` offers, over frames in memory."""

    frames: torch.Tensor
    times: list[float]

    @property
    def metadata(self) -> Any:
        return SimpleNamespace(num_frames=len(self.frames), average_fps=len(self.frames) / 4.0)

    def __len__(self) -> int:
        return len(self.frames)

    def get_frames_at(self, indices: list[int]) -> Any:
        assert len(indices) <= 32  # not the whole film at a time
        ends = [*self.times[1:], 4.0]
        return SimpleNamespace(
            data=self.frames[indices],
            pts_seconds=torch.tensor([self.times[i] + 1.5 for i in indices], dtype=torch.float64),
            duration_seconds=torch.tensor([ends[i] - self.times[i] for i in indices], dtype=torch.float64),
        )


@dataclass
class DecordLike:
    """What ``decord.VideoReader`` offers."""

    frames: NDArray[np.uint8]
    times: list[float]

    def __len__(self) -> int:
        return len(self.frames)

    def get_avg_fps(self) -> float:
        return len(self.frames) / 4.0

    def get_frame_timestamp(self, numbers: list[int]) -> NDArray[np.float64]:
        ends = [*self.times[1:], 4.0]
        return np.array([[self.times[i], ends[i]] for i in numbers])

    def get_batch(self, numbers: list[int]) -> Any:
        return SimpleNamespace(asnumpy=lambda: self.frames[list(numbers)])


@pytest.mark.parametrize("kind", ["torchcodec", "decord"])
def test_decoders_of_other_libraries(film: Path, expected: Clip, kind: str) -> None:
    times, frames, _ = sequential(film)
    stack = np.stack(frames)
    decoder: Any = DecordLike(stack, times)
    if kind == "torchcodec":
        decoder = TorchcodecLike(torch.from_numpy(stack).permute(0, 3, 1, 2), times)
    clip = read(decoder, FPS)
    np.testing.assert_array_equal(clip.frames, expected.frames)
    np.testing.assert_allclose(clip.seconds, expected.seconds)
    assert clip.duration == pytest.approx(expected.duration)
    assert as_source(decoder).digest() != as_source(decoder).digest()


def test_a_decoder_with_uneven_times(film: Path) -> None:
    frames = np.stack(numbered(4))
    clip = read(DecordLike(frames, [0.0, 0.5, 3.0, 3.5]), 2.0)
    assert numbers(clip.frames) == [0, 1, 1, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("given", ["file", "pictures"])
def test_a_part_has_its_times_in_the_whole(film: Path, given: str) -> None:
    whole = read(film, FPS, scenes=None)
    source = film if given == "file" else list(whole.frames)
    part = read(source, FPS, start=1.0, end=2.5, scenes=None)
    assert part.seconds.tolist() == pytest.approx([5 / FPS + number / FPS for number in range(8)])
    np.testing.assert_array_equal(part.frames, whole.frames[5:13])
    assert part.duration == whole.duration
    few = read(source, FPS, start=1.0, end=3.0, max_frames=4, scenes=None)
    assert few.seconds.tolist() == pytest.approx([1.0, 1.5, 2.0, 2.5])
