from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
NEEDS = {
    "snntorch": "snntorch",
    "norse": "norse",
    "tonic": "tonic",
    "elm_neuro.datasets": "h5py",
    "elm_neuro.export": "onnx",
}


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[f"snippet{i}" for i in range(len(SNIPPETS))])
def test_snippets_of_the_readme_run_as_they_stand(
    snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, host in NEEDS.items():
        if name in snippet:
            pytest.importorskip(host)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})


def test_the_opening_snippets_are_short() -> None:
    assert len(SNIPPETS) >= 4
    assert all(len(snippet.strip().splitlines()) <= 15 for snippet in SNIPPETS[:3])
