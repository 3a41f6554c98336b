"""Tensor parallelism: which part of each tensor one rank gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longshore._errors import InvalidArgument
from longshore._proto import loader_pb2

EXPERT = "{expert}"
_UINT32_MAX = (1 << 32) - 1
_UINT64_MAX = (1 << 64) - 1


@dataclass(frozen=True)
class Replicate:
    """Every rank gets the whole tensor; so do all tensors that no rule matches."""


@dataclass(frozen=True)
class FusedPart:
    """One of the matrices that a fused tensor consists of: its size along the split dimension.

    `replicas` consecutive ranks share one piece, for key and value heads that are fewer than the ranks.
    """

    size: int
    replicas: int = 1

    def __post_init__(self) -> None:
        _check_int("the size of a part", self.size, 1, _UINT64_MAX)
        _check_int("the replicas of a part", self.replicas, 1, _UINT32_MAX)


@dataclass(frozen=True)
class Split:
    """Every rank gets an equal piece along dimension `dim`.

    `parts` are for tensors that are several matrices in one (merged QKV, gate and up): their sizes along `dim`, as
    numbers or `FusedPart`, which add up to the tensor's. Each is split by itself; a rank's pieces follow each other.
    """

    dim: int
    parts: Sequence[FusedPart | int] | None = None

    def __post_init__(self) -> None:
        _check_int("the dimension of a split", self.dim, 0, _UINT32_MAX)
        if self.parts is None:
            return
        if isinstance(self.parts, (str, bytes)) or not isinstance(self.parts, Sequence) or not self.parts:
            raise InvalidArgument("the parts of a split are a list of sizes or FusedPart, with at least one, or None")
        fused = tuple(part if isinstance(part, FusedPart) else FusedPart(part) for part in self.parts)
        object.__setattr__(self, "parts", fused)

    @property
    def fused(self) -> tuple[FusedPart, ...]:
        """The parts; none for a tensor that is one matrix."""
        return tuple(part if isinstance(part, FusedPart) else FusedPart(part) for part in self.parts or ())


@dataclass(frozen=True)
class Expert:
    """The tensors of one expert go to one rank, whole.

    The pattern has one ``{expert}``, which stands for the expert's number. The experts of the model are dealt out in
    consecutive groups, one a rank.
    """


Rule = Replicate | Split | Expert


@dataclass(frozen=True)
class Parallel:
    """One rank's part of a model.

    `rules` are pairs of a pattern and a rule (or a mapping): the first whose pattern matches a tensor's whole name
    decides, where ``*`` stands for any characters and ``?`` for one.

    >>> Parallel(0, 8, {"*.qkv_proj.weight": Split(0, [4096, FusedPart(1024, 2), FusedPart(1024, 2)]),
    ...                 "*.o_proj.weight": Split(1),
    ...                 "*.experts.{expert}.*": Expert()}).world_size
    8
    """

    rank: int
    world_size: int
    rules: Mapping[str, Rule] | Sequence[tuple[str, Rule]] = ()

    def __post_init__(self) -> None:
        _check_int("the world size", self.world_size, 1, _UINT32_MAX)
        _check_int("the rank", self.rank, 0, self.world_size - 1)
        pairs = self.rules.items() if isinstance(self.rules, Mapping) else self.rules
        object.__setattr__(self, "rules", tuple(self._check_rule(pair) for pair in pairs))

    def _check_rule(self, pair: object) -> tuple[str, Rule]:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise InvalidArgument(f"a rule is a pair of a pattern and Replicate, Split or Expert, not {pair!r}")
        pattern, rule = pair
        if not isinstance(pattern, str) or not pattern:
            raise InvalidArgument(f"the pattern of a rule is a text with at least one character, not {pattern!r}")
        if not isinstance(rule, (Replicate, Split, Expert)):
            raise InvalidArgument(f"the rule of {pattern!r} is Replicate, Split or Expert, not {rule!r}")
        if pattern.count(EXPERT) != (1 if isinstance(rule, Expert) else 0):
            raise InvalidArgument(f"the pattern of an Expert has one {EXPERT}, and no other has any: {pattern!r}")
        for part in rule.fused if isinstance(rule, Split) else ():
            if self.world_size % part.replicas:
                raise InvalidArgument(
                    f"the rule of {pattern!r}: {self.world_size} ranks cannot share pieces in groups of {part.replicas}"
                )
        return pattern, rule

    def to_proto(self) -> loader_pb2.Parallel:
        """The message of a request."""
        message = loader_pb2.Parallel(rank=self.rank, world_size=self.world_size)
        pairs = self.rules.items() if isinstance(self.rules, Mapping) else self.rules
        for pattern, rule in pairs:
            added = message.rules.add(pattern=pattern)
            if isinstance(rule, Split):
                added.split.dim = rule.dim
                for part in rule.fused:
                    added.split.parts.add(size=part.size, replicas=part.replicas)
            elif isinstance(rule, Expert):
                added.expert.SetInParent()
            else:
                added.replicate.SetInParent()
        return message


def _check_int(what: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidArgument(f"{what} is a whole number from {least} to {most}, not {value!r}")
