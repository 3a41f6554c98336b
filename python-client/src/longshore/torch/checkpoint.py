"""Checkpoints of torch.distributed.checkpoint, written and read by Longshore.

>>> import torch.distributed.checkpoint as dcp
>>> from longshore.torch.checkpoint import LongshoreReader, LongshoreWriter
>>> dcp.save(state, storage_writer=LongshoreWriter("s3://bucket/run", step=100))              # doctest: +SKIP
>>> dcp.load(state, storage_reader=LongshoreReader("s3://bucket/run", step="latest"))         # doctest: +SKIP

A writer serves one save, or many that are told apart by `checkpoint_id` or `LongshoreWriter.aim`.
"""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from longshore.torch._reader import LongshoreReader
from longshore.torch._stager import LongshoreStager
from longshore.torch._writer import LongshoreWriter

__all__ = ["LongshoreReader", "LongshoreStager", "LongshoreWriter", "save"]


def save(
    state_dict: dict[str, Any],
    uri: str | os.PathLike[str],
    *,
    step: int,
    planner: SavePlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    no_dist: bool = False,
    **options: Any,
) -> Metadata:
    """`dcp.save` with a `LongshoreWriter`, which `options` are for.

    When a rank dies the others raise a `longshore.Error` that names it, where torch's collectives would say that some
    connection was closed.
    """
    writer = LongshoreWriter(uri, step=step, **options)
    try:
        metadata: Metadata = dcp_save(
            state_dict, storage_writer=writer, planner=planner, process_group=process_group, no_dist=no_dist
        )
        return metadata
    except CheckpointException:
        # It has the errors of all ranks.
        raise
    except Exception as error:
        if writer.failure is not None:
            raise writer.failure from error
        raise
