"""The site, which Sphinx makes of the docstrings, the tutorials, and pages of text that have their
place elsewhere.

    python -m sphinx -W --keep-going -b html experiments/documentation OUT

with the extra `docs`, from the top of the repository. Nothing here imports Sphinx, so that tests
can read it without.
"""

import ast
import dataclasses
import inspect
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path

import emcaps

HERE = Path(__file__).parent
TOP = HERE.parents[1]
TUTORIALS = HERE.parent / "tutorials"
GENERATED = HERE / "generated"  # also autosummary's; git ignores it

# Sources of pages that are elsewhere, and their places in GENERATED.
ELSEWHERE = {
    TOP / "BUILD_NOTES.md": "BUILD_NOTES.md",
    TOP / ".github" / "CONTRIBUTING.md": "CONTRIBUTING.md",
    HERE.parent / "README.md": "experiments.md",
    TOP / "emcaps" / "types.py": "shapes.md",
} | {path: f"tutorials/{path.name}" for path in TUTORIALS.glob("*.ipynb")}

project = "emcaps"
release = emcaps.__version__
html_title = "emcaps"
html_theme = "furo"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
]
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"  # notebooks.py has run them
templates_path = ["_templates"]
myst_heading_anchors = 4  # those of GitHub
default_role = "code"
autodoc_default_options = {
    "members": True,
    "special-members": "__call__",
    "member-order": "bysource",
    "no-value": True,
}
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
# With it, of names that share a description all but the last would be taken for types.
napoleon_use_param = False
napoleon_custom_sections = [("Attributes", "params_style")]


def public_names() -> dict[str, str]:
    """Every public name, and where it is: `{"em_routing": "emcaps.em_routing", "squash":
    "emcaps.dynamic.squash", ...}`.
    """
    modules = [
        getattr(emcaps, name) for name in emcaps.__all__ if inspect.ismodule(getattr(emcaps, name))
    ]
    found = [
        (name, f"{module.__name__}.{name}")
        for module in (emcaps, *modules)
        for name in module.__all__
    ]
    return {
        name: place for name, place in found if not inspect.ismodule(getattr(emcaps, name, None))
    }


def reference_names() -> list[str]:
    """The names in the groups of reference.rst, as often as they are there, each with the module
    that is current.
    """
    module, found = "", []
    for line in (HERE / "reference.rst").read_text(encoding="utf-8").splitlines():
        if given := re.fullmatch(r"\.\. currentmodule:: (\S+)", line):
            module = given[1]
        elif given := re.fullmatch(r"   (\w+)", line):
            found.append(f"{module}.{given[1]}")
    return found


def check_reference() -> None:
    """Raise ValueError unless every public name is in one group of reference.rst, and nothing else
    is.
    """
    found, public = sorted(reference_names()), sorted(public_names().values())
    if found != public:
        missing, unknown = (sorted(set(a) - set(b)) for a, b in ((public, found), (found, public)))
        twice = sorted({name for name in found if found.count(name) > 1})
        raise ValueError(
            f"reference.rst must have each public name once; {missing=}, {unknown=}, {twice=}"
        )


def constant(name: str) -> tuple[str, str]:
    """The string below the assignment of a public constant, and the assignment itself.

    Empty if there is none.
    """
    for path in Path(inspect.getfile(emcaps)).parent.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        for statement, below in itertools.pairwise(ast.parse(source).body):
            if isinstance(statement, ast.Assign) and [
                ast.unparse(target) for target in statement.targets
            ] == [name]:
                if (
                    isinstance(below, ast.Expr)
                    and isinstance(below.value, ast.Constant)
                    and isinstance(below.value.value, str)
                ):
                    return inspect.cleandoc(below.value.value), ast.get_source_segment(
                        source, statement
                    ) or ""
    return "", ""


