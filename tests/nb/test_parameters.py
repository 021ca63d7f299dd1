"""Typed parameters: whatever is given arrives in the kernel as it was, or fails before anything runs."""

import base64
import json
import math
import pickle
import tempfile
from pathlib import Path, PurePosixPath
from typing import Literal, get_args, get_origin

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook
from papermill.parameterize import parameterize_notebook
from papermill.translators import papermill_translators

from mlcycle.cli.base import parse_assignments
from mlcycle.core.settings import read_settings, section_with_defaults
from mlcycle.engine.client import KeyPreservingTranslator
from mlcycle.errors import ParameterError
from mlcycle.lifecycle.execute import execute_notebook
from mlcycle.lifecycle.parameter_sets import plan_batch, read_parameter_sets
from mlcycle.lifecycle.plan import make_plan_from_parameters
from mlcycle.nb.notebook import Parameter, parse_parameters, read_parameters, stage_notebooks
from mlcycle.nb.parameters import RENAMED, read_parameter_file, resolve_parameters

KERNEL = {"name": "python3", "language": "python", "display_name": "python3"}
FOLDER = Path(tempfile.mkdtemp(prefix="mlcycle-test-"))
settings.register_profile("parameters", deadline=None, max_examples=400)
settings.load_profile("parameters")


def same(one, other) -> bool:
    "Equal in value and in type, inside too; nan is nan, and a zero has a sign."
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one), list(other)) and same(list(one.values()), list(other.values()))
    return one == other


texts = st.text(st.characters(exclude_categories=["Cs"]))
nasty = st.sampled_from(
    ["", " ", "007", "true", "none", "None", "null", "1e3", "'", '"', "\\", '\\"', "\n", "\r\n", "\t", "{x}", "%s", "$HOME"]
)
PLAIN = {"bool": st.booleans(), "int": st.integers(), "float": st.floats(), "str": texts | nasty}
choices = st.lists(
    st.booleans() | st.integers(-9, 9) | texts | nasty, min_size=1, max_size=4, unique_by=lambda one: (type(one), one)
)


@st.composite
def typed(draw, depth: int = 2):
    "An annotation, and the values of that type."
    kind = draw(st.sampled_from([*PLAIN, *PLAIN, "Literal", "optional", *(["list", "dict"] if depth else [])]))
    if kind == "Literal":
        known = draw(choices)
        return f"Literal[{', '.join(map(repr, known))}]", st.sampled_from(known)
    if kind in PLAIN:
        return kind, PLAIN[kind]
    if kind == "list":
        inner, values = draw(typed(depth - 1))
        return f"list[{inner}]", st.lists(values, max_size=4)
    if kind == "dict":
        key = draw(st.sampled_from(list(PLAIN)))
        inner, values = draw(typed(depth - 1))
        keys = PLAIN[key] if key != "float" else st.floats(allow_nan=False)
        return f"dict[{key}, {inner}]", st.dictionaries(keys, values, max_size=4)
    inner, values = draw(typed(depth).filter(lambda pair: "None" not in pair[0]))
    form = draw(st.sampled_from(["{} | None", "None | {}", "Optional[{}]"]))
    return form.format(inner), st.none() | values


@st.composite
def parameters(draw):
    "A parameter and a value of its type."
    annotation, values = draw(typed())
    return Parameter("x", annotation, None), draw(values)


def in_kernel(values: dict) -> dict:
    "What a notebook finds after papermill has written its cell, and the notebook has been saved and loaded."
    papermill_translators.register("python", KeyPreservingTranslator)
    cell = new_code_cell("x = 'default'", metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[cell], metadata={"kernelspec": KERNEL, "papermill": {}})
    written = parameterize_notebook(notebook, values, kernel_name="python3", language="python")
    loaded = nbformat.reads(json.dumps(written).encode().decode(), 4)
    space = {}
    for each in loaded.cells:
        exec(each.source, space)
    return space


