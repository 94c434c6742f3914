"""How each kind of layer is exported: one file a kind, each of which registers its own, all found here by being in the
folder.
"""

from __future__ import annotations

import importlib
import pkgutil

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
