"""A vLLM that changed what the plugin relies on is refused, by name and version, before anything of it is changed."""

from __future__ import annotations

import subprocess
import sys

import pytest
import vllm

from segmo.errors import VersionError
from segmo.integrations.vllm import seams


def test_this_vllm_has_all_seams() -> None:
    seams.check_seams()


@pytest.mark.parametrize(
    ("seam", "said"),
    [
        (seams.Seam("vllm.nowhere:Thing"), "vllm.nowhere:Thing is gone"),
        (seams.Seam("vllm:ModelRegistry.enrol"), "vllm:ModelRegistry.enrol is gone"),
        (seams.Seam("vllm:ModelRegistry.register_model", ("colour",)), "takes no colour"),
        (seams.Phrase("vllm.nowhere.thing", "anything"), "vllm.nowhere.thing is gone"),
        (seams.Phrase("vllm.v1.worker.gpu_model_runner", "self.model.paint("), "no longer says 'self.model.paint"),
    ],
)
def test_a_changed_seam_is_named(seam: seams.Seam | seams.Phrase, said: str) -> None:
    with pytest.raises(VersionError, match=said) as raised:
        seams.check_seams((*seams.SEAMS, seam))
    assert vllm.__version__ in str(raised.value)


@pytest.mark.parametrize(("version", "said"), [("0.31.1", "does not fit vLLM 0.31.1: it is too old"), ("0.33.4", "")])
def test_a_version_is_refused_or_accepted_by_its_number(
    version: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "__version__", version)
    if not said:
        seams.check_seams()
        return
    with pytest.raises(VersionError, match=said):
        seams.check_seams()


def test_a_version_that_nobody_looked_at_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "__version__", "0.41.0")
    with pytest.warns(UserWarning, match=r"vLLM 0\.41\.0 is newer"):
        seams.check_seams()


CHANGED = """
import vllm.multimodal.processing.processor as changed
del changed.BaseMultiModalProcessor._get_mm_hashes
from vllm.plugins import load_general_plugins
try:
    load_general_plugins()
except Exception as error:
    print("refused:", error)
from vllm import ModelRegistry
print("homes:", {str(home) for home in ModelRegistry.models.values() if "segmo" in str(home)})
"""


def test_nothing_is_half_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", CHANGED], capture_output=True, text=True, check=False)
    assert "refused: SegMo's plugin does not fit vLLM" in done.stdout, done.stderr[-2000:]
    assert "BaseMultiModalProcessor._get_mm_hashes is gone" in done.stdout
    assert "homes: set()" in done.stdout
