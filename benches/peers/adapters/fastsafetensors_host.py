"""fastsafetensors in host mode: `SafeTensorsFileLoader(None, "cpu", nogds=True)`, all files in one call.

From the package's `loader.py` and `copier/nogds.py` (0.5.0): 16 reader threads and 16 MiB blocks are the defaults and
were not slower than 2 or 4 threads on two cores. It reads with O_DIRECT on local file systems unless
`FASTSAFETENSORS_ODIRECT=0`, which its own message recommends for "buffered reads": so set for files that are in the
page cache. The tensors keep their buffer alive, so they need no clone (`copy_files_to_device`). GPUDirect Storage, its
main path, needs a GPU.
"""

from __future__ import annotations

import os

from common import Adapter, Loaded, local_files, resident
from fastsafetensors import SafeTensorsFileLoader


class Peer(Adapter):
    subject = "fastsafetensors, host mode"
    package = "fastsafetensors"
    can = ("local",)
    cannot = {"s3": "fastsafetensors reads local files only"}  # noqa: RUF012

    def before_load(self, model: str) -> None:
        os.environ["FASTSAFETENSORS_ODIRECT"] = "0" if resident(local_files(model)) else "1"

    def load(self, model: str) -> Loaded:
        loader = SafeTensorsFileLoader(None, "cpu", nogds=True)
        loader.add_filenames({0: local_files(model)})
        buffers = loader.copy_files_to_device()
        tensors = {name: buffers.get_tensor(name) for name in loader.get_keys()}
        buffers.close()
        loader.close()
        return Loaded(tensors)
