"""What the pages of the documentation say is so: links lead somewhere, examples run, commands are
understood, and tables hold what the records hold.
"""

import ast
import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest

from emcaps import PAPER, TRAINABLE
from emcaps.pretrained import PRETRAINED, load_classifier
from experiments.ablation import AblationConfig, variant_config, variants
from experiments.claims.experiment import StudyCommand
from experiments.runtime import command_line

TOP = Path(__file__).parents[2]
SITE = TOP / "experiments" / "documentation"
PAGES = [
    page
    for folder in (TOP, TOP / ".github", TOP / "experiments", SITE, SITE / "design")
    for page in sorted(folder.glob("*.md"))
]
TEXTS = {str(page.relative_to(TOP)): page.read_text(encoding="utf-8") for page in PAGES}
# What stands for what a reader puts there.
PLACEHOLDERS = {
    "DATASET": "mnist",
    "FACTOR": "azimuth",
    "FLAGS": "--warmup-steps 0",
    "NETWORK": "capsules",
    "NUMBERS": "0 1",
    "SEED": "0",
    "SEEDS": "0 1",
    "SOFT": "--schedule cosine",
}


def blocks(text, language):
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)


def prose(text):
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """Those that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(page, first):
    """Rows of the table whose first heading is `first`, without the marks of code."""
    lines = iter(TEXTS[f"experiments/documentation/{page}.md"].splitlines())
    for line in lines:
        if line.startswith(f"| {first} |"):
            break
    rows = []
    next(lines)
    while (line := next(lines, "")).startswith("|"):
        rows.append([cell.strip(" `") for cell in line.strip("|").split(" | ")])
    return rows


def commands(text):
    """Commands of the experiments that a page shows, in blocks and in sentences."""
    shown = [
        line for block in blocks(text, "bash") for line in block.replace("\\\n", "").split("\n")
    ]
    shown += re.findall(r"`([^`]+)`", prose(text))
    for command in shown:
        if found := re.search(r"python -m (experiments\.(?!doc)[\w.]+)(.*)", command, re.DOTALL):
            yield found[1], " ".join(found[2].split())


COMMANDS = sorted({command for text in TEXTS.values() for command in commands(text)})


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_files_and_headings(page):
    for path, anchor in re.findall(r"\]\(([^\s:#)]*)(?:#([^\s)]*))?\)", TEXTS[page]):
        target = ((TOP / page).parent / path).resolve() if path else TOP / page
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{path}#{anchor}"


@pytest.mark.parametrize("page", TEXTS)
def test_lines_of_prose_are_short(page):
    lines = prose(TEXTS[page]).splitlines()
    long = [line for line in lines if not line.startswith(("|", "![")) and len(line) > 100]
    assert not long or (page == "README.md" and max(map(len, long)) <= 120)


# README has tests of its own.
@pytest.mark.parametrize(
    "page", [page for page in TEXTS if page != "README.md" and blocks(TEXTS[page], "python")]
)
def test_examples_run_and_print_what_their_comments_say(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(TEXTS[page], "python"):
        exec(compile(block, page, "exec"), names)
        printed = capsys.readouterr().out
        for comment in re.findall(r"print\(.*\)  # (.*)", block):
            assert comment.partition(":")[0] in printed


def configs_of(run, module, words):
    """In place of what a command does: the configs that it would train, of flags in its flags."""
    (command,) = run.args
    if isinstance(command, StudyCommand):
        command.runs(command.study.seeds[0])
    if isinstance(command, AblationConfig):
        for flags in variants(command):
            variant_config(command, flags)
    return 0


@pytest.mark.parametrize("module, words", COMMANDS)
def test_commands_are_understood(module, words, monkeypatch):
    monkeypatch.setattr(command_line, "exit_code", configs_of)
    for placeholder, given in PLACEHOLDERS.items():
        words = re.sub(rf"\b{placeholder}\b", given, words)
    main, words = importlib.import_module(module).main, shlex.split(words, True)
    if words and "--help" not in words:
        assert main(words) == 0


def test_all_commands_are_in_the_table():
    files = (TOP / "experiments").glob("*.py")
    there = {file.stem for file in files if '__name__ == "__main__"' in file.read_text()}
    rows = [row[0] for row in table("commands", "command")]
    assert len(rows) == len(set(rows)) and set(rows) == there


def test_the_table_of_options_is_the_record():
    names = [field.name for field in dataclasses.fields(PAPER)]
    rows = table("options", "option")
    assert [row[0] for row in rows] == names
    for name, _, paper, trainable, _ in rows:
        assert ast.literal_eval(paper) == getattr(PAPER, name), name
        assert ast.literal_eval(trainable) == getattr(TRAINABLE, name), name


def test_the_model_card_has_the_facts_of_the_files():
    rows = {row[0]: row[1:] for row in table("model_card", "weights")}
    assert set(rows) >= set(PRETRAINED)
    for name in PRETRAINED:
        facts = load_classifier(name).facts
        parameters, error, examples, dataset, steps, seed = rows[name]
        assert int(parameters.replace(",", "")) == facts["num_parameters"]
        assert error == f"{facts['test_error']:.2%}" and dataset.lower() == facts["dataset"]
        assert int(examples.replace(",", "")) == facts["test_examples"]
        assert (int(steps.replace(",", "")), int(seed)) == (facts["steps"], facts["seed"])


@pytest.mark.parametrize("name, first", [("mnist", "digit"), ("toynorb", "category")])
def test_the_errors_of_each_class_add_up(name, first):
    classifier = load_classifier(name)
    examples, wrong = (
        [int(number.replace(",", "")) for number in row[1:]] for row in table("model_card", first)
    )
    assert len(examples) == len(wrong) == len(classifier.class_names)
    assert sum(examples) == classifier.facts["test_examples"]
    assert sum(wrong) == round(classifier.facts["test_error"] * sum(examples))


def test_every_picture_is_in_the_gallery_once():
    shown = re.findall(r"\]\(\.\./pictures/(.*?)\)", TEXTS["experiments/documentation/gallery.md"])
    assert sorted(shown) == sorted(path.name for path in (TOP / "experiments/pictures").iterdir())
