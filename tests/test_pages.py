"""Every block of code on every page runs, or says by one of a few reasons why it cannot; what it names is there."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from elm_neuro import cli
from tests.pages import REASONS, ROOT, Fence, commands, fences, needed, pages

# Pages whose code takes longer than a few seconds; `make test-all` runs them.
SLOW = {"docs/index.md"}
NAMES = [page.relative_to(ROOT).as_posix() for page in pages()]
MARKED = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where synthetic digits are kept from page to page."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def workplace(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return tmp_path


@pytest.mark.parametrize("name", MARKED)
def test_the_code_of_a_page_runs_from_top_to_bottom(name: str, workplace: Path) -> None:
    blocks = [fence for fence in fences(ROOT / name) if fence.language in ("python", "sh") and fence.reason is None]
    for package in needed("\n".join(fence.code for fence in blocks)):
        pytest.importorskip(package)
    session: dict[str, object] = {"__name__": "page"}
    for number, fence in enumerate(blocks):
        if fence.language == "python":
            exec(compile(fence.code, f"{name}, block {number + 1}", "exec"), session)
            continue
        for command in commands(fence.code):
            program, *arguments = shlex.split(command)
            assert program == "elm-neuro", f"{command} cannot run here: say why not in a comment before it"
            assert cli.main(arguments) == 0, command


@pytest.mark.parametrize("name", ["docs/how-to/choose.md", "docs/how-to/troubleshooting.md", "docs/reference/files.md"])
def test_each_fence_of_a_page_that_is_looked_up_runs_alone(name: str, workplace: Path) -> None:
    for fence in fences(ROOT / name):
        if fence.language == "python" and fence.reason is None:
            for package in needed(fence.code):
                pytest.importorskip(package)
            exec(compile(fence.code, name, "exec"), {"__name__": "page"})


@pytest.mark.parametrize("name", NAMES)
def test_every_fence_says_what_it_is(name: str) -> None:
    for fence in fences(ROOT / name):
        assert fence.language, f"a fence of {name} has no language:\n{fence.code}"
        assert fence.reason is None or fence.reason in REASONS, fence.reason


@pytest.mark.parametrize("name", NAMES)
def test_what_commands_name_is_there_whether_they_run_or_not(name: str) -> None:
    for fence in fences(ROOT / name):
        for command in commands(fence.code) if fence.language == "sh" else ():
            check_command(command)


def check_command(command: str) -> None:
    """A target of the Makefile, a script of the repository, a command of elm-neuro and a recipe of its own exist."""
    words = [word for word in shlex.split(command) if "=" not in word or word.startswith("-")]
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert all(word in targets for word in words[1:] if not word.startswith("-")), command
    if words[0].endswith("python") and len(words) > 1 and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), command
    if words[0] == "elm-neuro":
        known = _subcommands(cli._parser())
        assert words[1] in known or words[1].startswith("--"), command
        assert not known.get(words[1]) or words[2] in known[words[1]], command
        for before, word in zip(words, words[1:], strict=False):
            if before in ("--config", "-c") and not word.endswith(".yaml") and word != "NAME":
                assert word in cli.recipes(), command


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: list(_subcommands(command)) for action in actions for name, command in action.choices.items()}


def test_fences_are_found_with_the_reason_beside_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 1\n```\n\n<!-- not run: takes minutes -->\n```sh\nmake demo\n```\n\n"
        "<!-- not run: installs packages -->\n\n```sh\nmake docs\n```\n\n    ```yaml\n    a: 1\n    ```\n"
    )
    assert fences(page) == [
        Fence("python", "x = 1\n", None),
        Fence("sh", "make demo\n", "takes minutes"),
        Fence("sh", "make docs\n", "installs packages"),
        Fence("yaml", "a: 1\n", None),
    ]


@pytest.mark.parametrize("command", ["make nothing", "python examples/none.py", "elm-neuro fit --config shd_elf"])
def test_what_is_not_there_is_noticed(command: str) -> None:
    with pytest.raises(AssertionError, match=command):
        check_command(command)


def test_the_readme_is_short_and_its_opening_snippets_too() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    snippets = [fence.code for fence in fences(ROOT / "README.md") if fence.language == "python"]
    assert len(text.splitlines()) <= 130
    assert text.count("](docs/") >= 10
    assert len(re.findall(r"<img|!\[", text)) == 1
    assert len(snippets) == 3
    assert all(len(snippet.strip().splitlines()) <= 15 for snippet in snippets)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_pages_outside_the_site_lead_to_files(name: str) -> None:
    targets = re.findall(r"\]\(([^)\s#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert [target for target in targets if not target.startswith("http") and not (ROOT / target).exists()] == []
