"""Writes the tables of the pages that quote `benchmarks/` and `examples/`; the tests compare."""

from __future__ import annotations

import csv
import itertools
import json
import math
import runpy
import statistics
from collections.abc import Sequence

from _blocks import ROOT, Blocks, Said, count, part, table, write

RECORDS = json.loads((ROOT / "benchmarks" / "relaxations.json").read_text())


def gradients() -> str:
    """Bias and noise of pathwise gradients, of the network."""
    found = {
        (row["temperature"], row["family"]): (f"{row['bias']:.2f}", f"{row['noise']:.1f}")
        for row in RECORDS["gradients"]
        if row["objective"] == "network"
    }
    families = ("SoftmaxIGR", "GumbelSoftmax")
    head = [
        "temperature",
        *(f"`{name}`: {what}" for name in families for what in ("bias", "noise")),
    ]
    rows = [
        [f"{t:g}", *(cell for name in families for cell in found[t, name])]
        for t in (0.1, 0.2, 0.5, 1.0)
    ]
    return table(head, rows)


def percent(share: float) -> str:
    return f"{share:.0%}" if share == 0 or share > 0.01 else f"{share:.2%}"


def finite() -> str:
    """Samples without a finite log-density."""
    names = {
        "torch": "torch's `RelaxedOneHotCategorical`",
        "GumbelSoftmax": "`igr.GumbelSoftmax`",
        "SoftmaxIGR": "`SoftmaxIGR`",
    }
    rows = [
        [f"{row['temperature']:g}", *(percent(row[name]) for name in names)]
        for row in RECORDS["finite"]
        if row["temperature"] <= 0.2
    ]
    return table(["temperature", *names.values()], rows)


def demonstration(column: str) -> dict[tuple[str, float], list[float]]:
    """A column of the record, for each seed, by family and temperature."""
    numbers: dict[tuple[str, float], list[float]] = {}
    with (ROOT / "benchmarks" / "temperatures.csv").open() as file:
        for run in csv.DictReader(file):
            key = run["family"], float(run["temperature"])
            numbers.setdefault(key, []).append(float(run[column]))
    return numbers


def temperatures(column: str = "bound", digits: int = 1) -> str:
    """The demonstration: what was measured, by family and temperature."""
    numbers = demonstration(column)
    columns = sorted({t for _, t in numbers})
    rows = [
        [
            name,
            *(
                f"{statistics.mean(b):.{digits}f} ± {statistics.stdev(b):.{digits}f}"
                for b in of_family
            ),
        ]
        for family, name in (("igr-i", "`SoftmaxIGR`"), ("gs", "`GumbelSoftmax`"))
        if (of_family := [numbers[family, t] for t in columns])
    ]
    return table(["temperature", *(f"{t:g}" for t in columns)], rows)


PROGRAMS = (
    ("discrete_vae", "autoencoder of digits, hard codes", "bound", "IGR", "IGR, learned scales"),
    ("mixture_of_experts", "router of experts", "accuracy", "IGR", "IGR, learned scales"),
    ("masked_policy", "policy with a mask", "right answers", "IGR", "IGR, learned scales"),
    ("hard_attention", "where to look", "accuracy", "IGR, scales of 1", "IGR"),
    ("feature_selection", "choice of features", "accuracy", "", "IGR"),
    (
        "number_of_components",
        "clusters of wines (`CountableIGR`)",
        "agreement with the cultivars",
        "",
        "IGR",
    ),
    ("pyro_model", "outliers in Pyro", "error of the outliers' probabilities", "", "IGR"),
    ("zuko_flow", "density of flowers", "log-density of flowers not seen", "", "IGR"),
)
"""Tutorial, task, measure, and what its record calls IGR with scales of 1 and with learned ones."""


def programs() -> str:
    """What the tutorials came to."""
    rows = []
    for name, task, measure, *igrs in PROGRAMS:
        record = json.loads((ROOT / "examples" / "tutorials" / f"{name}.json").read_text())
        cells = []
        for row in ("Gumbel-Softmax", *igrs):
            values = [run[measure] for run in record.get(row, ())]
            cells.append(
                f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}" if values else ""
            )
        rows.append([task, measure, *cells, f"`{name}.py`"])
    head = ["task", "measure", "Gumbel-Softmax", "IGR, scales of 1", "IGR, learned", "tutorial"]
    return table(head, rows)


