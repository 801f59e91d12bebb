"""The ensemble stage: cached embeddings of several teachers, to be learned from as those of one.

Nothing is computed: the teachers' files get a second name in the artifact, and `embeddings.py` combines them when they
are read. A weight says how much a teacher counts; its temperature how sharp its softmax over cosines is, by which the
same cosine says more of one teacher than of another. The logits of the ensemble are the sum of weight_i cos_i / t_i
(weights that sum to 1), so the share of a teacher in the combined cosine is in proportion to weight_i / t_i, and what
remains is the ensemble's own logit scale, the sum of weight_i / t_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcompress.artifact import Artifact
from mmcompress.compress.train.augment import GIVEN
from mmcompress.compress.train.chunks import CONTENTS, FOLDER, Store
from mmcompress.compress.train.embeddings import MEMBERS, Members
from mmcompress.config import EnsembleConfig
from mmcompress.errors import UsageError
from mmcompress.publish import link
from mmcompress.stages import Job
from mmcompress.strictjson import write_json

_SAME = ("views", "augment", "seed")


def ensemble(job: Job[EnsembleConfig]) -> None:
    """Stage: the cached embeddings of several teachers as one artifact."""
    config, teachers = job.config, job.gathered
    facts = [teacher.manifest.facts for teacher in teachers]
    _check_together(teachers)
    weights = _of_each("weights", config.weights, [1.0] * len(teachers))
    own = [fact.get("logit_scale") for fact in facts]
    scales = [1 / t for t in _of_each("temperatures", config.temperatures, [1 / s if s else None for s in own])]
    dims = [fact["dim"] for fact in facts]
    if config.combine == "average" and len(set(dims)) > 1:
        raise UsageError(f"embeddings of {', '.join(map(str, dims))} dimensions cannot be averaged", "concatenate them")
    logits = [weight / sum(weights) * scale for weight, scale in zip(weights, scales, strict=True)]
    for number, teacher in enumerate(teachers):
        (job.draft.path / str(number) / FOLDER).mkdir(parents=True)
        for name, entry in teacher.manifest.files.items():
            link(teacher.file(name), job.draft.path / str(number) / name)
            job.draft.known[f"{number}/{name}"] = entry.sha256
    members = Members(
        combine=config.combine,
        shares=tuple(logit / sum(logits) for logit in logits),
        data=teachers[0].manifest.parents.get("data.train"),
    )
    write_json(job.draft.path / MEMBERS, members.model_dump(mode="json"))
    job.draft.preprocessing = teachers[0].preprocessing
    job.draft.facts = {
        **{name: facts[0][name] for name in (*_SAME, "sentences") if name in facts[0]},
        "dim": sum(dims) if config.combine == "concatenate" else dims[0],
        "logit_scale": sum(logits),
        "logit_bias": None,
    }


def _of_each(name: str, said: Sequence[float] | None, found: Sequence[float | None]) -> list[float]:
    """A value a teacher: what was said, or what is known of it."""
    if said is not None and len(said) != len(found):
        raise UsageError(f"{name} has {len(said)} values, and there are {len(found)} teachers", "give one for each")
    values = found if said is None else said
    if None in values:
        raise UsageError(
            f"the teacher {values.index(None) + 1} of {len(values)} does not say how sharp its softmax is",
            f"give {name}, 0.01 for CLIP",
        )
    return [value for value in values if value is not None]


def _check_together(teachers: Sequence[Artifact]) -> None:
    """Raise UsageError for embeddings that are not of the same pixels and captions."""
    if len(teachers) < 2:
        raise UsageError(
            f"an ensemble has two teachers or more, and there are {len(teachers)}", "give their embeddings"
        )
    first = teachers[0]
    if len({teacher.digest for teacher in teachers}) < len(teachers):
        raise UsageError(
            f"an ensemble is of different teachers, and {', '.join(str(one.path) for one in teachers)} are not",
            "name each once; weights say how much one counts",
        )
    for other in teachers:
        if CONTENTS not in other.manifest.files:
            raise UsageError(f"{other.path} is an ensemble, or of an earlier version", "give what `embed` wrote")
        if other.manifest.facts["augment"] == GIVEN:
            raise UsageError(
                f"{other.path} was imported, with views that no teacher here has embedded", "learn from it alone"
            )
        for what, ours, theirs in _compared(first, other):
            if ours != theirs:
                raise UsageError(
                    f"{first.path} and {other.path} have other {what}: {ours} and {theirs}",
                    "embed the same data with the same views, augment and seed",
                )


def _compared(first: Artifact, other: Artifact) -> list[tuple[str, Any, Any]]:
    facts, theirs = first.manifest.facts, other.manifest.facts
    data, other_data = (artifact.manifest.parents.get("data.train") for artifact in (first, other))
    return [
        *((name, facts[name], theirs[name]) for name in _SAME if name == "views" or facts["views"] > 1),
        ("data", data, other_data),
        ("sentences", first.manifest.parents.get("sentences"), other.manifest.parents.get("sentences")),
        ("numbers of samples", len(Store(first.path)), len(Store(other.path))),
        ("crops", _crop(first), _crop(other)),
    ]


def _crop(teacher: Artifact) -> tuple[bool, float] | None:
    """What of an image a teacher sees: squashed or not, and the side of the crop as a share of the shorter side."""
    rule = teacher.preprocessing
    return None if rule is None else (rule.squash, rule.size / rule.resize)
