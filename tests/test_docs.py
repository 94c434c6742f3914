"""The documentation site: every public name has its entry, every link leads somewhere, and nothing on a page comes from
elsewhere.
"""

from __future__ import annotations

import inspect
import os
import re
import runpy
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urljoin, urlparse
from xml.etree import ElementTree

import pytest

from tests.pages import ROOT, pages
from tests.test_public_names import HOSTS, NAMES

DOCS = ROOT / "docs"
TUTORIALS = sorted(path.relative_to(ROOT).as_posix() for path in (DOCS / "tutorials").glob("*.py"))
FIGURES = sorted(path.relative_to(ROOT).as_posix() for path in (DOCS / "figures").glob("*.py"))


@contextmanager
def tools() -> Iterator[None]:
    """The folder of the site's own tools among those that Python imports from."""
    sys.path.insert(0, str(DOCS / "tools"))
    try:
        yield
    finally:
        sys.path.remove(str(DOCS / "tools"))


@pytest.fixture(scope="module")
def markup() -> Iterator[ModuleType]:
    pytest.importorskip("latex2mathml")
    pytest.importorskip("markdown")
    with tools():
        yield import_module("markup")


@pytest.fixture(scope="module")
def generated() -> Iterator[ModuleType]:
    pytest.importorskip("lightning")
    with tools():
        yield import_module("generated")


def test_every_public_module_and_name_has_its_place_in_the_reference(generated: ModuleType) -> None:
    assert set(NAMES) <= set(generated.modules())
    made = generated.pages()
    for module, names in NAMES.items():
        listed = re.findall(r"- (\w+)$", made[generated.page_of(module)], flags=re.MULTILINE)
        assert sorted(listed) == sorted(names.split())


@pytest.mark.parametrize("module", NAMES)
def test_every_public_class_and_function_has_a_docstring(module: str) -> None:
    room = module.rpartition(".")[2]
    if ".adapters." in module or room in HOSTS:
        pytest.importorskip(HOSTS.get(room, room))
    found = import_module(module)
    bare = [
        name
        for name in found.__all__
        if (inspect.isclass(getattr(found, name)) or inspect.isroutine(getattr(found, name)))
        and not (getattr(found, name).__doc__ or "").strip()
    ]
    assert not bare


def test_commands_and_recipes_are_all_on_their_pages(generated: ModuleType) -> None:
    from elm_neuro import cli

    made = generated.pages()
    for command in ("export", "onnx run", "onnx bench", "neuronio convert", "neuronio eval", "lra generate", "demo"):
        assert f"## elm-neuro {command}\n" in made["reference/commands.md"]
    for name in cli.recipes():
        assert f"## {name}\n" in made["reference/recipes.md"]


@pytest.mark.parametrize(
    ("source", "leaves"),
    [
        (r"\kappa_m", ["κ", "m"]),
        (r"\exp(-\Delta t)", ["exp", "(", "−", "Δ", "t", ")"]),
        (r"\frac{2}{3} x^2", ["2", "3", "x", "2"]),
    ],
)
def test_equations_become_mathml_with_the_same_symbols(markup: ModuleType, source: str, leaves: list[str]) -> None:
    tree = ElementTree.fromstring(markup.mathml(source))
    assert [text for text in tree.itertext() if text.strip()] == leaves


def test_markup_of_docstrings_is_understood(markup: ModuleType) -> None:
    import markdown

    text = (
        "Gain :math:`x`, cost $y$ and `$z$` of :func:`elm_neuro.suggest`.\n\n.. math::\n    a &= b \\\\\n    c &= d\n\n"
        ">>> 1 + 1\n2\n\n```python\nx = '$no$ :math:`x`'\n```\n"
    )
    html = markdown.markdown(text, extensions=[markup.Markup(), "pymdownx.superfences"])
    assert html.count("<math") == 3
    assert html.count("<mtr>") == 2
    assert "<code>$z$</code>" in html
    assert '<autoref identifier="elm_neuro.suggest" optional=""><code>suggest</code></autoref>' in html
    assert "&gt;&gt;&gt;" in html
    assert "$no$" in unescape(re.sub("<[^>]*>", "", html))


