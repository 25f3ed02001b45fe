"""What makes EM routing train, and what keeps it from it:
`python -m experiments.ablation --study temperature`.

A study is a list of variants, each written as the flags of `experiments.train` that it changes;
every variant is trained with several seeds, all for the same number of steps. Hyper-parameters are
compared on images held out of the training set; `--holdout 0` scores on the test set, for final
tables. Finished runs are kept in runs.jsonl and not repeated.
"""

import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments.analysis.agreement import agreement_table, make_agreement
from experiments.claims.intervals import mean_and_interval
from experiments.data.batches import Batch, TrainingBatches
from experiments.data.dataset import Dataset
from experiments.data.preprocessing import evaluation_view
from experiments.devices.hardware import choose_devices, start_jax
from experiments.devices.parallel import Execution
from experiments.learning.configs import TrainConfig, to_json
from experiments.learning.network import (
    class_logits,
    make_model,
    network_at,
    network_intermediates,
    routing_diagnostics,
)
from experiments.learning.step import Metrics, losses
from experiments.runs.flags import check_left_open, config_of
from experiments.runs.loop import check_fits
from experiments.runs.run_data import load_data
from experiments.runs.steps import diagnosed_examples, make_programs, take_steps
from experiments.runtime.command_line import entry_point
from experiments.runtime.errors import UsageError
from experiments.runtime.fields import check_not_negative, check_positive, check_seeds
from experiments.runtime.records import Record, check_folder, numbers, read_lines
from experiments.runtime.tables import Table, markdown_row

STUDIES: dict[str, tuple[str, ...]] = {
    "default": ("",),
    "iterations": (
        "--num-iterations 1",
        "--num-iterations 2",
        "--num-iterations 3",
        "--num-iterations 5",
    ),
    "temperature": (
        "--assignment-temperature-rate 0",
        "--assignment-temperature-rate 0 --assignment-temperature 1",
        "--assignment-temperature-rate 0 --assignment-temperature 4",
        "--assignment-temperature-rate 0 --assignment-temperature 64",
        "--assignment-temperature-rate 0 --assignment-temperature-end 1",
        "--assignment-temperature-rate 0 --assignment-temperature-end 4",
    ),
    "sharpness": (
        "",
        "--assignment-temperature-rate 0",
        "--assignment-temperature-rate 3",
        "--assignment-temperature-rate 10",
        "--assignment-temperature-rate 0 --inverse-temperature-rate 3",
        "--assignment-temperature-rate 3 --inverse-temperature-rate 3",
        "--assignment-temperature-rate 3 --inverse-temperature-rate 3 --no-normalize-costs "
        "--inverse-temperature 0.03",
        "--assignment-temperature 4 --assignment-temperature-rate 3",
        "--assignment-temperature 1 --assignment-temperature-rate 10",
    ),
    "schedule": (
        "",
        "--schedule cosine",
        "--schedule cosine --num-iterations 2",
        "--schedule cosine --num-iterations 1 --inverse-temperature-rate 3",
        "--num-iterations 1 --inverse-temperature-rate 3",
        "--max-rotation 10 --max-scaling 0.15",
    ),
    "layers": (
        "",
        "--class-iterations 3",
        "--num-iterations 1 --inverse-temperature-rate 3",
        "--num-iterations 2",
        "--num-iterations 3",
        "--num-iterations 5",
    ),
    "transforms": (
        "--transform-stddev 0.02",
        "--transform-stddev 0.3",
        "--identity 0 --transform-stddev 0.3",
        "--identity 0 --transform-stddev 0.5",
    ),
    "mass": (
        "--parent-mass 4",
        "--parent-mass 64",
        "--parent-mass None",
        "--parent-mass None --field-mass 100",
    ),
    "logits": (
        "--inverse-temperature 0.3",
        "--inverse-temperature 3",
        "--inverse-temperature-start 0.1",
        "--no-normalize-costs --inverse-temperature 0.003",
        "--no-normalize-costs --inverse-temperature 0.03",
        "--no-normalize-costs --inverse-temperature None",
    ),
    "betas": (
        "--beta-a -1",
        "--beta-a 1",
        "--beta-u -1",
        "--beta-u 1",
        "--beta-a-stddev 0.5 --beta-u-stddev 0.5",
        "--calibrate-betas",
    ),
    "variance": ("--min-variance 1e-6", "--min-variance 1e-2", "--min-variance 0.1"),
    "routing": (
        "--damping 0.1",
        "--damping 0.5",
        "--no-assignment-gradient --assignment-temperature-rate 0",
        "--competition types",
        "--competition positions",
        "--initial-assignments types",
    ),
    "optimizer": (
        "--learning-rate 3e-3",
        "--learning-rate 3e-2",
        "--warmup-steps 0",
        "--clip-norm None",
        "--schedule exponential",
    ),
    "loss": ("--loss margin", "--loss cross_entropy", "--margin-start 0.9"),
    "coordinates": ("--no-add-coordinates",),
    "presets": (
        "--preset paper",
        "--preset paper --assignment-temperature 16 --normalize-costs",
        "--preset paper --calibrate-betas",
        "--preset ibm",
        "--preset ibm --calibrate-betas",
    ),
}


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """Train each variant of the studies with each seed, and print a table."""

    study: tuple[str, ...] = ("iterations",)
    """Which studies: names of `STUDIES`, or `all`."""
    dataset: str = "mnist"
    """Data set."""
    flags: str = ""
    """Flags of `experiments.train` that hold for every variant."""
    iterations: tuple[int, ...] = ()
    """Routing iterations to try each variant with; none: as its flags say."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds."""
    steps: int = 300
    """Training steps."""
    batch_size: int = 32
    """Images in a step."""
    holdout: int = 10_000
    """Training images held out and scored; 0 scores the test set."""
    causes: bool = False
    """Also measure what may be the cause, before and after training; see `measure_causes`."""
    agreement: bool = False
    """Also measure what routing decides after training; see analysis/agreement.py."""
    data_dir: Path | None = None
    """TFDS folder; the default is TFDS_DATA_DIR or ~/tensorflow_datasets."""
    output: Path = Path("runs/ablation")
    """Folder for runs.jsonl and table.md."""

    def __post_init__(self):
        if unknown := set(self.study) - {*STUDIES, "all"}:
            raise ValueError(
                f"study must be of {', '.join(STUDIES)} or all; got {', '.join(sorted(unknown))}"
            )
        check_positive(self, "steps", "batch_size")
        check_not_negative(self, "holdout")
        if not self.study:
            raise ValueError("give at least one study; got none")
        check_seeds(self)
        check_left_open(
            self.flags,
            "--dataset",
            "--seed",
            "--steps",
            "--batch-size",
            "--holdout",
            "--eval-every",
        )


