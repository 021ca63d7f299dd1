"""Labels from rules, on texts with ratings by people: does a model taught by rules beat the rules alone?

`python benchmarks/labelling_rules.py` writes a section of `benchmarks/results/labelling.md` (ten minutes; with Snorkel where it
is installed), and `python benchmarks/labelling_rules.py runs` one about whole runs of the lifecycle on the movie lines.
The class of a text is "positive" if the mean of all its ratings is above zero. The holdouts are fixed draws of
30 %, and the rules (`labelling_sentiment_rules.py`) were written without a look at them; the choice of 14 of the 19 rules was
made on the other 70 % of the movie lines. Models see ratings only in the rows "people" and "labels".
"""

import sys
import tarfile
import time
from dataclasses import replace
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from labelling_sentiment_rules import BROAD
from labelling_texts import download_source, load_rated_texts
from results_pages import markdown_table, write_section
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_union

import mlcycle
from mlcycle.data.labelling.rule_labels import CombinedVotes, combine_votes
from mlcycle.data.labelling.rule_summary import summarise_rules
from mlcycle.data.labelling.rules import apply_rules, load_rules
from mlcycle.features.encode.encode import FeatureEncoder

SETS = ("movies", "amazon", "nyt", "tweets")
CLASSES = ["not positive", "positive"]
SEEDS, LABELLED, SCORED = 5, 200, 500


def load_set(name: str) -> tuple[pd.DataFrame, pd.Series, pd.DataFrame, np.ndarray, np.ndarray]:
    """Texts, classes, votes, and the places of training and holdout rows."""
    rated = load_rated_texts(name)
    rows, actual = rated[["text"]], pd.Series(np.where(rated["mean"] > 0, *CLASSES[::-1]), rated.index, dtype=object)
    votes = apply_rules(rows, load_rules(Path(__file__).with_name("labelling_sentiment_rules.py")), CLASSES)
    places = np.random.default_rng(0).permutation(len(rows))
    size = int(0.3 * len(rows))
    return rows, actual, votes, places[size:], places[:size]


def narrow(votes: pd.DataFrame) -> pd.DataFrame:
    """The votes without those of the broad rules."""
    return votes.drop(columns=list(BROAD))


def correct(labels: pd.Series, actual: pd.Series) -> np.ndarray:
    """Whether each label is right; a row without a label counts as half right, as if a coin was tossed."""
    return np.where(labels.isna(), 0.5, labels == actual)


def vader(texts: pd.Series) -> pd.Series:
    """The classes by vaderSentiment itself: positive if its compound score is above zero."""
    with TemporaryDirectory() as folder, tarfile.open(download_source()) as archive:
        archive.extractall(folder, filter="data")
        spec = spec_from_file_location("vader", next(Path(folder).glob("vader*/vaderSentiment/vaderSentiment.py")))
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        score = module.SentimentIntensityAnalyzer().polarity_scores
        return pd.Series([CLASSES[score(text)["compound"] > 0] for text in texts], texts.index, dtype=object)


def make_features(name: str, drawn: pd.DataFrame, test: pd.DataFrame) -> tuple:
    """Features of training and test rows: TF-IDF of words, with n-grams of characters, or the text encoder of stage 3."""
    if name == "mlcycle":
        encoder = FeatureEncoder({"text": "text"}, "linear")
        return encoder.fit_transform(drawn), encoder.transform(test)
    encoder = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    if name == "characters":
        encoder = make_union(encoder, TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), min_df=2, sublinear_tf=True))
    return encoder.fit_transform(drawn["text"]), encoder.transform(test["text"])


def taught(features: tuple, labels: pd.Series, weights: pd.Series | None = None) -> np.ndarray:
    """The classes of test rows predicted by a logistic regression that is trained on the rows with labels."""
    known = labels.notna().to_numpy()
    weights = None if weights is None else weights[known]
    return LogisticRegression(max_iter=2000).fit(features[0][known], labels[known].to_numpy(str), weights).predict(features[1])


def coin(combined: CombinedVotes) -> CombinedVotes:
    """The same labels, but a random class for each tie."""
    rng = np.random.default_rng(0)
    tied = (combined.labels["label"].isna() & combined.labels["confidence"].notna()).to_numpy()
    labels = combined.labels.assign(weight=np.where(tied, combined.labels["confidence"], combined.labels["weight"]))
    labels.loc[tied, "label"] = rng.choice(CLASSES, tied.sum())
    return replace(combined, labels=labels)


