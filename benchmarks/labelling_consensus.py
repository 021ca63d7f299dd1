"""Agreement and consensus of people, measured on real ratings and on simulated annotators.

`python benchmarks/labelling_consensus.py ratings` and `digits` write sections of `results/labelling.md`;
`crowds FOLDER` reads NAME/answer.csv (question, worker, answer) and NAME/truth.csv (question, truth) of data sets with known
annotators, such as those of Zheng et al. (2017), which no package distributes.
"""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

sys.path.insert(0, str(Path(__file__).parent))
from labelling_texts import FILES, load_rated_texts  # noqa: E402 - needs the path
from results_pages import markdown_table, write_section  # noqa: E402
from scipy.stats import hypergeom  # noqa: E402

from mlcycle.data.labelling.agreement import fleiss_kappa, krippendorff_alpha  # noqa: E402
from mlcycle.data.labelling.consensus import annotator_quality, find_consensus, simulate_annotators  # noqa: E402

app = typer.Typer(add_completion=False, help=__doc__)
KNOWN = {  # From an earlier measurement: Fleiss' kappa, one rater, majority of five
    "movies": (0.716, 0.931, 0.971),
    "amazon": (0.691, 0.864, 0.892),
    "nyt": (0.365, 0.760, 0.774),
    "tweets": (0.573, 0.811, 0.849),
}
ACCURACIES = {"anna": 0.9, "ben": 0.8, "cem": 0.7, "dora": 0.6, "emil": 0.5}


def short(value: float, digits: int = 3) -> str:
    """A number without the leading zero."""
    return f"{value:.{digits}f}".replace("0.", ".", 1)


def draw_ratings(texts: pd.DataFrame, n_ratings: int, seed: int) -> pd.DataFrame:
    """Annotations: some ratings of each text, drawn without replacement. The annotators are not known, only places."""
    rng = np.random.default_rng(seed)
    drawn = np.array([rng.permutation(ratings)[:n_ratings] for ratings in texts.ratings])
    annotators = np.tile([f"rating {n}" for n in range(n_ratings)], len(texts))
    return pd.DataFrame({"item": np.repeat(texts.index, n_ratings), "annotator": annotators, "label": drawn.ravel()})