def test_every_diagram_has_been_drawn_from_the_source_that_stands_on_its_page(markup: ModuleType) -> None:
    texts = [page.read_text(encoding="utf-8") for page in pages()]
    drawn = {
        markup.diagram_file(source)
        for text in texts
        for source in re.findall(r"^```mermaid\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    }
    assert drawn
    assert drawn == set(markup.DIAGRAMS.glob("*.svg"))


def test_a_diagram_that_was_changed_and_not_drawn_is_refused(markup: ModuleType) -> None:
    import markdown

    with pytest.raises(FileNotFoundError, match=r"python docs/tools/diagrams\.py"):
        markdown.markdown("```mermaid\nflowchart TD\n    a --> never\n```", extensions=[markup.Markup()])


def test_every_figure_of_a_page_comes_from_a_script_that_the_page_names() -> None:
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        for figure in re.findall(r"\]\([^)]*figures/(\w+)\.png\)", text):
            assert f"docs/figures/{figure}.py" in text, f"{page} shows {figure}.png and does not say what drew it"
            assert (DOCS / "figures" / f"{figure}.py").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("script", TUTORIALS)
def test_tutorials_run_as_scripts_from_any_folder(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("snntorch", "norse", "tonic", "onnx", "lightning"):
        if host in (ROOT / script).read_text(encoding="utf-8"):
            pytest.importorskip(host)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(ROOT / script))


@pytest.mark.slow
@pytest.mark.parametrize("script", FIGURES)
def test_figures_are_drawn(script: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source, figure = (ROOT / script).read_text(encoding="utf-8"), tmp_path / "figure.png"
    smoke, environment = ["--smoke"] if "--smoke" in source else [], _environment()
    if "from_pretrained" in source:  # of a published neuron, as it stands in the cache of who has downloaded it
        published = request.getfixturevalue("shared") / "data/checkpoints/num_memory_20"
        shutil.copytree(published, tmp_path / "elm_neuro/upstream/num_memory_20")
        environment |= {"XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, ROOT / script, *smoke, "--out", figure], check=True, cwd=ROOT, env=environment)
    assert figure.read_bytes().startswith(b"\x89PNG")


class Links(HTMLParser):
    """What a page links to, what it loads, and the places within it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in ("script", "img", "link", "iframe", "source"):
            loaded = values.get("src") or (values.get("href") if values.get("rel") != "canonical" else None)
            self.loads += [loaded] if loaded else []


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_site_is_built_without_a_warning_and_holds_together(tmp_path: Path) -> None:
    """Strictly, tutorials run; then every link and anchor is followed, and every file that a page loads is there."""
    pytest.importorskip("mkdocs_jupyter")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    site = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    html = {name: Links(path.read_text(encoding="utf-8")) for name, path in site.items() if name.endswith(".html")}
    broken = []
    for name, page in html.items():
        for target in (*page.links, *page.loads):
            address = urlparse(urljoin(f"http://site/{name}", target))
            if address.netloc != "site":
                if target in page.loads and not target.startswith("data:"):
                    broken.append(f"{name} loads {target} from elsewhere")
                continue
            file = unquote(address.path).lstrip("/")
            file += "index.html" if not file or file.endswith("/") else ""
            if file not in site:
                broken.append(f"{name}: {target}")
            elif address.fragment and file in html and unquote(address.fragment) not in html[file].places:
                broken.append(f"{name}: no place {address.fragment} in {file}")
    assert not [line for line in broken if not line.startswith("404.html")]
    assert not [name for name, path in site.items() if name.endswith(".css") and b"url(http" in path.read_bytes()]

    inventory = zlib.decompress((tmp_path / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    entries = {line.split(" ")[0] for line in inventory}
    rooms = {"elm_neuro.backends", "elm_neuro.checkpoints", "elm_neuro.pretrained", *NAMES}
    public = {f"{module}.{name}" for module, names in NAMES.items() for name in names.split()}
    operators = {f"elm_neuro.backends.{name}" for name in ("alif", "elm", "network")}  # what is in them stands there
    assert {name for name in public - entries if name not in rooms} <= operators


def _environment() -> dict[str, str]:
    return os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