MODEL, MIXED = "model, majority of 14 rules", "- rules, model where they have no label"


def variants(votes: pd.DataFrame, known: pd.Series) -> dict[str, tuple[CombinedVotes, str, str]]:
    """Combined votes, the column of weights, and the features, by name."""
    few = narrow(votes)
    majority, wide = combine_votes(few, CLASSES), combine_votes(votes, CLASSES)
    made = {
        MODEL: (majority, "weight", "characters"),
        "- words only": (majority, "weight", "words"),
        "- text encoder of stage 3": (majority, "weight", "mlcycle"),
        "- words only, weight = confidence, no prior": (majority, "confidence", "words"),
        "- words only, ties: first class": (combine_votes(few, CLASSES, ties="prior"), "weight", "words"),
        "- words only, ties: a coin": (coin(majority), "weight", "words"),
        f"- words only, prior of {LABELLED} labels": (combine_votes(few, CLASSES, labels=known), "weight", "words"),
        "- words only, weighted vote": (combine_votes(few, CLASSES, "weighted"), "weight", "words"),
        f"- words only, weighted vote, {LABELLED} labels": (
            combine_votes(few, CLASSES, "weighted", labels=known),
            "weight",
            "words",
        ),
        "- words only, 19 rules": (wide, "weight", "words"),
        "- words only, 19 rules, weight = confidence, no prior": (wide, "confidence", "words"),
        "- words only, 19 rules, ties: first class": (combine_votes(votes, CLASSES, ties="prior"), "weight", "words"),
    }
    if find_spec("snorkel"):
        made["- words only, Snorkel's label model, 14 rules"] = (combine_votes(few, CLASSES, "snorkel"), "weight", "words")
        made["- words only, Snorkel's label model, 19 rules"] = (combine_votes(votes, CLASSES, "snorkel"), "weight", "words")
    return made


def measure_draw(rows: pd.DataFrame, test: pd.DataFrame, actual: pd.Series, votes: pd.DataFrame) -> dict[str, np.ndarray]:
    """The predicted classes of the test rows, by variant; rows, actual classes and votes are a draw of the training rows."""
    features = {name: make_features(name, rows, test) for name in ("words", "characters", "mlcycle")}
    predicted = {
        key: taught(features[name], combined.labels["label"], combined.labels[column])
        for key, (combined, column, name) in variants(votes, actual[:LABELLED]).items()
    }
    few = (features["characters"][0][:LABELLED], features["characters"][1])
    predicted[f"people: {LABELLED} labels"] = taught(few, actual[:LABELLED])
    predicted["people: all training rows"] = taught(features["characters"], actual)
    predicted["people: all training rows, encoder of stage 3"] = taught(features["mlcycle"], actual)
    return predicted


def measure_set(name: str) -> dict[str, np.ndarray]:
    """Whether each holdout row is predicted correctly, by variant, as an array of shape (seeds, rows)."""
    rows, actual, votes, training, holdout = load_set(name)
    test, holdout_actual = rows.iloc[holdout], actual.iloc[holdout]
    alone = {"14 rules alone": narrow(votes), "19 rules alone": votes}
    alone = {key: combine_votes(each, CLASSES).labels["label"].iloc[holdout] for key, each in alone.items()}
    alone |= {f"{key}, no label: not positive": labels.where(labels.notna(), CLASSES[0]) for key, labels in alone.items()}
    alone["vaderSentiment alone"] = vader(test["text"])
    hits = {key: [correct(labels, holdout_actual)] for key, labels in alone.items()}
    for seed in range(SEEDS):
        drawn = np.random.default_rng(seed).choice(training, int(0.8 * len(training)), replace=False)
        for key, classes in measure_draw(rows.iloc[drawn], test, actual.iloc[drawn], votes.iloc[drawn]).items():
            hits.setdefault(key, []).append(correct(pd.Series(classes, holdout_actual.index), holdout_actual))
            if key == MODEL:
                mixed = alone["14 rules alone"].where(alone["14 rules alone"].notna(), pd.Series(classes, holdout_actual.index))
                hits.setdefault(MIXED, []).append(correct(mixed, holdout_actual))
    return {key: np.stack(each) for key, each in hits.items()}


