"""A table of data through the whole life of a machine-learning project, in seven notebooks."""

__version__ = "0.1.0"

_LAZY = {
    "run": ("api", "run_lifecycle"),
    "open": ("api", "load_run"),
    "Run": ("core.runs", "Run"),
    "Workspace": ("core.workspace", "Workspace"),
}


def __getattr__(name: str):
    "Import `run`, `open`, `Run` and `Workspace` on first use, so that `import mlcycle` costs nothing."
    if name not in _LAZY:
        raise AttributeError(f"module 'mlcycle' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _LAZY[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
