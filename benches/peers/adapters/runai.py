"""run:ai model streamer, with its S3 package: `SafetensorsStreamer.stream_files`, all files in one call.

From its docs (usage.md, env-vars.md) and, for what they leave out, the package (0.17.0):

* The yielded tensors belong to the caller (`owned=True`, the default), so nothing is cloned.
* `RUNAI_STREAMER_FS_STRATEGY`: the default list begins with `io_uring_direct`, past the page cache; files that are in
  the page cache get `sync_buffered`, which was twice as fast there. Concurrency 16 is the default for files.
* S3: `RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING=0` as documented for S3-compatible stores, `AWS_EC2_METADATA_DISABLED`
  as in vLLM's example. On two cores, four clients with parts of 32 MiB took less time and two thirds of the CPU of the
  defaults, 8 clients with parts of 8 MiB: so `RUNAI_STREAMER_OBJ_CONCURRENCY` is two a core, no more than the default,
  and `RUNAI_STREAMER_CHUNK_BYTESIZE` 32 MiB, for S3 alone (files have 2 MiB, their default).
* The memory limit (40 GB) does not bind here.
"""

from __future__ import annotations

import os

from common import Adapter, Loaded, PeerError, cores, is_s3, local_files, model_keys, resident

os.environ.setdefault("RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING", "0")
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
os.environ.setdefault("RUNAI_STREAMER_OBJ_CONCURRENCY", str(min(8, 2 * cores())))

from runai_model_streamer import SafetensorsStreamer, list_safetensors  # behind its settings

STRATEGY = "RUNAI_STREAMER_FS_STRATEGY"
CHUNK = "RUNAI_STREAMER_CHUNK_BYTESIZE"
S3_CHUNK_BYTES = 32 << 20


class Peer(Adapter):
    subject = "run:ai model streamer"
    package = "runai-model-streamer"
    can = ("local", "s3")

    def before_load(self, model: str) -> None:
        # Every streamer reads them anew.
        for name in (STRATEGY, CHUNK):
            os.environ.pop(name, None)
        if is_s3(model):
            os.environ[CHUNK] = str(S3_CHUNK_BYTES)
        elif resident(local_files(model)):
            os.environ[STRATEGY] = "sync_buffered"

    def load(self, model: str) -> Loaded:
        files = model_keys(model, list_safetensors(model)) if is_s3(model) else local_files(model)
        tensors = {}
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(files, device="cpu")
            for name, tensor in streamer.get_tensors():
                if name in tensors:
                    raise PeerError(f"two files have a tensor {name}")
                tensors[name] = tensor
        return Loaded(tensors)
