"""A process that reads one video file after another, so that a crash inside FFmpeg would not end the tests."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from pathlib import Path

from segmo.errors import SegMoError
from segmo.video import read


def answer(path: Path) -> str:
    """What comes of a file, in one line: "frames ...", "error ..." or "crash ..."."""
    try:
        clip = read(path, 2.0, (16, 16), max_frames=32)
    except SegMoError as error:
        return f"error {error}"
    except Exception as error:  # noqa: BLE001  # the point is to tell any other error from ours
        return f"crash {type(error).__name__}: {error}"
    sound = len(clip.frames) == len(clip.seconds) <= 32 and len(clip.frames) >= 1
    return f"frames {len(clip.frames)}" if sound else f"crash {len(clip.frames)} frames, {len(clip.seconds)} times"


class Reader:
    """The process, started once for many files."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        for line in self.process.stdout or ():
            self._lines.put(line.strip())
        self._lines.put("crash the process ended")

    def __call__(self, path: Path, limit: float = 600.0) -> str:
        """The answer for one file; "hang" if there is none within ``limit`` seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        try:
            return self._lines.get(timeout=limit)
        except queue.Empty:
            return "hang"

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    for line in sys.stdin:
        print(answer(Path(line.strip())).replace("\n", " "), flush=True)