def arrives(parameter: Parameter, layer: dict, where: str, stage: str = "data"):
    "What `x` is in the end."
    values = resolve_parameters({stage: [parameter]}, {where: layer})[stage]
    return in_kernel(values)["x"]


def as_text(value) -> str:
    "A value as a person would write it."
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, (bool, list, dict, type(None))) else repr(value)


def is_ambiguous(parameter: Parameter, value) -> bool:
    "Whether the same text means something else too."
    kind, text = parameter.plain_type, as_text(value)
    words = (
        [word for choice in get_args(kind) for word in {str(choice), json.dumps(choice)}] if get_origin(kind) is Literal else []
    )
    return words.count(text) > 1 or parameter.optional and value is not None and text.strip().lower() in ("none", "null")


@given(parameters())
def test_a_value_from_a_program_arrives_as_it_was(pair):
    parameter, value = pair
    assert same(arrives(parameter, {"x": value}, "program"), value)


@given(parameters())
def test_a_value_from_the_command_line_arrives_as_it_was(pair):
    parameter, value = pair
    assume(not is_ambiguous(parameter, value))
    assert same(arrives(parameter, parse_assignments([f"x={as_text(value)}"]), "command line"), value)


@given(parameters(), st.booleans())
def test_a_value_from_a_yaml_file_arrives_as_it_was(pair, by_stage):
    parameter, value = pair
    path = FOLDER / "parameters.yaml"
    written = yaml.safe_dump({"data": {"x": value}} if by_stage else {"x": value}, allow_unicode=True, sort_keys=False)
    assume(same(yaml.safe_load(written), {"data": {"x": value}} if by_stage else {"x": value}))
    path.write_text(written, encoding="utf-8", newline="")
    assert same(arrives(parameter, read_parameter_file(path), str(path)), value)


@given(parameters())
def test_a_value_from_the_settings_file_arrives_as_it_was(pair):
    parameter, value = pair
    text = as_text(value)
    assume(not is_ambiguous(parameter, value))
    assume(text == text.strip() and not set(text) & {"\n", "\r"})  # The format cannot carry them
    (FOLDER / "settings.ini").write_text(f"[data]\nx = {text}\n", encoding="utf-8", newline="")
    assert same(arrives(parameter, read_settings(FOLDER), "settings.ini"), value)


NUMPY = {
    "bool": [(np.bool_(False), False), (np.True_, True), (np.array(True), True)],
    "int": [(np.int8(-7), -7), (np.uint64(2**64 - 1), 2**64 - 1), (np.array(3), 3), (pd.Series([5])[0], 5)],
    "float": [(np.float64(0.1), 0.1), (np.float32(0.5), 0.5), (np.float64("nan"), math.nan), (7, 7.0), (np.int64(7), 7.0)],
    "str": [(np.str_("007"), "007"), (Path("/a b/ü"), "/a b/ü"), (PurePosixPath("c"), "c")],
    "list[int]": [((1, 2), [1, 2]), (np.arange(3), [0, 1, 2]), (pd.Series([1, 2]), [1, 2]), ([np.int64(1)], [1])],
    "list[float]": [(np.array([1.5, np.inf]), [1.5, math.inf]), ((1, 2.5), [1.0, 2.5])],
    "list[str]": [(np.array(["a", ""]), ["a", ""]), ((Path("a"),), ["a"]), (pd.Index(["x"]), ["x"])],
    "list[bool]": [(np.array([True, False]), [True, False])],
    "list[list[int]]": [(np.eye(2, dtype=int), [[1, 0], [0, 1]]), (((1,), ()), [[1], []])],
    "dict[str, float]": [({np.str_("a"): np.float32(1)}, {"a": 1.0})],
    "dict[int, bool]": [({np.int64(1): np.bool_(False)}, {1: False})],
    "int | None": [(np.int64(1), 1), (None, None)],
    'Literal["a", 1]': [(np.str_("a"), "a"), (np.int64(1), 1)],
    "list": [((None, (1, {"a": [np.float64(1)]})), [None, [1, {"a": [1.0]}]])],
    "dict": [({"a": (None, np.bool_(True))}, {"a": [None, True]})],
}


