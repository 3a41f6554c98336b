"""tensorizer: `TensorDeserializer` over one file in its own format, which `prepare` makes with `TensorSerializer`.

From its README and `serialization.py` (2.12.1): several readers "can greatly improve performance"; with
`num_readers=None`, the default, it takes 8 for local files, which it has, and 2 for others. For S3 it is two a core
here, from 4 to 8: on two cores 4 took 1.4 s for 1 GB, 8 took 1.9 s, 2 took 2.0 s. S3 is read as in its examples:
`open_stream` with endpoint and keys, `force_http=True` where the endpoint has no TLS; a curl process a reader, so
`curl` must be installed. `plaid_mode` has no effect any more. Hashes are not verified, its default.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from common import Adapter, Loaded, PeerError, cores, is_s3, local_files, model_keys, split_s3
from safetensors.torch import load_file
from tensorizer import TensorDeserializer, TensorSerializer
from tensorizer.stream_io import open_stream

#: Beside the model's folder in the bucket: everything below the model's own prefix is the model.
S3_SUFFIX = ".tensorizer/model.tensors"
S3_READERS = min(8, max(4, 2 * cores()))


def bucket_client() -> Any:
    """For copies to and from the bucket that are not measured."""
    import boto3

    return boto3.client("s3")


def download(model: str, folder: Path) -> list[str]:
    """The model's files, out of its bucket."""
    client = bucket_client()
    bucket, prefix = split_s3(model)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    keys = model_keys(model, (each["Key"] for page in pages for each in page.get("Contents", [])))
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for key in keys:
        files.append(str(folder / Path(key).name))
        client.download_file(bucket, key, files[-1])
    return files


def exists(uri: str) -> bool:
    """Whether another process of this peer uploaded it before."""
    bucket, key = split_s3(uri)
    return "Contents" in bucket_client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)


def convert(files: list[str], target: Path) -> None:
    """Into one file of its own format."""
    state = {}
    for file in files:
        state |= load_file(file)
    serializer = TensorSerializer(str(target))
    serializer.write_state_dict(state)
    serializer.close()


class Peer(Adapter):
    subject = "tensorizer"
    package = "tensorizer"
    can = ("local", "s3")

    def __init__(self) -> None:
        self.converted: dict[str, str] = {}

    def prepare(self, model: str, work: Path) -> str:
        work.mkdir(parents=True, exist_ok=True)
        if not is_s3(model):
            target = work / "model.tensors"
            convert(local_files(model), target)
            self.converted[model] = str(target)
            return f"converted to {target.stat().st_size} bytes of its own format"
        uri = model.rstrip("/") + S3_SUFFIX
        self.converted[model] = uri
        if exists(uri):
            return f"converted to its own format before, as {uri}"
        fetched, target = download(model, work / "fetched"), work / "to-upload.tensors"
        try:
            convert(fetched, target)
            bucket_client().upload_file(str(target), *split_s3(uri))
        finally:
            for path in [*map(Path, fetched), target]:
                path.unlink(missing_ok=True)
        return f"converted to its own format and uploaded as {uri}"

    def load(self, model: str) -> Loaded:
        uri = self.converted.get(model)
        if uri is None:
            raise PeerError(f"tensorizer reads its own format: `prepare` {model} first")
        if not is_s3(model):
            with TensorDeserializer(uri, device="cpu") as opened:
                return Loaded(dict(opened.items()))
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        stream = open_stream(
            uri,
            "rb",
            s3_access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
            s3_secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            s3_endpoint=endpoint,
            s3_region_name=os.environ.get("AWS_REGION", "us-east-1"),
            force_http=endpoint.startswith("http://"),
        )
        with stream, TensorDeserializer(stream, device="cpu", num_readers=S3_READERS) as opened:
            return Loaded(dict(opened.items()))
