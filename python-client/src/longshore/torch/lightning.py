"""A CheckpointIO for Lightning.

>>> io = LongshoreCheckpointIO("s3://bucket/run")                                           # doctest: +SKIP
>>> trainer = Trainer(plugins=[io], callbacks=[ModelCheckpoint(every_n_train_steps=100)])   # doctest: +SKIP
>>> trainer.fit(module, ckpt_path="last")                                                   # doctest: +SKIP
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from longshore._checkpoints import delete, list_checkpoints
from longshore._errors import Error, InvalidArgument, NotFound
from longshore._handle import SaveHandle
from longshore._load import load
from longshore._save import save
from longshore.torch._target import plain, split

_log = logging.getLogger("longshore")

#: Under this key of a checkpoint's metadata is the name that Lightning knows it by.
_PATH = "lightning.path"
_WEIGHTS = "state_dict"
_REST = "lightning"
_STEP = re.compile(r"step=([0-9]+)")


class LongshoreCheckpointIO(CheckpointIO):  # type: ignore[misc] # Lightning's types are not followed
    """Saves what Lightning saves as `uri`/step-N, N being the global step, in the background.

    `save_checkpoint` returns when everything is copied into the loader's memory. Lightning's own paths
    (``.../epoch=1-step=20.ckpt``, ``last.ckpt``) stay the names by which it finds its checkpoints; the URL of a
    checkpoint, ``s3://bucket/run/step-20``, works as `ckpt_path` too. The weights are stored under their own names, so
    that other tools read them.

    Other values than tensors and plain ones are pickled, unless `allow_pickle` is False: then they are refused.
    `options` are those of `longshore.save`. For strategies that save shards (FSDP with sharded state dicts, model
    parallel), use `longshore.torch.checkpoint`.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        allow_pickle: bool = True,
        commit_timeout: float | None = 1800.0,
        **options: Any,
    ) -> None:
        self._uri = plain(uri)
        self._allow_pickle = allow_pickle
        self._commit_timeout = commit_timeout
        self._options = options
        self._handles: dict[int, SaveHandle] = {}
        #: Names that this process saved under.
        self._steps: dict[str, int] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Saves. Lightning calls this on the first rank."""
        if storage_options is not None:
            raise InvalidArgument("storage_options are given to LongshoreCheckpointIO itself")
        name = _name(path)
        found = _STEP.search(name)
        step = int(checkpoint["global_step"] if "global_step" in checkpoint else found[1] if found else 0)
        known = self._handles.get(step)
        if known is not None and not (known.committed.done() and known.committed.exception()):
            # `last` and the like: another name for what is saved already.
            self._steps[name] = step
            return
        rest = {key: value for key, value in checkpoint.items() if key != _WEIGHTS}
        self._handles[step] = save(
            {"model": checkpoint.get(_WEIGHTS, {}), _REST: rest},
            self._uri,
            step=step,
            rank=0,
            world_size=1,
            allow_pickle=self._allow_pickle,
            **{**self._options, "metadata": {**self._options.get("metadata", {}), _PATH: name}},
        )
        self._steps[name] = step

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Loads a committed checkpoint, on any rank. The tensors are on the host."""
        uri, step = self._find(path)
        pickled = self._allow_pickle and not weights_only
        with load(uri, "host", framework="torch", progress=False, step=step, address=self._address) as model:
            state = model.state_dict(allow_pickle=pickled)
        found: dict[str, Any] = dict(state.get(_REST, {}))
        found[_WEIGHTS] = state.get("model", {})
        return found

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Deletes a checkpoint that Lightning needs no more, unless another of its names is in use."""
        name = _name(path)
        try:
            uri, step = self._find(path)
        except NotFound:
            return
        self._steps.pop(name, None)
        if step not in self._steps.values():
            try:
                self._handles.pop(step).result(self._commit_timeout)
            except KeyError:
                pass
            except Error as error:
                _log.info("removing %s: its save had failed: %s", name, error)
                return
            delete(uri, step, address=self._address)

    def teardown(self) -> None:
        """Waits until everything is committed; raises why it is not."""
        handles, self._handles = self._handles, {}
        for handle in handles.values():
            handle.result(self._commit_timeout)

    @property
    def _address(self) -> str | None:
        found: str | None = self._options.get("address")
        return found

    def _find(self, path: str | os.PathLike[str]) -> tuple[str, int]:
        """The run and step of one of Lightning's paths."""
        named = split(path)
        if named is not None:
            return named.uri, named.step
        name = _name(path)
        step = self._steps.get(name)
        if step is not None and step in self._handles:
            self._handles[step].result(self._commit_timeout)
        if step is None:
            step = self._committed(name)
        if step is None:
            raise NotFound(f"{self._uri} has no checkpoint that was saved as {name!r}")
        return self._uri, step

    def _committed(self, name: str) -> int | None:
        found = list_checkpoints(self._uri, address=self._address)
        steps = [each.step for each in found if each.metadata.get(_PATH) == name]
        if not steps and name.startswith("last"):
            # It was another name for a checkpoint, in a process that has ended.
            steps = [each.step for each in found]
        return max(steps, default=None)


def _name(path: str | os.PathLike[str]) -> str:
    return PurePosixPath(os.fspath(path)).name