@pytest.mark.parametrize(("annotation", "given", "expected"), [(kind, *pair) for kind, pairs in NUMPY.items() for pair in pairs])
def test_what_programs_calculate_with_becomes_plain(annotation, given, expected):
    assert same(arrives(Parameter("x", annotation, None), {"x": given}, "program"), expected)


def test_sixty_nasty_values_reach_a_real_kernel(tmp_path):
    words = [
        "", " ", "007", "1e3", "true", "False", "none", "None", "null", "nan", "'", '"', "'''", '"""', "\\", "\\\\",
        '\\"', "\\n", "\n", "\r", "\r\n", "\t", "\0", "\x1b[31m", "\x7f", "\x85", "\u2028", "\ufeff", "é", "e\u0301",
        "🎉", "👩‍👩‍👧", "漢字", "עברית", "{x}", "{{", "%d", "$HOME", "`ls`", "#", "# no comment", "; rm", "a=b",
        "a: b", "<b>&amp;</b>", "x" * 10_000, "\\u0041", "\\N{BULLET}",
    ]  # fmt: skip
    values = {f"word_{number}": ("str", word) for number, word in enumerate(words)}
    values |= {
        "nan": ("float", math.nan), "inf": ("float", -math.inf), "zero": ("float", -0.0), "tiny": ("float", 5e-324),
        "whole": ("float", 1.0), "big": ("int", 10**300), "yes": ("bool", True), "absent": ("str | None", None),
        "word_none": ("str | None", "none"), "choice": ('Literal[1, True, "1"]', True), "empty": ("list[int]", []),
        "keys": ("dict[int, list[str | None]]", {0: ["none", None], -1: []}), "words": ("list[str]", words),
        "nested": ("dict[str, list[float]]", {"\\'\"\n": [math.nan, 1.0, -0.0]}),
        "any": ("list", [None, True, {"a": [1, 1.0, "1"]}]), "flags": ("dict[bool, float]", {True: 1.0, False: math.inf}),
    }  # fmt: skip
    defaults = {"str": "''", "bool": "False", "int": "1", "float": "1", "list": "[]", "dict": "{}"}
    kinds = {name: kind for name, (kind, _) in values.items()}
    source = "\n".join(
        f"{name}: {kind} = {'None' if kind.endswith(' None') else defaults.get(kind.split('[')[0], 1)}"
        for name, kind in kinds.items()
    )
    code = "import base64, pickle\nprint(base64.b64encode(pickle.dumps({name: globals()[name] for name in NAMES})).decode())"
    cells = [
        new_code_cell("from typing import Literal"),
        new_code_cell(source, metadata={"tags": ["parameters"]}),
        new_code_cell(code.replace("NAMES", str(list(values)))),
    ]
    path = tmp_path / "a folder {seed}" / "nasty.ipynb"
    path.parent.mkdir()
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), path)
    given = {name: value for name, (_, value) in values.items()}
    resolved = resolve_parameters({"nasty": read_parameters(path)}, {"program": given})["nasty"]
    execute_notebook(path, resolved, {"name": "warm", "cell_timeout": "60", "notebook_timeout": "60"})
    arrived = pickle.loads(base64.b64decode(nbformat.read(path, 4).cells[-1].outputs[0].text))
    assert len(arrived) > 60
    assert [name for name, value in given.items() if not same(arrived[name], value)] == []


def test_defaults_are_checked_and_made_plain():
    source = 'x: list[float] = (1, 2)  # Some = numbers # here\ny: Optional[str] = None\nz: dict[int, str] = {1: "a"}'
    x, y, z = parse_parameters(source)
    assert (x.default, x.help, x.annotation) == ([1.0, 2.0], "Some = numbers # here", "list[float]")
    assert y.optional
    assert not x.optional
    assert y.plain_type is str
    assert same(resolve_parameters({"data": [x, y, z]}, {})["data"], {"x": [1.0, 2.0], "y": None, "z": {1: "a"}})


