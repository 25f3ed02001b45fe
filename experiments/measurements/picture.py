"""The picture of the benchmark."""

from typing import Any

from matplotlib.figure import Figure

from experiments.plots.style import NEUTRAL, TEST, TRAIN


def benchmark(record: dict[str, Any]) -> Figure:
    """What a routing costs, and how the cost grows.

    Args:
        record: benchmark.json, with its parts `layer` and `sweeps`.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    figure.suptitle("EM routing of one layer: textbook formulation and emcaps' implementations")
    bars, growth = figure.subplots(1, 2)
    directions = record["layer"]
    names = list(directions["forward"])
    for offset, (direction, color) in zip(
        (-0.2, 0.2), (("forward", TRAIN), ("gradient", TEST)), strict=True
    ):
        reference = directions[direction]["textbook"]["seconds"]
        speedups = [reference / directions[direction][name]["seconds"] for name in names]
        places = [place + offset for place in range(len(names))]
        drawn = bars.barh(
            places,
            speedups,
            0.4,
            color=color,
            label="forward" if direction == "forward" else "with gradient",
        )
        bars.bar_label(drawn, fmt="%.1f", padding=3, fontsize=8)
    bars.set_yticks(range(len(names)), labels=names)
    bars.invert_yaxis()
    bars.margins(x=0.12)
    bars.set(xlabel="times as fast as the textbook", title="Speed")
    bars.legend(loc="upper right")
    for name, sweep in record["sweeps"].items():
        relative = [size / sweep["sizes"][0] for size in sweep["sizes"]]
        label = f"{name}: exponent {sweep['exponent']:.2f}"
        growth.loglog(
            relative,
            [second / sweep["seconds"][0] for second in sweep["seconds"]],
            marker="o",
            label=label,
        )
    growth.plot([1, 32], [1, 32], color=NEUTRAL, linestyle="--", label="linear")
    growth.set(
        xlabel="size, relative to the smallest",
        ylabel="time, relative to the smallest",
        title="Streamed, with gradient",
    )
    growth.grid(alpha=0.3, which="both")
    growth.legend(fontsize=8)
    return figure
