"""One page about a module that needs nothing else: figures inside it, tables, no script, nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple
from urllib.parse import quote

import torch
from torch import nn

from elm_neuro.look._parts import Part

CSS = """
:root { color-scheme: light; --ink: #222; --pale: #6b6b6b; --line: #e2e2e2; --blue: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 .25rem; }
p { margin: .35rem 0; }
.lead, figcaption { color: var(--pale); overflow-wrap: anywhere; } .lead { margin-bottom: 1.25rem; }
nav { margin: 1rem 0; } nav a { margin-right: 1rem; } a { color: var(--blue); }
figure { margin: .5rem 0 1.5rem; } figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: .9rem; margin-top: .25rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: .6rem 1.25rem;
  margin: 1.25rem 0; }
dt { font-size: .8rem; color: var(--pale); }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; width: 100%; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
"""


class Figured(NamedTuple):
    """A figure as it stands on the page."""

    title: str
    caption: str
    png: bytes


class Section(NamedTuple):
    """What is shown of one layer."""

    part: Part
    figures: Sequence[Figured]


def page(title: str, lead: str, module: nn.Module, sections: Sequence[Section]) -> str:
    """HTML about a module.

    Args:
        title: its name.
        lead: what it is and what it was driven with.
        module: what was loaded.
        sections: of its layers.
    """
    several = len(sections) > 1
    links = "".join(f'<a href="#{_anchor(part)}">{escape(_heading(part))}</a>' for part, _ in sections)
    body = "\n".join(_section(section, several) for section in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
{f"<nav>{links}</nav>" if several else ""}
{body}
<h2>Parameters</h2>
{_parameters(module)}
</body>
</html>
"""


def _heading(part: Part) -> str:
    kinds = type(part.layer).__name__ + (f" of {type(part.core).__name__}" if part.core is not part.layer else "")
    return f"{part.name}: {kinds}" if part.name else kinds


def _anchor(part: Part) -> str:
    return "layer-" + (quote(part.name, safe="") or "itself")


def _section(section: Section, several: bool) -> str:
    part, figures = section
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in _facts(part))
    blocks = "\n".join(
        f'<h3>{escape(one.title)}</h3>\n<figure><img alt="{escape(one.title + ": " + one.caption)}" '
        f'src="data:image/png;base64,{base64.b64encode(one.png).decode()}">\n'
        f"<figcaption>{escape(one.caption)}</figcaption></figure>"
        for one in figures
    )
    heading = f'<h2 id="{_anchor(part)}">{escape(_heading(part))}</h2>' if several else ""
    return f"{heading}\n<dl>{facts}</dl>\n{blocks}"


def _facts(part: Part) -> Iterator[tuple[str, str]]:
    """The configurations of the wrappers and of what they wrap, without what is None."""
    if part.num_neuron is not None:
        yield "looked at", f"neuron {part.neuron} of {part.num_neuron}"
    outer = {} if part.layer is part.core else part.layer.config.to_dict()
    for name, value in [*part.config.to_dict().items(), *outer.items()]:
        if value is None or name == "core":
            continue
        if isinstance(value, dict):
            value = value.get("class", "…")
        if isinstance(value, list):
            value = ", ".join(_short(one) for one in value[:4]) + (f", … ({len(value)})" if len(value) > 4 else "")
        yield name, _short(value)


def _short(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _parameters(module: nn.Module) -> str:
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    rows = []
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, torch.Tensor) or name.endswith("_extra_state"):  # settings, which are shown above
            continue
        cells = [
            f"<code>{escape(name)}</code>",
            " × ".join(map(str, tensor.shape)) or "one",
            f"{tensor.numel():,}",
            "yes" if name in trained else "no",
            *_spread(tensor),
        ]
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    total = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    headings = ("name", "shape", "numbers", "trained", "lowest", "mean", "highest")
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f"""<p>{total:,} trained numbers. Values are as stored: synaptic weights before they are rectified,
time constants behind a sigmoid.</p>
<div class="table"><table><thead><tr>{head}</tr></thead>
<tbody>{body}</tbody></table></div>"""


def _spread(tensor: torch.Tensor) -> list[str]:
    values = tensor.detach().double()
    if not values.numel():
        return ["–"] * 3
    return [f"{float(value):.4g}" for value in (values.min(), values.mean(), values.max())]