def interval(values: np.ndarray, draws: int = 2000) -> str:
    """A mean over the holdout rows with its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{signed(values.mean())} [{signed(low)}, {signed(high)}]"


def signed(value: float) -> str:
    """A difference with its sign and without a leading zero."""
    return f"{value:+.3f}".replace("0.", ".", 1)


def share(value: float) -> str:
    """A share without a leading zero."""
    return f"{value:.3f}".lstrip("0")


def measure_rules() -> None:
    """Rules alone and models taught by them, on four sets; writes a section."""
    start, found = time.time(), {}
    for name in SETS:
        found[name] = measure_set(name)
        print(name, {key: share(each.mean()) for key, each in found[name].items()}, flush=True)
    lines = [[key, *(share(found[name][key].mean()) for name in SETS)] for key in found[SETS[0]]]
    gains = []
    for name in SETS:
        means = {key: each.mean(axis=0) for key, each in found[name].items()}
        deviation = found[name][MODEL].mean(axis=1).std(ddof=1)
        others = ("14 rules alone", "19 rules alone", "19 rules alone, no label: not positive", "vaderSentiment alone")
        gains += [[name, f"{len(means[MODEL]):,}", share(means[MODEL].mean()), share(deviation),
                   *(interval(means[MODEL] - means[other]) for other in others),
                   interval(means[MIXED] - means["14 rules alone"])]]  # fmt: skip
    header = ["", "holdout rows", "model", "sd of seeds", "- 14 rules", "- 19 rules", "- 19, no label: not positive"]
    header += ["- vaderSentiment", "mixed - 14 rules"]
    tables = [markdown_table(["accuracy on the holdout", *SETS], lines), GAINS, markdown_table(header, gains)]
    summary = summary_table().reset_index().astype(str)
    tables += [SUMMARY, markdown_table(list(summary), summary.to_numpy().tolist())]
    write_section("labelling", "Rules", "\n\n".join([TEXT, *tables, f"{(time.time() - start) / 60:.0f} minutes on two cores."]))


def summary_table() -> pd.DataFrame:
    """The rules on the training rows of the movie lines, two of them with classes mixed up, and 200 labels."""
    _, actual, votes, training, _ = load_set("movies")
    votes, known = votes.iloc[training], actual.iloc[training[:LABELLED]]
    swapped = votes[["lexicon_sum", "only_negative"]].replace(dict(zip(CLASSES, CLASSES[::-1], strict=True)))
    table = summarise_rules(votes.join(swapped.add_prefix("mixed-up ")), known, CLASSES)
    return table[table["votes"] > 0].round(3)


QUICK = {"folds": 3, "trials": 2, "repeats": 1, "models": ["linear", "lightgbm"], "learning_curve": False, "select": "off",
         "probe_seconds": 0, "n_resamples": 50, "queue_size": 0}  # fmt: skip


def write_rules(folder: Path, broad: bool) -> Path:
    """The rules as a file for stage 2, with or without the broad ones."""
    here, path = Path(__file__).parent, folder / "rules.py"
    text = (here / "labelling_sentiment_rules.py").read_text()
    for name in () if broad else BROAD:
        text = text.replace(f"@rule\ndef {name}(", f"def {name}(")
    path.write_text(f"import sys\n\nsys.path.append({str(here)!r})\n{text}")
    return path


def run_on_set(name: str, rules: str) -> tuple[str, np.ndarray]:
    """Run stages 1 to 5 on a set whose holdout and 500 training rows are labelled by people; the verdict, which rows are right.

    `rules` is `14`, `19`, `none`, or `people`: all training rows are labelled by people; with `only`, no training row is.
    """
    rows, actual, _, training, holdout = load_set(name)
    table = rows.assign(text=rows["text"].str.strip(), sentiment=actual, part="train")
    table.iloc[holdout, -1] = "holdout"
    if rules != "people":
        table.iloc[training[0 if rules.endswith("only") else SCORED :], 1] = None
    with TemporaryDirectory() as made:
        folder = Path(made)
        table.to_csv(folder / "texts.csv", index=False)
        number = rules.removesuffix(" only")
        more = {"rules_file": str(write_rules(folder, number == "19"))} if number in ("14", "19") else {}
        choices = {"positive": CLASSES[1], "metric": "accuracy", "split_column": "part"}
        run = mlcycle.run(str(folder / "texts.csv"), "sentiment", folder, until="validation", **choices, **QUICK, **more)
        predicted = run.predict(table.iloc[holdout][["text"]])["prediction"]
        hits = predicted.to_numpy() == actual.iloc[holdout].to_numpy()
        score = next(each for each in run.verdict.scores if each.metric == "accuracy")
        assert abs(score.value - hits.mean()) < 1e-9  # The verdict is about these rows
        labels = run.dataset.labels.by_origin if run.dataset.labels else {}
        return f"{share(score.value)} [{share(score.low)}, {share(score.high)}] {labels} {run.candidate.winner}", hits


def measure_rules_by_run(name: str = "movies") -> None:
    """The lifecycle with a rules file beside the rules alone, on the same holdout; writes a section."""
    start, lines, found = time.time(), [], {}
    _, actual, votes, _, holdout = load_set(name)
    for rules, used in (("14", narrow(votes)), ("19", votes)):
        labels = combine_votes(used, CLASSES).labels["label"].iloc[holdout]
        found[f"{rules} rules alone"] = correct(labels, actual.iloc[holdout])
    best = max(found.values(), key=np.mean)
    for rules, words in RUNS.items():
        verdict, found[words] = run_on_set(name, rules)
        print(name, words, verdict, flush=True)
    for words, hits in found.items():
        alone = found.get(f"{words.split()[-2]} rules alone", best)
        lines.append([words, share(hits.mean()), "" if words.endswith("alone") else interval(hits - alone)])
    table = markdown_table(["movie lines", "accuracy on the holdout", "- the same rules alone"], lines)
    minutes = f"{(time.time() - start) / 60:.0f} minutes on two cores."
    write_section("labelling", "Runs with rules", "\n\n".join([RUN_TEXT, table, minutes]))


RUNS = {
    "14 only": "run: no labels and 14 rules",
    "19 only": "run: no labels and 19 rules",
    "14": f"run: {SCORED} labels and 14 rules",
    "19": f"run: {SCORED} labels and 19 rules",
    "none": f"run: {SCORED} labels, no rules",
    "people": "run: all training rows labelled by people",
}
RUN_TEXT = """The movie lines through `mlcycle run`, stages 1 to 5, with `rules_file` and the settings `folds = 3`, `trials = 2`,
`models = ["linear", "lightgbm"]`, `repeats = 1`, `select = off`; the metric is accuracy. A column marks the same holdout as
above. People have labelled it, and 500 training rows: rows that rules label are not scored, so that models and the threshold
are chosen on these; without them, on agreement with the rules. All other training rows have no label in the source. The accuracy
is that of the verdict of stage 5; in brackets, 95 % bootstrap intervals. Runs without rules are compared with the better
of the two sets of rules."""
TEXT = """Is a text positive, by the mean of all its ratings? Rules: 14 on single words and phrases, or 19 with five that sum up
the lexicon's ratings of all words. "Alone": the majority vote on the holdout; a row without a label (a tie, or no vote) counts as
half right, or is called "not positive", as by vaderSentiment. Models: logistic regression on TF-IDF of words, pairs of words and
n-grams of characters, taught by the labels that the rules give to the training rows, in five draws of 80 % of them. They see no
rating by people, and the prior is equal shares unless it is from 200 labels. Snorkel 0.10 ran in an environment of its own.

On the movie lines the model beats all rules alone, and vaderSentiment. On the other sets it does not. The lexicon was made for
tweets, whose sentiment is mostly in its words; there, and on the editorials, rules beat even a model that is taught by people. On
the reviews it beats the 14 rules with a prior of 200 labels, and not the 19 rules. The prior matters more than the method of
combination; the rule for ties matters little."""
GAINS = """Differences with 95 % bootstrap intervals over the holdout rows, means of the draws. "Mixed": the rules' label, and the
model's where they have none."""
SUMMARY = """The rules on the training rows of the movie lines with 200 labels; in the last two, the classes are mixed up on
purpose."""

if __name__ == "__main__":
    measure_rules_by_run() if sys.argv[1:] == ["runs"] else measure_rules()