UNSUPPORTED = """
tuple[int, ...]; set[str]; bytes; complex; object; Any; Path; float64; np.int64; typing.List[int]
typing.Optional[int]; List[int]; int | str; int | str | None; Union[int, str]; "int"; None; 3
list[int, str]; list[tuple[int]]; list[Path]; dict[str]; dict[str, int, int]; dict[list[int], str]
dict[str, Path]; Optional; Optional[int, str]; Literal; Literal[()]; Literal[x]; Literal[b"a"]; Literal[[1]]
Literal[a.b]; Annotated[int, 1]; Callable[[int], int]; int(); lambda: int; list[int](); [int]; {"a": int}
int & None; open("f"); dict[str, "int"]; list[*x]
"""


@pytest.mark.parametrize("annotation", [one.strip() for line in UNSUPPORTED.strip().splitlines() for one in line.split("; ")])
def test_an_unsupported_type_is_a_clear_error(annotation):
    with pytest.raises(ParameterError, match="'x' has the type") as caught:
        parse_parameters(f"x: {annotation} = None")
    assert "Types are bool, int, float, str, list[…]" in caught.value.expected
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "line",
    ["x = 1", "x: int", "import os", "x.y: int = 1", "x: int = open('f')", "x: int = y", "x: list[int] = [y]",
    "x: dict = {[]: 1}",
     "x: int = 'a'", "x: int = None", "x: bool = 1", "x: int = True", "x: Literal['a'] = 'b'", "x: str = b'a'", "x: list = {1}",
     "x: int = 1\nx: int = 2", "print(1)", "x: int = 1.0", "x: list[int] = ['1']", "x: float = 1j"],
)  # fmt: skip
def test_a_line_that_is_no_parameter_is_a_clear_error(line):
    with pytest.raises(ParameterError):
        parse_parameters(line)


@pytest.mark.parametrize("source", ["x: int = (", "x: int =", "  x: int = 1", "x: str = '"])
def test_a_parameters_cell_that_is_not_python_is_a_clear_error(tmp_path, source):
    cell = new_code_cell(source, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "broken.ipynb")
    with pytest.raises(ParameterError, match="broken.ipynb"):
        read_parameters(tmp_path / "broken.ipynb")


WRONG = {
    "bool": ["yes", 1, 0.0, None, np.int64(1), []],
    "int": ["1", 1.0, True, None, np.float64(1), np.bool_(True), [1], math.inf],
    "float": ["1.0", True, None, 1j, np.longdouble(1), 10**400],
    "str": [1, 0.5, True, None, b"a", ["a"], "\ud800"],
    "list[int]": ["1", [1.0], [True], ["1"], {1: 2}, {1}, None, np.array([1.5]), 1, [[1]], range(3)],
    "list[str]": ["a", ["a", 1], [None], ("a", b"")],
    "dict[str, int]": [{"a": "1"}, {1: 1}, [("a", 1)], {("a", "b"): 1}, {None: 1}, None],
    "dict[int, str]": [{"1": "a"}, {True: "a"}, {1.0: "a"}],
    "int | None": ["none", "1", 1.5, False],
    "Optional[str]": [0, False, ["a"]],
    'Literal["a", 1]': ["b", "A", 1.0, True, None, "1"],
    'Literal["a"] | None': ["b", "None", 0],
    "list": [[object()], [{1}], [pd.Timestamp("2020-01-01")], "a"],
    "dict": [{1: 1}, {"a": object()}, []],
}


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(kind, value) for kind, values in WRONG.items() for value in values],
    ids=lambda v: repr(v).split(" at 0x")[0][:40],
)
def test_a_value_of_the_wrong_type_is_a_clear_error(annotation, value):
    with pytest.raises(ParameterError, match="'x' cannot be") as caught:
        resolve_parameters({"data": [Parameter("x", annotation, None)]}, {"program": {"x": value}})
    assert annotation in caught.value.expected


