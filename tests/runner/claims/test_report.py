"""The report: what its numbers, verdicts and pictures are of records made by hand."""

import base64
import html
import html.parser
import json
import math

import numpy as np
import pytest

from experiments import report
from experiments.claims import adversarial, parameters, viewpoints
from experiments.claims.intervals import confidence_interval, percent, verdict

EPSILONS = [0.0, 0.1, 0.2]
VALUES = range(18)
FAMILIAR = [15, 16, 17, 0, 1, 2]


def run(network, seed, error, size):
    return {
        "network": network,
        "model": "cnn" if network.startswith("cnn") else "capsules",
        "seed": seed,
        "num_parameters": size,
        "steps": 10,
        "test_error": error,
        "train_seconds": 60.0 + seed,
        "command": "python -m experiments.parameters <&>",
    }


def runs():
    errors = {
        ("capsules", 100): (0.10, 0.12, 0.14),
        ("cnn", 9000): (0.20, 0.24, 0.22),
        ("cnn-68k", 101): (0.11, 0.11, 0.11),
    }
    return [
        run(name, seed, error, size)
        for (name, size), of_seeds in errors.items()
        for seed, error in enumerate(of_seeds)
    ]


def view_record(seed, familiar, new, matched=True):
    def found(name):
        part = {
            "familiar_error": familiar[name],
            "new_error": new[name],
            "num_parameters": 7,
            "steps": 5 + seed,
        }
        return part | {
            "errors_by_value": {
                str(v): familiar[name] if v in FAMILIAR else new[name] for v in VALUES
            }
        }

    networks = {name: found(name) for name in ("capsules", "cnn")}
    record = {
        "seed": seed,
        "train_values": FAMILIAR,
        "stopped": None,
        "matched": matched,
        "networks": networks,
        "unmatched": networks,
    }
    return record | {"seconds": 30.0, "command": "python -m experiments.viewpoints"}


def view_records(**changed):
    new = [
        {"capsules": 0.30, "cnn": 0.40},
        {"capsules": 0.31, "cnn": 0.42},
        {"capsules": 0.32, "cnn": 0.41},
    ]
    return [
        view_record(seed, {"capsules": 0.2, "cnn": 0.203}, of_seed, **changed)
        for seed, of_seed in enumerate(new)
    ]


def attack_record(seed, blind=0.0, blind_to_wanted=0.0):
    """Capsules are right nine times in ten, whatever happens; the CNN ever less."""
    accuracy = {
        "capsules": lambda epsilon: 0.9 - 0.01 * seed,
        "cnn": lambda epsilon: 0.9 - 4 * epsilon + 0.01 * seed,
    }
    statistics = {"zero_share": 0.1, "blind_share": 0.0, "mean_size": 0.02}
    gradients, targeted_gradients = (
        {"logits": statistics, "activations": statistics | {"blind_share": share}}
        for share in (blind, blind_to_wanted)
    )
    white_box = [
        {
            "network": name,
            "objective": objective,
            "attack": attack,
            "targeted": targeted,
            "epsilon": epsilon,
        }
        | {"accuracy": of(epsilon), "success": 1 - of(epsilon) if targeted else None}
        for name, of in accuracy.items()
        for objective in gradients
        for attack in ("fgsm", "bim")
        for targeted in (False, True)
        for epsilon in EPSILONS
    ]
    black_box = [
        {
            "source": source,
            "victim": victim,
            "victim_seed": 1,
            "epsilon": epsilon,
            "accuracy": of(epsilon),
        }
        for source in accuracy
        for victim, of in accuracy.items()
        for epsilon in EPSILONS
    ]
    networks = {
        name: {"gradients": gradients, "targeted_gradients": targeted_gradients}
        for name in accuracy
    }
    record = {
        "seed": seed,
        "victim_seed": (seed + 1) % 3,
        "epsilons": EPSILONS,
        "num_classes": 10,
        "networks": networks,
        "white_box": white_box,
        "black_box": black_box,
    }
    return record | {"seconds": 90.0, "command": "python -m experiments.adversarial"}