def three_figures() -> str:
    """Speed and finite densities in words, and how forgiving the temperature is as a table, for the README."""
    speed = json.loads((ROOT / "benchmarks" / "sampling.json").read_text())["rows"]
    work = "igr_softmax, sample (1000, 20, 10)"
    ratio = next(row["ratio"] for row in speed if row["work"] == work)
    row = next(row for row in RECORDS["finite"] if row["temperature"] == 0.05)
    torchs, ours = percent(row["torch"]), percent(row["SoftmaxIGR"])
    return f"""- **Fast.** A sample of `igr_softmax` and its gradient take {ratio:.2f} of the time of `F.gumbel_softmax`
  on one CPU core, for 20,000 variables of 10 categories; [more](docs/performance.md). A GPU has not been tried.
- **Finite.** At temperature 0.05, {torchs} of torch's relaxed samples have a log-density that is NaN or infinite in
  float32, and {ours} of ours; [more](docs/choosing.md#low-temperatures).
- **Forgiving.** The bound of a discrete autoencoder on digits, by temperature, in nats (higher is better; `igr demo`, 3
  seeds):

{temperatures()}"""


def matching() -> str:
    """How close `igr.match` comes, by family and target."""
    record = json.loads((ROOT / "benchmarks" / "matching.json").read_text())

    def short(distance: float, digits: int) -> str:
        return f"{distance:.{digits}e}".replace("e-0", "e-")

    found: dict[tuple[str, str], list[str]] = {}
    for row in record:
        cell = short(row["total_variation"], 1)
        if row["out_of_reach"]:
            cell += ", out of reach"
        elif row["standard_error"] is not None:
            cell += f" ± {short(row['standard_error'], 0)}"
        found.setdefault((row["how"], row["family"]), []).append(cell)
    targets = dict.fromkeys(row["target"] for row in record)
    head = [name.replace("NegativeBinomial", "NB") for name in targets]
    rows = []
    for how in ("hard", "mean"):
        rows.append([f"**{how}**", *[""] * len(head)])
        for (of, family), cells in found.items():
            if of == how:
                name, *equation = family.split()
                rows.append([" ".join([f"`{name}`", *equation]), *cells])
    return table(["", *head], rows)


def toy() -> str:
    """The polynomial toy at p = 2."""
    record = json.loads((ROOT / "examples" / "polynomial_toy.json").read_text())["Gumbel-Softmax"]
    names = {
        "ReinMax, ZGR": "`ReinMax`",
        "MVE": "`MVE`",
        "Pathwise": "`Pathwise`",
        "RelaxedStraightThrough": "`RelaxedStraightThrough`",
        "Reinforce(LeaveOneOut())": "`Reinforce(LeaveOneOut())`",
        "StraightThrough": "`StraightThrough`",
    }
    return table(
        ["estimator", "loss"],
        [[name, f"{record[key]['loss'][1]:.4f}"] for key, name in names.items()],
    )


def brief(x: float) -> str:
    return f"{x:.2f}" if x < 10 else f"{x:.0f}"


def benchmark(
    name: str, renamed: dict[str, str], leave_out: Sequence[str] = (), only: Sequence[str] = ("",)
) -> str:
    """The rows of a benchmark's record, without what is said of the project rather than of the library."""
    rows = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())["rows"]
    cells = []
    for row in rows:
        work = row["work"]
        if any(part in work for part in leave_out) or not any(part in work for part in only):
            continue
        against = row["against"]
        for old, new in renamed.items():
            work, against = work.replace(old, new), against.replace(old, new)
        low, high = (brief(float(end)) for end in row["spread"].split("-"))
        memory = "" if row["memory_mib"] is None else brief(row["memory_mib"])
        cells.append([work, f"{brief(row['ratio'])} ({low}-{high})", against, memory])
    return table(["work", "ratio (quartiles)", "against", "memory, MiB"], cells)


SAMPLING = {
    "igr_softmax": "`igr_softmax`",
    "F.gumbel_softmax": "`F.gumbel_softmax`",
    "SoftmaxIGR.from_logits": "`SoftmaxIGR.from_logits`",
    "SoftmaxIGR,": "`SoftmaxIGR`:",
    "RelaxedOneHotCategorical": "`RelaxedOneHotCategorical`",
    "stick-breaking (18)": "`StickBreakingIGR`'s map",
    "stick-breaking, sharpened": "`SharpStickBreakingIGR`'s map",
    "IGR-I": "`SoftmaxIGR`'s map",
}
LOGITS = ("from_logits", "sample (100, 10)")


def blocks() -> Blocks:
    """What belongs between the marks of each page."""
    return {
        "README.md": {"three figures": three_figures()},
        "docs/choosing.md": {
            "gradients": gradients(),
            "finite": finite(),
            "temperatures": temperatures(),
            "information": temperatures("kl", 2),
            "programs": programs(),
            "toy": toy(),
        },
        "docs/priors.md": {"matching": matching()},
        "docs/coming-from.md": {
            "logits": benchmark("sampling", SAMPLING, only=LOGITS),
        },
        "docs/performance.md": {
            "sampling": benchmark(
                "sampling",
                SAMPLING,
                leave_out=("import igr", "along dim", *LOGITS),
            ),
            "training steps": benchmark(
                "vae_step",
                {
                    "igr-i:": "IGR-I:",
                    "igr-sb:": "IGR-SB:",
                    "igr-planar:": "IGR-Planar:",
                    "gs:": "Gumbel-Softmax:",
                },
            ),
            "recovery": benchmark(
                "recovery",
                {
                    "Proposition 2": "`SoftmaxIGR`'s",
                    "from_logits": "`SoftmaxIGR.from_logits`",
                    "broken stick": "`SharpStickBreakingIGR`'s",
                    "igr-i: pathwise step": "a training step of the linear autoencoder",
                    "gs: pathwise step": "a training step of the linear autoencoder",
                    "gs: step by RELAX": "Gumbel-Softmax: a step by RELAX",
                    "igr-i: step by RELAX": "`SoftmaxIGR`: a step by RELAX",
                },
                leave_out=("10 to 1,000",),
            ),
        },
    }


