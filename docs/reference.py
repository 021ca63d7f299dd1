"""Reference of a function or class, from its source."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator

from fastcore.nbio import NbCell, mk_cell

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def public(cell: NbCell) -> list[ast.stmt]:
    """The functions and classes that a cell exports for others."""
    nodes = (cell.parsed_() or []) if "export" in cell.directives_ else []
    return [node for node in nodes if isinstance(node, DEFINITIONS) and not node.name.startswith("_")]


# Read as written, not with nbdev's `show_doc`. That one asks live objects: there the fields of pydantic records
# have lost their comments, methods are left out, and annotations with names that are imported late raise.
def parameters(node: ast.FunctionDef, notes: dict[int, str]) -> Iterator[tuple[str, str]]:
    """Each parameter as it is written, and the comment beside it."""
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + given.defaults + given.kw_defaults
    for argument, default in zip([*plain, *given.kwonlyargs], defaults, strict=True):
        meaning = notes.get(argument.end_lineno, "")
        if isinstance(argument.annotation, ast.Subscript) and ast.unparse(argument.annotation.value) == "Annotated":
            argument.annotation, option = argument.annotation.slice.elts  # Of the command line: brings its help
            meaning = next((word.value.value for word in option.keywords if word.arg == "help"), meaning)
        if argument.arg not in ("self", "cls"):
            yield ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else ""), meaning
    for stars, argument in (("*", given.vararg), ("**", given.kwarg)):
        if argument:
            yield stars + ast.unparse(argument), notes.get(argument.end_lineno, "")


def members(node: ast.ClassDef, notes: dict[int, str]) -> Iterator[tuple[str, str]]:
    """What a class is made of, and what each part means."""
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation):
            yield ast.unparse(item), notes.get(item.end_lineno, "")
        elif isinstance(item, DEFINITIONS) and item.name == "__init__":
            yield from parameters(item, notes)
        elif isinstance(item, DEFINITIONS) and not item.name.startswith("_"):
            called = f"({', '.join(name for name, _ in parameters(item, notes))})"
            is_property = any(ast.unparse(decorator) == "property" for decorator in item.decorator_list)
            yield item.name + ("" if is_property else called), (ast.get_docstring(item) or "").split("\n")[0]


def describe(node: ast.stmt, source: str, label: str, level: int) -> NbCell:
    """The reference of one function or class."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    notes = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    sentence = ast.get_docstring(node) or ""
    if isinstance(node, ast.ClassDef):
        rows, head = [*members(node, notes)], "Member"
        sentence += "".join(f" A kind of `{ast.unparse(base)}`." for base in node.bases)
    else:
        rows, head = [*parameters(node, notes)], "Parameter"
        if node.returns and ast.unparse(node.returns) != "None":
            rows += [(f"→ {ast.unparse(node.returns)}", notes.get(node.returns.end_lineno, ""))]
    lines = [f"({label})=", f"{'#' * level} {node.name}", "", sentence, ""]
    if rows:
        lines += [f"| {head} | Meaning |", "|---|---|"]
    for name, meaning in rows:
        name = re.sub(r"(: |→ )'([\w.]+)'", r"\1\2", name)  # A type that is imported late stands in quotes
        lines += ["| `{}` | {} |".format(*(text.replace("|", r"\|") for text in (name, meaning)))]
    return mk_cell("\n".join(lines), "markdown")
