"""The model card that is saved beside a module: what its configuration says, and that the rest is not known."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from elm_neuro.files import read_file
from elm_neuro.pretrained._kinds import kind_of

CARD_FILE = "README.md"
MARK = "<!-- Written by elm_neuro from config.json at every save. Remove this line to keep what you write here. -->"
LONGEST = 6  # values of a list that are shown one by one
MAX_BYTES = 1 << 20


def front_matter(**values: Any) -> str:
    """What stands before a model card for the Hugging Face hub, as YAML.

    >>> print(front_matter(license="mit", tags=["elm-neuro"]), end="")
    ---
    license: "mit"
    tags: ["elm-neuro"]
    ---
    """
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]  # JSON is YAML
    return "\n".join(["---", *lines, "---", ""])


def card_of(module: nn.Module, description: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """The card of a module.

    Args:
        module: that is saved.
        description: its class and configuration, of :func:`elm_neuro.pretrained.describe`.
        tensors: what is saved of it.
    """
    kind = description["class"]
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    fixed = sum(tensor.numel() for tensor in tensors.values()) - trained
    floats = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if tensor.is_floating_point()}
    size = f"{trained:,} trained numbers, {fixed:,} fixed ones{f' ({min(floats)})' if floats else ''}"
    rows = "\n".join(f"| {name} | {value} |" for name, value in _rows(description["config"]))
    head = front_matter(license="unknown", library_name="elm_neuro", tags=["elm-neuro", "spiking-neural-network", kind])
    return f"""{head}{MARK}

# {kind}

{_first_sentence(kind)}

```python
from elm_neuro import checkpoints

module = checkpoints.from_pretrained("...")  # this folder, or its owner/name on the Hugging Face hub
```

- **Size**: {size}.
- **Data**: not known to the library that saved it.
- **Scores**: not known.
- **Licence**: not known. `license: unknown` above is what the hub calls this.

## Configuration

Times are milliseconds.

| name | value |
| --- | --- |
{rows}
"""


def card_to_write(
    directory: Path, module: nn.Module, description: dict[str, Any], tensors: dict[str, Tensor]
) -> bytes | None:
    """The card for a folder; None where somebody's own is there already."""
    path = directory / CARD_FILE
    if path.exists() or path.is_symlink():
        if not path.is_file():
            return None
        try:
            written = MARK.encode() in read_file(path, MAX_BYTES)
        except ValueError:  # too large to be one of ours
            return None
        if not written:
            return None
    return card_of(module, description, tensors).encode()


def _first_sentence(kind: str) -> str:
    doc = inspect.getdoc(kind_of(kind).module_class) or ""
    sentence = " ".join(doc.partition("\n\n")[0].split())
    return sentence if sentence.endswith(".") else f"A module of class {kind}."


def _rows(config: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of a configuration, those of modules within it behind their names."""
    if isinstance(config, dict):
        if set(config) == {"class", "config"}:
            yield place, f"`{_cell(config['class'])}`"
            yield from _rows(config["config"], place)
            return
        for name, value in config.items():
            yield from _rows(value, f"{place}.{name}" if place else str(name))
    elif isinstance(config, list) and any(isinstance(value, list | dict) for value in config):
        for at, value in enumerate(config):
            named = isinstance(value, list) and len(value) == 2 and isinstance(value[1], dict)  # of a Sequential
            yield from _rows(value[1] if named else value, f"{place}.{value[0] if named else at}")
    elif isinstance(config, list) and len(config) > LONGEST:
        yield place, f"{len(config)} values, `{_cell(config[0])}` to `{_cell(config[-1])}`"
    else:
        yield place, f"`{_cell(config)}`"


def _cell(value: object) -> str:
    """A value inside a table."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.replace("|", "\\|").replace("`", "'").replace("\n", " ")