def variants(config: AblationConfig) -> list[str]:
    """The flags of each variant, in order and each once."""
    studies = STUDIES if "all" in config.study else config.study
    counts = [f" --num-iterations {number}" for number in config.iterations] or [""]
    return list(
        dict.fromkeys(
            (flags + count).strip()
            for study in studies
            for flags in STUDIES[study]
            for count in counts
        )
    )


def variant_config(config: AblationConfig, flags: str) -> TrainConfig:
    """The config of a variant's runs, its seed left open (0)."""
    parsed = config_of(["--dataset", config.dataset, *config.flags.split(), *flags.split()])
    holdout = 0 if parsed.holdout_instances else config.holdout
    return dataclasses.replace(
        parsed,
        steps=config.steps,
        batch_size=config.batch_size,
        holdout=holdout,
        eval_every=config.steps,
    )


def check(config: AblationConfig, configs: Iterable[TrainConfig]) -> None:
    """Raise UsageError unless all variants, with these configs, can be trained and measured; their
    data are the same.
    """
    check_folder(config.output)
    configs = list(configs)
    for variant in configs:
        measured = [name for name in ("causes", "agreement") if getattr(config, name)]
        if measured and variant.model.family != "capsules":
            raise UsageError(
                f"--{measured[0]} measures EM routing, of which a network of the kind "
                f"{variant.model.family} has none"
            )
        if variant.init_from is not None:
            raise UsageError(
                "the variants of an ablation begin with weights of their own; got --init-from "
                f"{variant.init_from}"
            )
    dataset = load_data(configs[0], config.data_dir)
    for variant in configs:
        check_fits(variant, dataset, Execution(choose_devices(variant.batch_size)))