def test_a_value_that_holds_itself_is_a_clear_error():
    endless = []
    endless.append(endless)
    with pytest.raises(ParameterError, match="'x' cannot be"):
        resolve_parameters({"data": [Parameter("x", "list", None)]}, {"program": {"x": endless}})


WRONG_TEXT = {
    "bool": ["maybe", "", "2"], "int": ["1.5", "x", "", "1e3", "none", "0x"], "float": ["x", "", "1,5", "none"],
    "list[int]": ["a", "1.5", "[1", "[1.5]", "{}"], "dict[str, int]": ["a", "a: b", "[1]", '{"a": 1.5}'],
    "dict[int, str]": ["a: b"],
    'Literal["a", "b"]': ["c", "", "A"], "int | None": ["x", "1.5", "nil"],
}  # fmt: skip


@pytest.mark.parametrize(("annotation", "text"), [(kind, text) for kind, texts in WRONG_TEXT.items() for text in texts])
@pytest.mark.parametrize("where", ["command line", "settings.ini"])
def test_a_text_that_cannot_be_read_is_a_clear_error(annotation, text, where):
    with pytest.raises(ParameterError, match="'x' cannot be"):
        resolve_parameters({"data": [Parameter("x", annotation, None)]}, {where: {"x": text}})


@pytest.mark.parametrize(
    ("annotation", "text", "expected"),
    [
        ("int", "007", 7),
        ("str", "007", "007"),
        ("str", " a ", " a "),
        ("bool", "yes", True),
        ("bool", "FALSE", False),
        ("float", "1e-3", 0.001),
        ("float", "nan", math.nan),
        ("float", "7", 7.0),
        ("list[str]", "a, b", ["a", "b"]),
        ("list[str]", "a\nb c", ["a", "b c"]),
        ("list[str]", "", []),
        ("list[str]", '["a, b"]', ["a, b"]),
        ("list[float]", "1, 2.5", [1.0, 2.5]),
        ("list[int | None]", "1, none", [1, None]),
        ("dict[str, str]", "a: b: c\nd:", {"a": "b: c", "d": ""}),
        ("dict[int, float]", "0: 1\n1: 5.5", {0: 1.0, 1: 5.5}),
        ("dict[int, float]", '{"0": 1}', {0: 1.0}),
        ("int | None", "None", None),
        ("Optional[str]", "null", None),
        ("Optional[str]", "", ""),
        ("Literal[True, 'auto']", "true", True),
        ("Literal[1, 2]", "2", 2),
        ("Literal['a', None]", "none", None),
        ("Literal[' a']", " a", " a"),
    ],
)
def test_text_is_read_by_the_type(annotation, text, expected):
    for where in ("command line", "settings.ini", "set 3"):
        assert same(arrives(Parameter("x", annotation, None), {"x": text}, where), expected)


@pytest.mark.parametrize(
    ("annotation", "written", "expected"),
    [
        ("str", "007", "007"),
        ("int", "007", 7),
        ("int", "010", 10),
        ("str", "2013-09-01", "2013-09-01"),
        ("str", "12:30", "12:30"),
        ("str", "1e3", "1e3"),
        ("float", "1e-3", 0.001),
        ("float", ".inf", math.inf),
        ("list[float]", "[1e-3, 2, .5]", [0.001, 2.0, 0.5]),
        ("int | None", "~", None),
        ("int | None", "none", None),
        ("str | None", "none", "none"),
        ("str", "'null'", "null"),
        ("bool", "yes", True),
        ("dict[int, str]", "{1: a}", {1: "a"}),
        ("list[str | None]", "[none, ~]", ["none", None]),
        ("str", '"a\\nb"', "a\nb"),
    ],
)
def test_yaml_is_read_as_people_mean_it(tmp_path, annotation, written, expected):
    (tmp_path / "p.yaml").write_text(f"x: {written}\n")
    assert same(arrives(Parameter("x", annotation, None), read_parameter_file(tmp_path / "p.yaml"), "p.yaml"), expected)


