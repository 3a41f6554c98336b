"""Samples, and the rows that are made of them."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

#: A load by the client, and its part up to the end of the loader's work, which is what the limits are limits of.
REGION = "longshore, host region"
LONGSHORE = ("longshore", REGION)
#: The same two by a loader that has touched its memory before, and through a worker over TCP.
PREFAULTED = ("longshore, prefaulted", f"{REGION}, prefaulted")
OVER_TCP = ("longshore, over TCP", f"{REGION}, over TCP")
#: Units in which more is better; in all others less is.
RATES = ("GB/s", "files/s", "reads/s", "calls/s")
#: What a rate's amount is divided by.
SCALES = {"GB/s": 1e9}


@dataclass
class Sample:
    """One measurement."""

    seconds: float
    #: Of every process on both ends, without the origin; None when it is not known.
    cpu_seconds: float | None = None
    #: Bytes, files, reads or calls, as the unit has it.
    amount: float = 0
    #: Bytes, for CPU seconds a GB.
    size_bytes: int = 0
    #: Steps of a load as its report has them: name, start, end and busy seconds.
    steps: list[dict[str, Any]] = field(default_factory=list)

    def value(self, unit: str) -> float:
        """In that unit."""
        if unit in RATES:
            return self.amount / SCALES.get(unit, 1) / self.seconds
        return self.seconds * (1e3 if unit.startswith("ms") else 1)


@dataclass
class Row:
    """One subject on one case, as the results have it."""

    case: str
    subject: str
    value: float | None
    unit: str
    limit: float | None = None
    ratio_to_limit: float | None = None
    cpu_s_per_gb: float | None = None
    runs: int = 0
    min: float | None = None
    max: float | None = None
    cache_state: str = ""
    command: str = ""
    note: str = ""
    error: str = ""
    #: Name of the limit's row, for those who read the tables.
    limit_name: str = ""
    #: CPU seconds over the limit's.
    cpu_ratio_to_limit: float | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Without what is empty and optional."""
        optional = ("note", "error", "limit_name", "cpu_ratio_to_limit", "steps")
        return {name: value for name, value in asdict(self).items() if value or name not in optional}


@dataclass
class Series:
    """What all rounds measured of one row, by round."""

    case: str
    subject: str
    unit: str
    cache_state: str = ""
    note: str = ""
    #: Key of the series it is compared with.
    limit: tuple[str, str] | None = None
    samples: dict[int, Sample] = field(default_factory=dict)
    error: str = ""
    #: Rounds that failed.
    failures: int = 0

    @property
    def key(self) -> tuple[str, str]:
        return (self.case, self.subject)

    def row(self, command: str, limit: Series | None) -> Row:
        """Medians over the rounds; ratios are medians of the ratios within each round."""
        row = Row(self.case, self.subject, None, self.unit, cache_state=self.cache_state, command=command)
        row.note, row.error = self.note, self.error
        if not self.samples:
            row.error = row.error or ("" if self.note else "no round was measured")
            return row
        samples = list(self.samples.values())
        values = [sample.value(self.unit) for sample in samples]
        row.value, row.runs = statistics.median(values), len(values)
        row.min, row.max = min(values), max(values)
        row.cpu_s_per_gb = median([cpu for sample in samples if (cpu := cpu_per_gb(sample)) is not None])
        # The run in the middle, not a mix of runs.
        middle = sorted(samples, key=lambda sample: sample.seconds)[len(samples) // 2]
        row.steps = middle.steps
        if limit is not None and limit.samples:
            self._compare(row, limit)
        return row

    def _compare(self, row: Row, limit: Series) -> None:
        # A limit that is a row of the same case goes by its subject's name.
        row.limit_name = limit.case if limit.case.startswith("limit/") else limit.subject
        row.limit = statistics.median(sample.value(limit.unit) for sample in limit.samples.values())
        pairs = [(sample, limit.samples[at]) for at, sample in self.samples.items() if at in limit.samples]
        if self.unit == limit.unit:
            ratios = [ours.value(self.unit) / theirs.value(limit.unit) for ours, theirs in pairs]
            row.ratio_to_limit = median(ratios if self.unit in RATES else [1 / ratio for ratio in ratios])
        cpu = [(cpu_per_gb(ours), cpu_per_gb(theirs)) for ours, theirs in pairs]
        row.cpu_ratio_to_limit = median([ours / theirs for ours, theirs in cpu if ours is not None and theirs])


def cpu_per_gb(sample: Sample) -> float | None:
    """CPU seconds a GB, where there are bytes."""
    if sample.cpu_seconds is None or not sample.size_bytes:
        return None
    return sample.cpu_seconds / (sample.size_bytes / 1e9)


def median(values: list[float]) -> float | None:
    """None of nothing."""
    return statistics.median(values) if values else None
