"""Students sized by a latency: is what was asked for what is measured, and does the ranking predict what is learned?

    python benchmarks/sized.py latency [--image-size 64] [--budgets 0.4 0.8 1.6] [--backends openvino onnxruntime]
    python benchmarks/sized.py ranking --work DIR [--budget 0.6] [--seconds 60 | --steps 300] [--seeds 0]
                                              [--data drawings|photos]

`latency` sizes a student for each budget by the costs of this machine, and times the whole INT8 graph of the choice
again, three times, apart from the search; the table has the median. `ranking` trains the leading student of five kinds
(a preset at a side) that a budget has room for, on the demo's drawings or on photos, for as many steps as take
`--seconds` of the processor or for `--steps` each, and prints what `training.py` measures beside the capacity that
ranks them. Runs are kept in DIR.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from training import DATA, MEAN, SCORES, Runs, Scorer, model_of, prepared, steps_within

from mmcompress.artifact import Artifact
from mmcompress.compress.sizing.candidates import Candidate, tower_of
from mmcompress.compress.sizing.costs import measured_costs, timed
from mmcompress.compress.sizing.size import capacity_of, sized, weighed
from mmcompress.config import Backend, SizeConfig
from mmcompress.pipeline import standalone
from mmcompress.runtime.machine import usable_cores

TRAINED = {"optimizer.batch": 64, "optimizer.ema": 0.99, "text": "keep"}
RATES = {"mnv4": 2.4e-3, "vit": 1.2e-3}
KINDS, REPEATS = 5, 3


def latency(image_size: int, budgets: list[float], backends: list[Backend]) -> None:
    print("| backend | asked ms | student | measured ms | measured / asked |\n|---|--:|---|--:|--:|")
    for backend in backends:
        costs = measured_costs(backend, "int8", usable_cores(), image_size)
        for budget in budgets:
            config = SizeConfig(backend=backend, target_ms=budget, image_size=image_size)
            _, chosen = sized(costs, config, here=True)
            again = [timed([tower_of(chosen)], backend, "int8", usable_cores())[0] for _ in range(REPEATS)]
            ms = statistics.median(again)
            print(f"| {backend} | {budget:g} | {chosen.name} | {ms:.3f} | {ms / budget:.2f} |", flush=True)


def trained(one: Candidate, place: Path, into: Path, steps: int, seed: int) -> tuple[float, Artifact]:
    """Seconds of the processor, and the student."""
    keys = {f"student.{key}": value for key, value in one.student.model_dump(exclude_defaults=True).items()}
    rate = {"optimizer.lr": RATES[one.preset.partition("-")[0]], "optimizer.steps": steps, "seed": seed}
    name = one.name.replace(" ", "-").replace(",", "")
    out = into / f"{place.name}-{name}-{steps}-{seed}"
    began = time.process_time()
    made = standalone.distill(out, {**TRAINED, **rate, **keys}, embeddings=place)
    return time.process_time() - began, made


def ranking(work: Path, data: str, budget: float, seconds: float, known: int, seeds: list[int]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    teacher, embeddings = prepared(work, data, 4)
    scorer, place = Scorer(teacher, data), embeddings.path
    costs = measured_costs("openvino", "int8", usable_cores(), 64)
    best: dict[tuple[str, int], Candidate] = {}
    for each in weighed(costs, SizeConfig(target_ms=budget, image_size=64)):
        if each.predicted <= budget:
            best.setdefault((each.candidate.preset, each.candidate.image_size), each.candidate)
    chosen = sorted(best.values(), key=lambda one: -capacity_of(tower_of(one)))[:KINDS]
    times = timed([tower_of(one) for one in chosen], "openvino", "int8", usable_cores())
    runs = Runs(work / f"runs-{data}-{budget}{f'-{known}' if known else ''}.jsonl", "student", "seed")
    for one, ms in zip(chosen, times, strict=True):
        if all((one.name, seed) in runs for seed in seeds):
            continue
        steps = known or steps_within(seconds, lambda into, n, one=one: trained(one, place, into, n, 0)[0])
        about = {"student": one.name, "ms": f"{ms:.3f}", "capacity": capacity_of(tower_of(one)) / 1e6, "steps": steps}
        for seed in seeds:
            if (one.name, seed) not in runs:
                cpu, made = trained(one, place, work, steps, seed)
                runs.add({**about, "seed": seed, "cpu": cpu, **scorer(model_of(made))})
    columns = [("INT8 ms", "ms", MEAN), ("capacity, millions", "capacity", MEAN), ("steps", "steps", MEAN), *SCORES]
    runs.table(columns)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("latency", "ranking"))
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.4, 0.8, 1.6])
    parser.add_argument("--backends", nargs="+", default=["openvino", "onnxruntime"])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--data", choices=tuple(DATA), default="drawings")
    parser.add_argument("--budget", type=float, default=0.6)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=0, help="of every student, instead of what --seconds gives")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked = parser.parse_args()
    if asked.what == "latency":
        latency(asked.image_size, asked.budgets, asked.backends)
    elif asked.work is None:
        parser.error("ranking keeps its runs in --work DIR")
    else:
        ranking(asked.work, asked.data, asked.budget, asked.seconds, asked.steps, asked.seeds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
