"""What mkdocs does for this site beside its plugins: our markup, generated pages, tutorials that look like pages."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import sys
import tempfile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

sys.path.insert(0, str(Path(__file__).parent))
import generated
import markup

SECTIONS = {"tutorials": "Tutorials", "how-to": "How to", "reference": "Reference", "explanation": "Explanation"}
LOG = logging.getLogger("mkdocs.hooks.elm_neuro")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Our markup for pages and docstrings; the tutorials' kernel finds the package of this checkout."""
    config.markdown_extensions.append("markup")
    root = str(Path(config.config_file_path).parent)
    os.environ["IPYTHONDIR"] = _ipython_settings()
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return config


def _ipython_settings() -> str:
    """A folder of settings for the kernel of the tutorials: a figure at the end of a cell is drawn, whoever made it."""
    startup = Path(tempfile.mkdtemp(prefix="elm-neuro-docs-"), "profile_default", "startup")
    startup.mkdir(parents=True)
    startup.joinpath("figures.py").write_text(
        "import warnings\n"
        "from IPython.core.pylabtools import select_figure_formats\n"
        "warnings.filterwarnings('ignore', message='IProgress not found')  # of tqdm, which takes this for a notebook\n"
        "select_figure_formats(get_ipython(), {'png'}, bbox_inches=None)\n",
        encoding="utf-8",
    )
    return str(startup.parents[1])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages that are read off the package, and in the menu what it does not name: modules, and new pages at the end
    of their section.
    """
    for path, text in generated.pages().items():
        files.append(File.generated(config, path, content=text))
    sections = {title: pages for entry in config.nav for title, pages in entry.items() if isinstance(pages, list)}
    modules = {generated.page_of(module): module.removeprefix("elm_neuro.") for module in generated.modules()}
    named = [*modules, *re.findall(r"[\w./-]+\.(?:md|py)", str(config.nav))]
    for file in files.documentation_pages():
        section = SECTIONS.get(file.src_uri.partition("/")[0])
        if section and file.src_uri not in named:
            sections[section].append(file.src_uri)
    sections["Reference"].append({"API": [{title: page} for page, title in modules.items()]})
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Tutorials in the site's own style: equations and links as on other pages, without Jupyter's half megabyte."""
    if not page.file.src_uri.startswith("tutorials/") or not page.file.src_uri.endswith(".py"):
        return html
    for unwanted in (
        r"<(style|script)\b.*?</\1>",
        r"<clipboard-copy.*?</clipboard-copy>",
        r'<div class="clipboard-copy-txt".*?</div>',
        r'<div class="jp-(?:Input|Output)Prompt[^>]*>[^<]*</div>',
    ):
        html = re.sub(unwanted, "", html, flags=re.DOTALL)
    html = re.sub(
        r'<div class="highlight-ipynb hl-python"><pre>(.*?)</pre></div>',
        r'<div class="highlight"><pre><code>\1</code></pre></div>',
        html,
        flags=re.DOTALL,
    )
    source = f"docs/{page.file.src_uri}"
    html += f'<p class="source">This page is <code>{source}</code> with its output, run when the site was built.</p>'
    html = re.sub(
        r'href="([^":#]+)((?:#[^"]*)?)"', lambda link: f'href="{_address(link[1], page, files)}{link[2]}"', html
    )
    return markup.equations_of_html(html)


def _address(target: str, page: Page, files: Files) -> str:
    """Where a link between sources leads on the site."""
    source = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), target))
    file = files.get_file_from_path(source)
    if file is None:
        LOG.warning(f"{page.file.src_uri} links to {target}, but there is no {source} among the pages")
        return target
    return get_relative_url(file.url, page.url)
