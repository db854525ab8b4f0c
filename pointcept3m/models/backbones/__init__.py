"""3D backbones. Every file in this folder is imported, so that a new backbone is one file and no other edit."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
