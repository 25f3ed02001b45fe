"""What CONTRIBUTING.md, the templates, the hooks and CI's workflow say is so."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).parents[2]
GITHUB = TOP / ".github"
CONTRIBUTING = (GITHUB / "CONTRIBUTING.md").read_text()
TEMPLATES = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.md"))
STEPS = re.findall(r"^\d\. `(\S+?)`: (.*(?:\n   .*)*)", CONTRIBUTING, re.MULTILINE)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"\b(?:emcaps|experiments|tests)/[\w/.]*\w", CONTRIBUTING)))
)
def test_files_and_folders_are_there(path):
    assert (TOP / path).exists()


@pytest.mark.parametrize("path, what", STEPS)
def test_names_are_in_the_files_of_their_steps(path, what):
    source = (TOP / path).read_text()
    for name in re.findall(r"`(\w+)`", what):
        assert re.search(rf"\b{name}\b", source), name


def test_both_lists_of_steps_are_read():
    assert {"experiments/data/dataset.py", "experiments/report.py"} < {path for path, _ in STEPS}


def test_the_three_commands_are_there():
    (commands,) = re.findall(r"^```bash\n(.*?)^```", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    install, tests, quick = commands.splitlines()
    assert install.endswith("pip install -e '.[dev]'") and tests == "python -m pytest"
    script, word = quick.split()
    assert f'"${{1:-}}" = {word} ' in (TOP / script).read_text()


@pytest.mark.parametrize(
    "name, events, versions, command",
    [
        ("ci", {"push", "pull_request"}, ["3.11", "3.13"], ".ci/run"),
        ("slow", {"schedule", "workflow_dispatch"}, ["3.13"], ".ci/run slow"),
    ],
)
def test_a_workflow_calls_the_script(name, events, versions, command):
    # Which leaves `on` a string.
    workflow = yaml.load((GITHUB / "workflows" / f"{name}.yml").read_text(), yaml.BaseLoader)
    assert workflow["on"].keys() == events
    (job,) = workflow["jobs"].values()
    actions, commands = (
        [step[key] for step in job["steps"] if key in step] for key in ("uses", "run")
    )
    assert [action.partition("@")[0] for action in actions] == [
        "actions/checkout",
        "actions/setup-python",
    ]
    assert commands == [command]
    script, *words = command.split()
    assert shutil.which(TOP / script)
    for word in words:
        assert f'"${{1:-}}" = {word} ' in (TOP / script).read_text()
    assert job["strategy"]["matrix"]["python-version"] == versions
    assert job["steps"][1]["with"]["python-version"] == "${{ matrix.python-version }}"


def test_hooks_are_what_ci_runs_of_the_tools_of_the_extra():
    (repository,) = yaml.safe_load((TOP / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    extra = " ".join(
        tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"][
            "dev"
        ]
    )
    for hook in repository["hooks"]:
        tool, _, command = hook["entry"].partition(" ")
        assert hook["language"] == "system" and f"{tool}>=" in extra
        assert f'bin/{tool}" {command}' in (TOP / ".ci" / "run").read_text()


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.stem)
def test_templates_have_a_name_and_say_what_they_are_for(template):
    empty, front, body = template.read_text().split("---\n")
    assert not empty and yaml.safe_load(front).keys() == {"name", "about"} and body.strip()


def test_what_a_bug_report_asks_for_prints_versions_and_devices():
    commands = re.findall(
        r'^python -c "(.*)"$',
        (GITHUB / "ISSUE_TEMPLATE" / "bug_report.md").read_text(),
        re.MULTILINE,
    )
    printed = "".join(
        subprocess.run(
            [sys.executable, "-c", command], cwd=TOP, capture_output=True, text=True, check=True
        ).stdout
        for command in commands
    )
    for what in ("emcaps", "flax", "jaxlib", "python", "device info"):
        assert re.search(rf"^{what}|\b{what} \d", printed, re.MULTILINE), what
