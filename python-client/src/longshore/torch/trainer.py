"""A callback for the Trainer of transformers: its checkpoints, in a bucket.

>>> trainer = Trainer(..., callbacks=[LongshoreCallback("s3://bucket/run")])                        # doctest: +SKIP
>>> trainer.train(resume_from_checkpoint=restore("s3://bucket/run", trainer.args.output_dir))       # doctest: +SKIP
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from transformers import TrainerCallback

from longshore._checkpoints import get, latest
from longshore._errors import Error
from longshore._handle import SaveHandle
from longshore._service import service
from longshore.torch.folder import restore_folder, save_folder

_log = logging.getLogger("longshore")


class LongshoreCallback(TrainerCallback):  # type: ignore[misc] # transformers has no types
    """Saves each checkpoint of a Trainer as `uri`/step-N, in the background, as a whole or not at all.

    The Trainer writes its folder as ever (`save_steps`, `save_total_limit` and so on are its own); the folder is copied
    into the loader's memory, and training goes on while that is synced and uploaded. ``from_pretrained`` reads
    the step's folder in the bucket. The end of the training waits until the last one is committed.

    `options` are those of `longshore.save`: `keep`, `delta`, `metadata`, `address` and so on.
    """

    def __init__(self, uri: str | os.PathLike[str], *, commit_timeout: float | None = 1800.0, **options: Any) -> None:
        self._uri = uri
        self._options = options
        self._commit_timeout = commit_timeout
        self._pending: list[SaveHandle] = []

    @property
    def pending(self) -> list[SaveHandle]:
        """Saves that are not committed yet, or have failed."""
        self._pending = [each for each in self._pending if each.status.state != "committed"]
        return list(self._pending)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The Trainer has written a checkpoint."""
        if dist.is_available() and dist.is_initialized():
            # Every rank writes its own files into the folder.
            dist.barrier()
        for each in self.pending:
            if each.committed.done() and each.committed.exception() is not None:
                _log.warning("save of %s step %d failed: %s", each.uri, each.step, each.committed.exception())
                self._pending.remove(each)
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self._pending.append(save_folder(folder, self._uri, step=state.global_step, **self._options))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Waits for what is not committed yet; raises why it is not."""
        failure: Error | None = None
        for each in self.pending:
            try:
                each.result(self._commit_timeout)
            except Error as error:
                failure = error
        if failure is not None:
            raise failure


def restore(
    uri: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    step: int | Literal["latest"] = "latest",
    address: str | None = None,
) -> str | None:
    """The folder of a committed checkpoint, for `resume_from_checkpoint`; None when the run has none yet.

    It is written below `output_dir`, unless it is there already, by the first process of each machine; processes that
    share the folder wait for it.
    """
    found = latest(uri, address=address) if step == "latest" else get(service(address), uri, step, None)
    folder = None if found is None else Path(output_dir) / f"checkpoint-{found.step}"
    is_distributed = dist.is_available() and dist.is_initialized()
    try:
        if (
            found is not None
            and folder is not None
            and not folder.exists()
            and int(os.environ.get("LOCAL_RANK", "0")) == 0
        ):
            restore_folder(uri, folder, step=found.step, address=address)
    finally:
        if is_distributed:
            dist.barrier()
    return None if folder is None else str(folder)