def as_much_noise() -> float:
    """The temperature of `SoftmaxIGR` over that of the Gumbel-Softmax of as much noise: the median over temperatures.

    Between two temperatures the logarithm of the noise is taken for linear in that of the temperature.
    """
    ratios = []
    for objective in ("network", "quadratic"):
        igr, gumbel = (
            [
                (math.log(row["temperature"]), math.log(row["noise"]))
                for row in RECORDS["gradients"]
                if (row["objective"], row["family"]) == (objective, family)
            ]
            for family in ("SoftmaxIGR", "GumbelSoftmax")
        )
        for temperature, noise in igr:
            for (low, more), (high, less) in itertools.pairwise(gumbel):
                if less <= noise <= more:
                    rival = low + (high - low) * (more - noise) / (more - less)
                    ratios.append(math.exp(temperature - rival))
    return statistics.median(ratios)


def rows_of(name: str) -> list[dict]:
    """Of a benchmark's record."""
    found: list[dict] = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())["rows"]
    return found


def said() -> Said:
    """Figures in prose."""
    noise = f"{as_much_noise():.1f}"
    bounds = demonstration("bound")
    best = [
        max(statistics.mean(b) for (of, _), b in bounds.items() if of == family)
        for family in ("gs", "igr-i")
    ]
    recovery, steps = (rows_of(name) for name in ("recovery", "vae_step"))
    probs = next(row["ratio"] for row in recovery if row["work"].startswith("Proposition 2, 2000"))
    solved = [row["ratio"] for row in recovery if row["work"].startswith("from_logits")]
    stick = next(row for row in recovery if row["work"].endswith("as new heads have them"))
    floors = {row["work"]: row["ratio"] for row in steps if row["against"] == "products and Adam"}
    saved = [
        1 - ratio / floors[work.replace("compiled ", "")]
        for work, ratio in floors.items()
        if "compiled" in work
    ]
    tens = {2: "twenty", 3: "thirty"}[round(statistics.mean(solved) / 10)]
    between = f"{count(math.floor(probs))} to {count(math.ceil(probs))}"
    toy = runpy.run_path(str(ROOT / "examples" / "polynomial_toy.py"))
    distances = (toy["weights"]() - toy["TARGET"]).abs()
    began = [float((distances**p).mean()) for p in toy["POWERS"]]
    ended = json.loads((ROOT / "examples" / "polynomial_toy.json").read_text())["Gumbel-Softmax"]
    off = max(
        abs(ours - theirs)
        for name, published in toy["PUBLISHED"].items()
        for ours, theirs in zip(ended[name]["loss"], published, strict=True)
    )
    less = f"{part(min(saved))} to {part(max(saved))}"
    return {
        "README.md": [
            f"Take {noise} of the temperature that you have",
            f"it is ahead, by {best[0] - best[1]:.1f} nats",
        ],
        "docs/index.md": [f"at {noise} of its temperature there is as much noise"],
        "docs/choosing.md": [
            f"The noise is the same at {noise} of the Gumbel-Softmax's temperature",
            f"[{between} steps' worth](performance.md",
            f"where the best is {float(distances.min() ** 2):.4f}",
        ],
        "docs/coming-from.md": [
            f"`temperature={noise} * t`",
            f"{noise} of the Gumbel-Softmax's has [as much noise]",
        ],
        "docs/faq.md": [
            f"or {noise} of the temperature that a Gumbel-Softmax had",
            f"[{between} steps' worth](performance.md",
        ],
        "docs/how-to.md": [
            f"[{noise} of its temperature]",
            f"[some {tens} times as much again]",
        ],
        "docs/performance.md": [
            f"costs {between} training steps of a small autoencoder",
            f"some {tens} times `q.probs`",
            f"takes {less} less",
        ],
        "docs/experiments-models.md": [f"{less} off a step"],
        "docs/estimators.md": [
            f"within {off:.4f} (one seed each)",
            f"uniform law began ({began[0]:.3f} / {began[1]:.3f} / {began[2]:.3f})",
        ],
        "src/igr/distributions.py": [
            f"takes some {stick['ratio']:.0f} times as long",
            f"gradients included, and {stick['memory_mib']:.0f} MiB",
        ],
    }


if __name__ == "__main__":
    write(blocks())
