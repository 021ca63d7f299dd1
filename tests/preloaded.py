"""What the server of `commands` does once for all its forks, beside imports: an empty database, summaries of modules."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from mlcycle.core.files import atomic_write
from mlcycle.core.workspace import Workspace
from mlcycle.nb.fingerprints import stage_fingerprint
from mlcycle.outcomes import STAGES
from mlcycle.stores.models import registry

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.ERROR)
with TemporaryDirectory() as _folder:
    for _stage in STAGES:
        stage_fingerprint(Workspace(Path(_folder), {"workspace": "."}), _stage)  # Its process keeps them
    registry._make_database(f"sqlite:///{_folder}/mlflow.db")  # MLflow's migrations take over a second
    EMPTY_DATABASE = (Path(_folder) / "mlflow.db").read_bytes()


def copy_database(tracking_uri: str) -> None:
    "Copy the database that `_make_database` made in the server."
    path = Path(tracking_uri.removeprefix("sqlite:///"))
    if tracking_uri.startswith("sqlite:///") and not path.exists():
        with atomic_write(path) as half:
            half.write_bytes(EMPTY_DATABASE)


registry._make_database = copy_database