def examples():
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 2)).astype(np.float32)
    arrays = {
        "images": images,
        "labels": np.array([0, 1]),
        "class_names": np.array(["cat", "dog"]),
        "epsilons": np.array(EPSILONS),
    }
    for name in ("capsules", "cnn"):
        arrays |= {
            f"{name}_images": np.stack([images] * 3),
            f"{name}_predictions": np.array([[0, 1], [0, 0], [1, 0]]),
        }
    return arrays


def test_intervals_are_students():
    assert confidence_interval([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert confidence_interval([1.0]) == math.inf
    assert (percent([0.01, 0.02, 0.03]), percent([0.125])) == ("2.0 ± 2.5", "12.5")


def test_a_verdict_is_by_the_interval():
    assert verdict([1.0, 1.1, 0.9]) == "holds"
    assert verdict([-1.0, -1.1, -0.9]) == "does not hold"
    assert verdict([1.0, -1.1, 0.9]) == verdict([5.0]) == verdict([0.0, 0.0]) == "undecided"


def test_networks_are_compared_by_seed_and_size():
    section = parameters.section("data", runs())
    sizes, verdicts = section.tables
    assert [row[:4] for row in sizes.rows] == [
        ("capsules", "100", "12.0 ± 5.0", "3"),
        ("cnn-68k", "101", "11.0 ± 0.0", "3"),
        ("cnn", "9,000", "22.0 ± 5.0", "3"),
    ]
    assert verdicts.rows == [
        ("capsules is more accurate than cnn", "10.0 ± 5.0", "holds"),
        ("capsules is more accurate than cnn-68k", "-1.0 ± 5.0", "undecided"),
    ]
    assert section.sources == ["`python -m experiments.parameters <&>`: 9 minutes"]
    (picture,) = section.pictures
    (curves, _) = picture.figure.axes
    lines = {line.get_label(): line.get_xydata() for line in curves.lines}
    np.testing.assert_allclose(lines["CNN"], [[101, 11], [9000, 22]])
    np.testing.assert_allclose(lines["capsules"], [[100, 12]])


def test_new_views_are_judged_only_where_networks_are_matched():
    section = viewpoints.section("toynorb", "azimuth", view_records())
    errors, verdicts = section.tables
    assert errors.rows[0] == ("matched", "capsules", "7", "20.0 ± 0.0", "31.0 ± 2.5", "5, 6, 7")
    assert verdicts.rows[0][1:] == ("10.0 ± 2.5", "0.76", "holds", "0.30", "3")
    records = [*view_records()[:2], view_records(matched=False)[2]]
    assert viewpoints.section("toynorb", "azimuth", records).tables[1].rows[0][3] == "not matched"
    assert viewpoints.section("affnist", "affine", view_records()).heading == "affNIST: affnist"


def test_the_familiar_views_are_in_the_middle_of_their_circle():
    (axes,) = viewpoints.views("toynorb", "azimuth", view_records()).axes
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert labels[6:12] == ["300", "320", "340", "0", "20", "40"]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_allclose(lines["capsules"], [31] * 6 + [20] * 6 + [31] * 6)
    (axes,) = viewpoints.views("toynorb", "elevation", view_records()).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()][:3] == ["30", "35", "40"]


def test_attacks_are_judged_at_each_size():
    records = [attack_record(seed) for seed in range(3)]
    untargeted, targeted, black, gradients = adversarial.section("data", records, examples()).tables
    rows = {row[:3]: row[3:] for row in untargeted.rows}
    assert rows["logits", "bim", "cnn"] == ("91.0 ± 2.5", "51.0 ± 2.5", "11.0 ± 2.5")
    assert rows["activations", "fgsm", "claim"] == ("undecided", "holds", "holds")
    rows = {row[:3]: row[3:] for row in targeted.rows}
    assert rows["logits", "bim", "capsules"] == ("11.0 ± 2.5",) * 3
    assert rows["logits", "bim", "claim"] == ("undecided", "holds", "holds")
    assert black.rows[0] == ("capsules", "capsules of another seed", *("89.0 ± 2.5",) * 3)
    of_capsules = ("10.0 ± 0.0", "0.0 ± 0.0", "0.02")
    assert gradients.rows[0] == ("capsules", "logits, of the true class", *of_capsules)
    assert gradients.rows[2] == ("capsules", "logits, of the class wanted", *of_capsules)


def test_one_seed_is_tried_on_its_own_networks():
    record = attack_record(0) | {"victim_seed": 0}
    assert adversarial.black_box([record], EPSILONS).rows[0][1] == "capsules of the same seed"


def test_masked_gradients_are_no_robustness():
    """Those of the class that the attack goes by: the true one, or the one wanted."""
    for blind, targeted in (({"blind": 0.3}, False), ({"blind_to_wanted": 0.3}, True)):
        records = [attack_record(seed, **blind) for seed in range(3)]
        for kind, masked in ((targeted, True), (not targeted, False)):
            table = adversarial.white_box(records, EPSILONS, kind)
            rows = {row[:3]: row[3:] for row in table.rows}
            verdicts = ("undecided", "holds", "holds")
            assert rows["logits", "bim", "claim"] == verdicts
            assert rows["activations", "bim", "claim"] == (
                ("gradients masked",) * 3 if masked else verdicts
            )


def test_attack_curves_are_the_records():
    figure = adversarial.attack_curves("data", [attack_record(seed) for seed in range(3)])
    panels = {axes.get_title(): axes for axes in figure.axes}
    lines = {line.get_label(): line.get_ydata() for line in panels["BIM on logits"].lines}
    np.testing.assert_allclose(lines["CNN"], [91, 51, 11])
    lines = {
        line.get_label(): line.get_ydata()
        for line in panels["black box: BIM for another network"].lines
    }
    np.testing.assert_allclose(lines["CNN, made for capsules"], [91, 51, 11])


def test_adversarial_examples_are_beside_their_originals():
    figure = adversarial.adversarial_examples(examples(), ("capsules", "cnn"))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["cat", "dog", *["cat", "cat"] * 2, *["dog", "cat"] * 2]
    colors = [axes.title.get_color() for axes in figure.axes[2:4]]
    assert colors == ["tab:green", "tab:red"]


@pytest.fixture
def folder(tmp_path):
    """A folder of results, as the experiments leave it."""
    for given in runs():
        file = tmp_path / "toynorb" / f"{given['network']}-{given['seed']}" / "result.json"
        file.parent.mkdir(parents=True)
        file.write_text(
            json.dumps({name: value for name, value in given.items() if name != "network"})
        )
    for name, records in (
        ("viewpoints-azimuth", view_records()),
        ("adversarial", [attack_record(0), attack_record(1)]),
    ):
        (tmp_path / "toynorb" / name).mkdir()
        for record in records:
            (tmp_path / "toynorb" / name / f"seed-{record['seed']}.json").write_text(
                json.dumps(record)
            )
    np.savez(tmp_path / "toynorb" / "adversarial" / "seed-0.npz", **examples())
    (tmp_path / "quick" / "toynorb" / "cnn-0").mkdir(parents=True)
    (tmp_path / "quick" / "toynorb" / "cnn-0" / "result.json").write_text("not read")
    return tmp_path


class Tags(html.parser.HTMLParser):
    """Follows the tags of a page: each that is opened must be closed."""

    def __init__(self):
        super().__init__()
        self.open, self.pictures, self.links, self.places = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.links += [value for name, value in attrs if name == "href"]
        self.places += [f"#{value}" for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag, attrs):
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_all_results_become_one_page(folder, capsys):
    assert report.main(["--runs", str(folder)]) == 0
    output = folder / "report"
    assert capsys.readouterr().out == f"wrote {output / 'report.md'} and {output / 'report.html'}\n"
    markdown, page = ((output / f"report.{suffix}").read_text() for suffix in ("md", "html"))
    headings = [
        "Parameters and accuracy: toynorb",
        "New views (azimuth): toynorb",
        "Adversarial attacks: toynorb",
    ]
    assert [line[3:] for line in markdown.splitlines() if line.startswith("## ")] == headings
    assert "| capsules is more accurate than cnn | 10.0 ± 5.0 | holds |" in markdown
    assert "- `python -m experiments.parameters <&>`: 9 minutes" in markdown
    assert "<code>python -m experiments.parameters &lt;&amp;&gt;</code>: 9 minutes" in page
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    pictures = [base64.b64encode(path.read_bytes()).decode() for path in output.glob("*.png")]
    assert sorted(tags.pictures) == sorted(f"data:image/png;base64,{data}" for data in pictures)
    assert len(tags.pictures) == 4
    assert report.main(["--runs", str(folder)]) == 0  # a report is made again with every new result
    assert (output / "report.md").read_text() == markdown


def test_verdicts_come_first_and_lead_to_their_sections(folder):
    sections = report.gather(folder)
    rows = report.summary(sections).rows
    assert rows[0] == (
        "[Parameters and accuracy: toynorb](#parameters-and-accuracy-toynorb)",
        *("capsules is more accurate than cnn", "10.0 ± 5.0", "holds"),
    )
    assert [row[3] for row in rows] == ["holds", "undecided", "holds", "see there"]
    tags = Tags()
    tags.feed(report.to_html(report.to_markdown(sections), {}))
    assert len(tags.links) == 4 and set(tags.links) <= set(tags.places)


def test_names_are_never_taken_for_markup():
    name = "a|b *c* <script> $$ [d](e) `f`"
    runs_of_name = [{**given, "network": name} for given in runs()[:3]]
    markdown = report.to_markdown([parameters.section(name, runs_of_name)])
    page = report.to_html(markdown, {f"{name}-parameters.png": b"PNG"})
    assert f'<h2 id="{report.slugify(f"Parameters and accuracy: {name}")}">' in page
    assert page.count(html.escape(name)) == 3  # the summary, the heading and a cell
    assert f"<td>{html.escape(name)}</td>" in page and "<script>" not in page
    assert f'src="data:image/png;base64,{base64.b64encode(b"PNG").decode()}"' in page


def test_what_was_not_run_is_left_out(folder):
    for path in (folder / "toynorb" / "adversarial").iterdir():
        path.unlink()
    assert [section.heading for section in report.gather(folder)] == [
        "Parameters and accuracy: toynorb",
        "New views (azimuth): toynorb",
    ]


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("cnn-0/result.json", "{", "is damaged: Expecting property name"),
        ("cnn-0/result.json", "[]", "is damaged: a record must be an object of JSON; got list"),
        ("adversarial/seed-1.json", '{"seed": 1}', "is not a record of an experiment: no seconds"),
        ("adversarial/seed-0.npz", "PK", "seed-0.npz cannot be read as an .npz file"),
    ],
)
def test_a_damaged_file_is_named(file, content, message, folder, capsys):
    (folder / "toynorb" / file).write_text(content)
    assert report.main(["--runs", str(folder)]) == 1
    error = capsys.readouterr().err
    assert file in error and message in error and not (folder / "report").exists()