def run_variant(
    config: TrainConfig,
    dataset: Dataset,
    seeds: Sequence[int],
    causes: bool,
    agreement: bool,
    progress: tqdm,
) -> Iterator[Record]:
    """Train with each seed; a record as soon as one is done, with the flags left to the caller."""
    programs = make_programs(config, dataset, Execution(choose_devices(config.batch_size)))
    probe = make_probe(config, len(dataset.class_names)) if causes else None
    routed = agreement_probe(config, dataset) if agreement else None
    for seed in seeds:
        batches, init = programs.begin(seed)
        state = programs.step.replicate(init())
        record: Record = {"seed": seed}
        if probe:
            record["before"] = measure_causes(probe, jax.device_get(state.params), batches)
        taken: list[Metrics] = []
        for newest in take_steps(programs.step, batches, state, range(config.steps)):
            state, metrics = newest
            taken.append(metrics)
            progress.update()
        of_steps = jax.tree.map(lambda *values: np.array(values), *jax.device_get(taken))
        norms, last_tenth = of_steps.gradient_norm, slice(-max(1, config.steps // 10), None)
        scores = programs.evaluate(
            state.params, dataset.test_images, dataset.test_labels, config.steps
        )
        record |= {
            "accuracy": scores.accuracy,
            "loss": scores.loss,
            "finite": bool(np.isfinite(norms).all()),
            "gradient_norm_first": float(norms[: max(1, len(norms) // 10)].mean()),
            "gradient_norm_last": float(norms[last_tenth].mean()),
            "train_accuracy": float(of_steps.accuracy[last_tenth].mean()),
        }
        if probe:
            record["after"] = measure_causes(probe, jax.device_get(state.params), batches)
        if routed:
            record["agreement"] = routed(jax.device_get(state.params))
        if learned := programs.temperatures(state.params):
            record["temperatures"] = learned
        yield record


def agreement_probe(config: TrainConfig, dataset: Dataset) -> Callable[[Any], Record]:
    """What the network, with parameters as they are after training, decides of some test images;
    see `make_agreement`.
    """
    images, labels = diagnosed_examples(dataset)
    view = evaluation_view(config.images, jnp.asarray(images))
    network: Any = network_at(
        config, make_model(config.model, len(dataset.class_names)), config.steps
    )
    measure = make_agreement(network)
    return lambda params: measure(params, view, labels)


class Probe(NamedTuple):
    """What looks for causes, at the first step of a config; compiled functions of
    `(params, batch)`.

    Attributes:
        gradients: of the loss when all layers route with at most 1, 2 .. T iterations, the last of
            which is as they are.
        diagnose: `emcaps.diagnostics.diagnose_layers`.
    """

    gradients: tuple[Callable, ...]
    diagnose: Callable


def make_probe(config: TrainConfig, num_classes: int) -> Probe:
    """The probe of a config."""
    whole: Any = make_model(config.model, num_classes)
    layers = whole.layer_routing()

    def gradient(most: int) -> Callable:
        model = whole.clone(
            routing=tuple(layer.shortened(min(layer.num_iterations, most)) for layer in layers)
        )

        def objective(params: Any, batch: Batch) -> jax.Array:
            logits = class_logits(network_intermediates(config, model, params, batch.images, 0))
            return losses(config, logits, batch.labels, 0).mean()

        return jax.jit(jax.grad(objective))

    def diagnose(params: Any, batch: Batch) -> Any:
        return routing_diagnostics(config, whole, params, batch.images, 0)

    most = max(layer.num_iterations for layer in layers)
    return Probe(tuple(map(gradient, range(1, most + 1))), jax.jit(diagnose))


def measure_causes(probe: Probe, params: Any, batches: TrainingBatches) -> dict[str, Any]:
    """What may keep a network from training, on its first eight batches.

    Returns:
        `gradient_norm`: of the mean gradient, of each layer's parameters. `gradient_noise`: the
        standard deviation of the gradient from batch to batch over the norm of its mean, likewise.
        `gradient_norm_by_iterations`: of the mean gradient of all parameters, when all layers route
        with at most 1, 2 .. T iterations: by what each iteration multiplies it. And of each capsule
        layer what `emcaps.diagnostics.diagnose` says.
    """
    given = [batches(step) for step in range(8)]

    def norm(tree: Any) -> float:
        return float(optax.tree.norm(tree))

    def average(trees: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *arrays: sum(arrays) / len(arrays), *trees)

    by_iterations = [[gradient(params, batch) for batch in given] for gradient in probe.gradients]
    slopes, mean = by_iterations[-1], average(by_iterations[-1])
    report: dict[str, Any] = {
        "gradient_norm": {layer: norm(mean[layer]) for layer in params},
        "gradient_noise": {},
        "gradient_norm_by_iterations": [norm(average(gradients)) for gradients in by_iterations],
    }
    for layer in params:
        spread = [
            norm(jax.tree.map(jnp.subtract, slope[layer], mean[layer])) ** 2 for slope in slopes
        ]
        report["gradient_noise"][layer] = math.sqrt(sum(spread) / (len(spread) - 1)) / max(
            norm(mean[layer]), 1e-30
        )
    diagnoses = jax.device_get(probe.diagnose(params, given[0]))
    return report | {name: numbers(diagnosis) for name, diagnosis in diagnoses.items()}


def table(records: Sequence[Record], names: Sequence[str], caption: str) -> Table:
    """A row for each variant: accuracy in percent, mean and 95% interval, the worst and the best
    seed.
    """
    rows = []
    for name in names:
        runs = [record for record in records if record["variant"] == name]
        if not runs:
            continue
        accuracies = [100 * run["accuracy"] for run in runs]
        first, last = (
            statistics.median(run[f"gradient_norm_{when}"] for run in runs)
            for when in ("first", "last")
        )
        broken = sum(not run["finite"] for run in runs)
        rows.append(
            (
                f"`{name or 'default'}`",
                mean_and_interval(accuracies, 2),
                f"{min(accuracies):.2f}",
                f"{max(accuracies):.2f}",
                f"{first:.2g} to {last:.2g}",
                f"{len(runs)}{f', {broken} not finite' if broken else ''}",
            )
        )
    return Table(
        caption,
        ("variant", "accuracy %", "worst", "best", "gradient norm, first to last tenth", "seeds"),
        rows,
    )


def run(config: AblationConfig, _: str) -> None:
    """Train what is not in runs.jsonl yet, and write and print the table."""
    start_jax()
    configs = {name: variant_config(config, name) for name in variants(config)}
    described = {name: json.loads(to_json(variant)) for name, variant in configs.items()}
    file = config.output / "runs.jsonl"
    done = read_lines(file) if file.is_file() else []
    done = [record for record in done if record["variant"] in described]
    done = [record for record in done if record.get("config") == described[record["variant"]]]
    measured = [
        name
        for name, wanted in (("after", config.causes), ("agreement", config.agreement))
        if wanted
    ]
    done = [record for record in done if all(name in record for name in measured)]
    # The newest, where there are several.
    done = list({(record["variant"], record["seed"]): record for record in done}.values())
    finished = {(record["variant"], record["seed"]) for record in done}
    missing = {
        name: [seed for seed in config.seeds if (name, seed) not in finished] for name in configs
    }
    if unfinished := [configs[name] for name, seeds in missing.items() if seeds]:
        check(config, unfinished)
    config.output.mkdir(parents=True, exist_ok=True)
    with tqdm(
        total=len(configs) * len(config.seeds) * config.steps, file=sys.stderr, mininterval=10
    ) as progress:
        for name, seeds in missing.items():
            progress.update((len(config.seeds) - len(seeds)) * config.steps)
            progress.set_description(name or "default")
            if not seeds:
                continue
            dataset = load_data(configs[name], config.data_dir)
            for record in run_variant(
                configs[name], dataset, seeds, config.causes, config.agreement, progress
            ):
                done.append({"variant": name, **record, "config": described[name]})
                with file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(done[-1]) + "\n")
            progress.write(markdown_row(table(done, [name], name).rows[0]), file=sys.stdout)
    chosen = [record for record in done if record["seed"] in config.seeds]
    caption = (
        f"{config.dataset}, {config.steps} steps of {config.batch_size} images, scored on "
        f"{next(iter(configs.values())).scored} images, seeds {', '.join(map(str, config.seeds))}"
    )
    text = table(chosen, variants(config), caption).markdown()
    if config.agreement:
        by_variant = {
            name: [r for r in chosen if r["variant"] == name] for name in variants(config)
        }
        text += f"\n\n{agreement_table(by_variant).markdown()}"
    (config.output / "table.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}")


main = entry_point("experiments.ablation", AblationConfig, run)

if __name__ == "__main__":
    sys.exit(main())