def exact_agreement(texts: pd.DataFrame, n_ratings: int) -> tuple[float, float]:
    """How often the majority of some ratings, drawn at random, has the sign of the mean of all; and its error of one draw."""
    positive = np.array([sum(rating > 0 for rating in ratings) for ratings in texts.ratings])
    sizes = texts.ratings.map(len).to_numpy()
    chance = hypergeom.sf(n_ratings // 2, sizes, positive, n_ratings)  # That most of the drawn ratings are positive
    right = np.where(texts["mean"] > 0, chance, 1 - chance)
    return right.mean(), np.sqrt((right * (1 - right)).sum()) / len(texts)


def all_signs(texts: pd.DataFrame) -> pd.DataFrame:
    """Annotations: the signs of all ratings."""
    lines = texts.ratings.explode()
    places = lines.groupby(level=0, sort=False).cumcount()
    return pd.DataFrame({"item": lines.index, "annotator": places.to_numpy(), "label": np.sign(lines.to_numpy(dtype=int))})


def rate(name: str, texts: pd.DataFrame) -> list[str]:
    """A line of the table for one set of texts."""
    known = KNOWN[name]
    numbers = draw_ratings(texts, 15, seed=0)
    signs = numbers.assign(label=np.sign(numbers.label))
    kappa, alpha = fleiss_kappa(signs, [-1, 0, 1]), krippendorff_alpha(numbers, "interval")
    one, five = exact_agreement(texts, 1), exact_agreement(texts, 5)
    few = draw_ratings(texts, 5, seed=0)
    vote = find_consensus(few.assign(label=few.label > 0), classes=[False, True]).labels.label
    voted = (vote.loc[texts.index].astype(bool) == (texts["mean"] > 0)).mean()
    cells = [name, f"{len(texts):,}", short(known[0]), f"{short(kappa.value)} [{short(kappa.low)}, {short(kappa.high)}]"]
    cells += [f"{short(alpha.value)} [{short(alpha.low)}, {short(alpha.high)}]", short(known[1])]
    cells += [f"{short(one[0])} ± {short(one[1])}", short(known[2]), f"{short(five[0])} ± {short(five[1])}", short(voted)]
    print(cells, flush=True)
    return cells


@app.command()
def ratings() -> None:
    """Agreement of the ratings of four sets of texts."""
    sets = {name: load_rated_texts(name) for name in ("movies", "amazon", "nyt", "tweets")}
    first = {name: exact_agreement(each.assign(ratings=each.ratings.str[:15]), 1)[0] for name, each in sets.items()}
    whole = {name: fleiss_kappa(all_signs(each), [-1, 0, 1]).value for name, each in sets.items()}
    header = ["set", "texts", "Fleiss' kappa, known", "measured", "Krippendorff's alpha (interval)", "one rating, known"]
    header += ["expected ± of one draw", "majority of five, known", "expected ± of one draw", "`majority_vote`, one draw"]
    table = markdown_table(header, [rate(name, each) for name, each in sets.items()])
    assert {*KNOWN} == {*FILES}
    write_section(
        "labelling",
        "Agreement of real ratings",
        f"""
Ratings from -4 to 4 by 15 to 99 people for each text (Hutto and Gilbert, 2014). Fleiss' kappa is of three signs (negative, 0,
positive) and 15 ratings, which are drawn for each text without replacement; all intervals are 95 %. With all ratings:
{", ".join(f"{name} {short(value)}" for name, value in whole.items())}.

`One rating` and `majority of five` are the shares of texts in which one rating, or most of five, is positive just if the mean of
all ratings of the text is. The known figures are of one random draw. The expected values are exact (hypergeometric), and ± is the
standard deviation of a draw. The earlier ratings of a movie line agree more often with the mean, so that it matters among which
ones is drawn; one of the first 15 ratings: {", ".join(f"{name} {short(value)}" for name, value in first.items())}.

{table}

The annotators of these ratings are not known, so that methods that estimate annotators cannot be tried on them.
""",
    )


def confuse(rng: np.random.Generator, spread: float) -> dict[str, np.ndarray]:
    """Confusion matrices of five annotators; spread: how evenly errors are distributed among classes."""
    return {
        name: np.stack([np.insert((1 - right) * rng.dirichlet(np.full(9, spread)), k, right) for k in range(10)])
        for name, right in ACCURACIES.items()
    }


def simulate(seed: int, share: float, spread: float) -> dict[str, float]:
    """Accuracies of the methods, and errors of their estimates, on digits with five annotators."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    images, digits = load_digits(return_X_y=True)
    actual = pd.Series(digits, [f"{n:04}" for n in range(len(digits))])
    known = confuse(np.random.default_rng(seed), spread)
    annotations = simulate_annotators(actual, known, range(10), share=share, seed=seed)
    vote = find_consensus(annotations, "majority", range(10))
    rows = pd.DataFrame(images / 16, actual.index).loc[vote.labels.index]
    model = LogisticRegression(C=0.1, max_iter=200)
    probs = cross_val_predict(model, rows, vote.labels.label, cv=5, method="predict_proba")
    probs = pd.DataFrame(probs, rows.index)
    found = [vote, *(find_consensus(annotations, method, range(10), probs) for method in ("dawid-skene", "crowdlab"))]
    result = {each.method: (each.labels.label == actual[rows.index]).mean() for each in found}
    result["classifier"] = (probs.idxmax(axis=1) == actual[rows.index]).mean()
    result["confusion"] = max(abs(found[1].confusion.loc[name] - known[name]).mean(axis=None) for name in known)
    for each in found[1:]:
        estimated = annotator_quality(annotations, each).estimated_accuracy
        result[f"accuracy, {each.method}"] = abs(estimated - pd.Series(ACCURACIES)).max()
    return result


@app.command()
def digits(seeds: Annotated[int, typer.Option(help="Number of simulations of each setting.")] = 5) -> None:
    """Consensus of five simulated annotators of digits."""
    settings = {"60 % of the images each, errors on one or two classes": (0.6, 0.5)}
    settings["60 % each, errors spread over classes"] = (0.6, 5.0)
    settings["all images each, errors on one or two classes"] = (1.0, 0.5)
    lines = []
    for name, (share, spread) in settings.items():
        results = pd.DataFrame([simulate(seed, share, spread) for seed in range(seeds)])
        print(name, results.mean().round(3).to_dict(), flush=True)
        methods = ["majority", "dawid-skene", "crowdlab", "classifier"]
        lines.append([name, *(f"{short(results[each].mean())} ± {short(results[each].std())}" for each in methods)])
        errors = ["confusion", "accuracy, dawid-skene", "accuracy, crowdlab"]
        lines[-1] += [short(results[each].max()) for each in errors]
    header = ["annotators label", "majority", "Dawid-Skene", "CROWDLAB", "classifier alone", "error of confusion matrices"]
    table = markdown_table([*header, "error of accuracies, Dawid-Skene", "CROWDLAB"], lines)
    write_section(
        "labelling",
        "Consensus of simulated annotators",
        f"""
1,797 images of digits and five simulated annotators with known confusion matrices, who are right in 90, 80, 70, 60 and 50 % of
cases; share of images with the right consensus, mean ± standard deviation of {seeds} seeds. The classifier (logistic regression)
is trained on the majority vote, and its probabilities are out-of-fold. Errors are the largest of all annotators and seeds: the
mean absolute error of the cells of the confusion matrix, and the error of the accuracy that `annotator_quality` estimates.

{table}

With three labels for each image on average, the classifier helps most; with five, Dawid-Skene is as good without it. If errors
are spread over many classes and labels are few, Dawid-Skene has nothing to learn from, and is no better than the vote.
Known figures of a similar simulation are .88, .90 and .95.
""",
    )


@app.command()
def crowds(folder: Annotated[Path, typer.Argument(help="Has NAME/answer.csv and NAME/truth.csv.")]) -> None:
    """Consensus of real annotators, from files."""
    known = {"product": (0.897, 0.940), "bluebirds": (0.759, 0.889)}
    lines = []
    for path in sorted(folder.glob("*/answer.csv")):
        answers = pd.read_csv(path, dtype=str).set_axis(["item", "annotator", "label"], axis=1)
        actual = pd.read_csv(path.with_name("truth.csv"), dtype=str).set_index("question").truth
        found = [find_consensus(answers, method).labels.label for method in ("majority", "dawid-skene")]
        right = [(each.reindex(actual.index) == actual).mean() for each in found]
        alpha = krippendorff_alpha(answers)
        line = [path.parent.name, f"{len(actual):,}", f"{answers.annotator.nunique():,}", f"{len(answers):,}"]
        line += [f"{short(alpha.value)} [{short(alpha.low)}, {short(alpha.high)}]"]
        for value, figure in zip(right, known.get(path.parent.name, ("", "")), strict=True):
            line += [short(figure) if figure else "", short(value)]
        print(line, flush=True)
        lines.append(line)
    header = ["set", "items", "annotators", "labels", "Krippendorff's alpha", "majority, known", "measured"]
    table = markdown_table([*header, "Dawid-Skene, known", "measured"], lines)
    write_section(
        "labelling",
        "Consensus of real annotators",
        f"""
Share of items with the right consensus, of data sets with known annotators and true classes (Zheng et al., 2017). No package
distributes them; the section is written by `python benchmarks/labelling_consensus.py crowds FOLDER`.

{table}
""",
    )


if __name__ == "__main__":
    app()