def restructured(docstring: str, link: Mapping[str, str]) -> str:
    """A docstring in the words of napoleon and reStructuredText, with links to these public names
    where they are.
    """
    # Names that share a description, and need more than a line.
    docstring = re.sub(r"^( +\w+(?:, \w+)*,)\n +", r"\1 ", docstring, flags=re.MULTILINE)
    # What stands before the first colon would be taken for a type.
    docstring = re.sub(r"^( *Returns:\n +)", r"\1: ", docstring, flags=re.MULTILINE)
    # A dot before a space would end the sentence that is quoted in reference.rst.
    docstring = docstring.replace(" .. ", " … ")
    names = rf"(?<!`)`({'|'.join(sorted(link))})`(?!`)"
    return re.sub(names, lambda found: f":py:obj:`~{link[found[1]]}`", docstring)


def process_docstring(app, what: str, name: str, obj, options, lines: list[str]) -> None:
    public = next(part for part in name.split(".") if part in public_names())
    text = "\n".join(lines)
    if what == "data":
        text, assignment = constant(public)
        text += "\n\n.. code-block:: python\n\n" + re.sub(
            "^", "    ", assignment, flags=re.MULTILINE
        )
    lines[:] = restructured(
        text, {name: place for name, place in public_names().items() if name != public}
    ).splitlines()


def process_signature(
    app, what: str, name: str, obj, options, signature: str | None, returns: str | None
):
    """Without the arguments that Flax gives every module, and without what defaults spell out on a
    page of their own.
    """
    if signature is None:
        return None
    signature = re.sub(r", parent: .*_Sentinel.*\)$", ")", signature)
    signature = signature.replace(repr(emcaps.PAPER), "PAPER")
    for default in (emcaps.ConvCaps.routing, emcaps.ClassCaps.routing):
        signature = signature.replace(repr(default), brief(default))
    return signature, returns


def brief(record) -> str:
    """A record as it is written where fields have their defaults."""
    given = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    defaults = {field.name: field.default for field in dataclasses.fields(record)}
    changed = ", ".join(
        f"{name}={value!r}" for name, value in given.items() if value != defaults[name]
    )
    return f"{type(record).__name__}({changed})"


def skip_member(app, what: str, name: str, obj, skip: bool, options) -> bool | None:
    """Fields of named tuples are described under Attributes; their own docstrings only say which
    number they have.
    """
    return (
        True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None
    )


def led(text: str, source: Path, page: Path) -> str:
    """The Markdown of a source with its relative links as they are from a page of the site."""

    def link(found: re.Match[str]) -> str:
        target = (source.parent / found[1]).resolve()
        if not target.exists():  # as in code, which looks like a link now and then
            return found[0]
        if target.with_suffix(".ipynb") in ELSEWHERE:  # of a tutorial that is meant as a script
            target = target.with_suffix(".ipynb")
        if target in ELSEWHERE:
            target = GENERATED / ELSEWHERE[target]
        return f"]({os.path.relpath(target, page.parent)}{found[2] or ''})"

    return re.sub(r"\]\(([^\s:#)]+)(#[^\s)]*)?\)", link, text)


def write_pages() -> None:
    """The pages whose text has its place elsewhere."""
    pages = {}
    for source, name in ELSEWHERE.items():
        text = source.read_text(encoding="utf-8")
        if source.suffix == ".py":
            text = f"# Shapes and their letters\n\n{ast.get_docstring(ast.parse(text))}"
        pages[name] = led(text, source, GENERATED / name)
    for name, text in pages.items():
        file = GENERATED / name
        file.parent.mkdir(parents=True, exist_ok=True)
        # What is as it was, Sphinx need not read again.
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def lead_links(app, page: str, content: list[str]) -> None:
    """Links of the site's own pages lead to the pages of what is elsewhere."""
    file = HERE / f"{page}.md"
    if file.exists() and GENERATED not in file.parents:
        content[0] = led(content[0], file, file)


def remove_stale_pages() -> None:
    """Delete the pages that an earlier build has made of what is no longer there."""
    pages = {GENERATED / name for name in ELSEWHERE.values()}
    pages |= {GENERATED / f"{name}.rst" for name in public_names().values()}
    for page in GENERATED.rglob("*.*"):
        if page.is_file() and page not in pages:
            page.unlink()


def setup(app) -> None:
    check_reference()
    remove_stale_pages()
    write_pages()
    app.connect("source-read", lead_links)
    app.connect("autodoc-process-docstring", process_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", process_signature)
    app.connect("autodoc-skip-member", skip_member)
