"""What README.md shows is what there is: its examples run and print what stands there.

Its links and commands are among those of test_pages.py.
"""

import re
from pathlib import Path

import numpy as np

TOP = Path(__file__).parents[2]
README = (TOP / "README.md").read_text()
NUMBER = r"-?\d+(?:\.\d*)?"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_example_prints_what_stands_below_it(capsys):
    exec(compile(blocks("python")[0], "README.md", "exec"), {})
    printed, shown = capsys.readouterr().out, blocks("text")[0]
    words = [
        re.sub(r"\s+", " ", re.sub(NUMBER, "#", text)).replace("[ ", "[")
        for text in (printed, shown)
    ]
    assert words[0] == words[1]
    numbers = [np.array(re.findall(NUMBER, text), float) for text in (printed, shown)]
    np.testing.assert_allclose(*numbers, atol=0.11)  # poses have one digit after the point


def test_the_other_examples_run_and_print_what_their_comments_say(capsys):
    names = {}
    for block in blocks("python")[1:]:
        exec(compile(block, "README.md", "exec"), names)
        for line, comment in zip(
            capsys.readouterr().out.splitlines(),
            re.findall(r"print\(.*\)  # (.*)", block),
            strict=True,
        ):
            assert line.startswith(comment.partition(":")[0])