@pytest.mark.parametrize(
    "asked, message",
    [
        (lambda seed: {"amounts": [1, 2 + seed]}, "amounts [1, 3] and [1, 2]"),
        (lambda seed: {"num_images": 5} if seed else {}, "num_images 5 and None"),
        (lambda seed: {"capsules": {"seed": seed, "steps": seed}}, "capsules.steps 1 and 0"),
    ],
)
def test_seeds_that_were_asked_different_things_are_not_compared(asked, message, tmp_path, capsys):
    (tmp_path / "toynorb" / "jumble").mkdir(parents=True)
    for seed in (0, 1):
        record = {"seed": seed, "seconds": 1, "command": "", "rows": [], "networks": ["cnn"]}
        (tmp_path / "toynorb" / "jumble" / f"seed-{seed}.json").write_text(
            json.dumps(record | asked(seed))
        )
    assert report.main(["--runs", str(tmp_path)]) == 2
    assert f"seed-0.json: {message}" in capsys.readouterr().err


def test_runs_of_a_network_that_took_other_steps_are_not_compared(folder, capsys):
    path = folder / "toynorb" / "cnn-1" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": 11}))
    assert report.main(["--runs", str(folder)]) == 2
    assert "cnn-0/result.json: steps 11 and 10" in capsys.readouterr().err


def test_nothing_is_not_a_report(tmp_path, capsys):
    assert report.main(["--runs", str(tmp_path)]) == 2
    assert (
        "holds no results of experiments.parameters, .toys, .viewpoints, .adversarial, .jumble"
        in capsys.readouterr().err
    )
