"""The version has one source, `emcaps.__version__`: packaging reads it, and what names it elsewhere
names the same.
"""

import ast
import re
import tomllib
from pathlib import Path

import emcaps

TOP = Path(__file__).parents[2]


def test_packaging_reads_the_version_where_python_does():
    pyproject = tomllib.loads((TOP / "pyproject.toml").read_text())
    assert "version" not in pyproject["project"] and pyproject["project"]["dynamic"] == ["version"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "emcaps.__version__"}


def test_the_version_is_a_literal():
    # Otherwise setuptools would import the package, and with it JAX, to build a wheel.
    statements = ast.parse((TOP / "emcaps" / "__init__.py").read_text()).body
    values = [
        s.value
        for s in statements
        if isinstance(s, ast.Assign) and ast.unparse(s.targets[0]) == "__version__"
    ]
    assert [ast.literal_eval(value) for value in values] == [emcaps.__version__]


def test_the_citation_is_of_this_version():
    assert re.findall(r"version = \{(.*?)\}", (TOP / "README.md").read_text()) == [
        emcaps.__version__
    ]


def test_the_change_log_has_this_version_or_says_that_it_is_unreleased():
    text = (TOP / "experiments" / "documentation" / "changelog.md").read_text()
    unreleased, *releases = re.findall(r"^## (\S+)", text, re.MULTILINE)
    assert unreleased == "Unreleased" and releases[:1] in ([], [emcaps.__version__])
    assert set(re.findall(r"^### (.*)", text, re.MULTILINE)) <= {"Added", "Changed", "Fixed"}