def test_an_unknown_name_is_found_before_anything_runs(tmp_path):
    (tmp_path / "p.yaml").write_text("modelling: {trails: 3}")
    for layers in (({"sead": 1}, None, "program"), ({"modelling.sead": "1"}, None, "command line")):
        with pytest.raises(ParameterError, match="'sead' .* is not known. Did you mean 'seed'"):
            make_plan_from_parameters(layers[0], tmp_path, layers[1], layers[2])
    with pytest.raises(ParameterError, match="'trails' .* is not known. Did you mean 'trials'"):
        make_plan_from_parameters({}, tmp_path, tmp_path / "p.yaml")
    with pytest.raises(ParameterError, match="stage 'modeling' .* is not known. Did you mean 'modelling'"):
        make_plan_from_parameters({"modeling.seed": "1"}, tmp_path)
    with pytest.raises(ParameterError, match="cannot be 'binery'.*Did you mean 'binary'"):
        make_plan_from_parameters({"task": "binery"}, tmp_path)
    with pytest.raises(ParameterError, match="cannot be '7'"):
        make_plan_from_parameters({"seed": "7"}, tmp_path, origin="program")
    for text, near in (("[data]\nsead = 1", "seed"), ("[dota]\nseed = 1", "data"), ("[engine]\ncell_timeot = 3", "cell_timeout")):
        (tmp_path / "settings.ini").write_text(text)
        with pytest.raises(ParameterError, match=f"is not known. Did you mean '{near}'"):
            make_plan_from_parameters({}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.yaml", "settings.ini"]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x: [", b"- 1", b"", b"1: 2", b"x: &x [*x]", b"data: {1: 2}", b"\x00"])
def test_a_parameter_file_that_cannot_be_used_is_a_clear_error(tmp_path, content):
    (tmp_path / "p.yaml").write_bytes(content)
    with pytest.raises(ParameterError):
        resolve_parameters({"data": [Parameter("x", "list", [])]}, {"p.yaml": read_parameter_file(tmp_path / "p.yaml")})


@pytest.mark.parametrize("content", [b"\xff", b"x = 1", b"[data\n", b"[data]\nx = 1\nx = 2", b"[data]\nno value"])
def test_a_settings_file_that_cannot_be_used_is_a_clear_error(tmp_path, content):
    (tmp_path / "settings.ini").write_bytes(content)
    with pytest.raises(ParameterError):
        read_settings(tmp_path)


@pytest.mark.parametrize("limit", ["soon", "-1", "1.5", ""])
def test_a_time_limit_is_a_number(limit):
    with pytest.raises(ParameterError, match="cell_timeout"):
        section_with_defaults({"engine": {"cell_timeout": limit}}, "engine")


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_is_answered_with_the_new_one(tmp_path, old, new):
    "On the command line, in a file of parameters, in the settings, in a program, and as a column of a batch."
    stage = next(stage for stage, path in stage_notebooks(tmp_path).items() if new in {p.name for p in read_parameters(path)})
    (tmp_path / "values.yaml").write_text(f"{stage}:\n  {old}: 1\n")
    (tmp_path / "sets.csv").write_text(f"seed,{old}\n1,1\n2,1\n")
    attempts = [
        lambda: make_plan_from_parameters(parse_assignments([f"{old}=1"]), tmp_path),
        lambda: make_plan_from_parameters(parse_assignments([f"{stage}.{old}=1"]), tmp_path),
        lambda: make_plan_from_parameters({}, tmp_path, tmp_path / "values.yaml"),
        lambda: make_plan_from_parameters({old: 1}, tmp_path, origin="program"),
        lambda: plan_batch(read_parameter_sets(tmp_path / "sets.csv"), {}, tmp_path),
    ]
    for attempt in attempts:
        with pytest.raises(ParameterError, match=f"'{old}'.* has another name now") as raised:
            attempt()
        assert f"'{new}'" in raised.value.remedy
    (tmp_path / "settings.ini").write_text(f"[{stage}]\n{old} = 1\n")
    with pytest.raises(ParameterError, match=r"settings.ini.* has another name now"):
        make_plan_from_parameters({}, tmp_path)
