"""The site's sources, without Sphinx: every public name has something to say, and a place in the
reference.
"""

import inspect
import operator
import runpy
from pathlib import Path

import pytest

import emcaps

SITE = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "documentation" / "conf.py"))


PUBLIC = SITE["public_names"]()


def test_a_name_is_public_in_one_place():
    places = [emcaps, emcaps.dynamic, emcaps.diagnostics, emcaps.pretrained]
    assert len(PUBLIC) == sum(len(place.__all__) for place in places) - 3  # the three modules
    assert (
        PUBLIC["em_routing"] == "emcaps.em_routing" and PUBLIC["squash"] == "emcaps.dynamic.squash"
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring(name):
    value = operator.attrgetter(PUBLIC[name].removeprefix("emcaps."))(emcaps)
    if inspect.isclass(value) or inspect.isfunction(value):
        docstring = value.__doc__ or ""
    else:
        docstring, assignment = SITE["constant"](name)
        assert assignment.startswith(f"{name} = ")
    # Classes that say nothing get their signature for a docstring, from NamedTuple and from
    # dataclass.
    assert docstring.strip() and not docstring.startswith(f"{name}(")


def test_every_public_name_is_in_one_group_of_the_reference():
    SITE["check_reference"]()


@pytest.mark.parametrize("change, said", [("emcaps.em_routing", "twice"), ("emcaps.em", "unknown")])
def test_a_wrong_reference_is_refused(change, said, monkeypatch):
    names = [*SITE["reference_names"](), change]
    monkeypatch.setitem(SITE["check_reference"].__globals__, "reference_names", lambda: names)
    with pytest.raises(ValueError, match=r"each public name once") as refused:
        SITE["check_reference"]()
    assert f"{said}=['{change}']" in str(refused.value)


def test_a_new_public_name_needs_a_place(monkeypatch):
    monkeypatch.setattr(emcaps.dynamic, "__all__", [*emcaps.dynamic.__all__, "new"])
    with pytest.raises(ValueError, match=r"missing=\['emcaps.dynamic.new'\]"):
        SITE["check_reference"]()


def test_docstrings_are_put_in_the_words_of_sphinx():
    docstring = inspect.cleandoc("""One of t = 0 .. T.

    Args:
        first, second,
            third: as in `em_routing`, not `other`.

    Returns:
        A `Capsules`: poses.
    """)
    assert SITE["restructured"](docstring, PUBLIC) == inspect.cleandoc("""One of t = 0 … T.

    Args:
        first, second, third: as in :py:obj:`~emcaps.em_routing`, not `other`.

    Returns:
        : A :py:obj:`~emcaps.Capsules`: poses.
    """)


@pytest.mark.parametrize(
    "source, links",
    [
        ("BUILD_NOTES.md", ["../options.md#every-field", "../design/routing.md#the-loop"]),
        (".github/CONTRIBUTING.md", ["BUILD_NOTES.md", "experiments.md", "../changelog.md"]),
        ("experiments/README.md", ["CONTRIBUTING.md", "../commands.md"]),
        ("experiments/documentation/index.md", ["generated/BUILD_NOTES.md", "options.md"]),
        ("experiments/documentation/library.md", ["generated/tutorials/several_devices.ipynb"]),
        (
            "experiments/tutorials/capsules_in_ten_minutes.ipynb",
            ["../../claims.md", "build_a_network.ipynb"],
        ),
    ],
)
def test_links_of_pages_lead_to_pages(source, links):
    source = SITE["TOP"] / source
    place = SITE["ELSEWHERE"].get(source)
    page = SITE["GENERATED"] / place if place else source
    text = SITE["led"](source.read_text(encoding="utf-8"), source, page)
    assert all(f"]({link})" in text for link in links)


def test_stale_pages_are_removed(tmp_path, monkeypatch):
    monkeypatch.setitem(SITE["write_pages"].__globals__, "GENERATED", tmp_path)
    (tmp_path / "tutorials").mkdir()
    for name in ("emcaps.gone.rst", "README.md", "tutorials/gone.md"):
        (tmp_path / name).write_text("")
    SITE["write_pages"]()
    SITE["remove_stale_pages"]()
    left = {str(page.relative_to(tmp_path)) for page in tmp_path.rglob("*.*")}
    assert {"BUILD_NOTES.md", "shapes.md", "tutorials/several_devices.ipynb"} < left
    assert not {"emcaps.gone.rst", "README.md", "tutorials/gone.md"} & left


@pytest.mark.parametrize(
    "signature, shown",
    [
        (f"(x, options={emcaps.PAPER!r})", "(x, options=PAPER)"),
        (f"(routing={emcaps.ClassCaps.routing!r})", "(routing=RoutingOptions())"),
        (f"(routing={emcaps.ConvCaps.routing!r})", "(routing=RoutingOptions(num_iterations=1))"),
    ],
)
def test_records_in_signatures_are_short(signature, shown):
    assert SITE["process_signature"](
        None, "function", "emcaps.name", None, None, signature, ""
    ) == (shown, "")
