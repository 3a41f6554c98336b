"""Longshore's Python client: models in shared memory, a GPU's too, as torch tensors or numpy arrays, without a copy.

>>> import longshore
>>> model = longshore.load("s3://models/my-model")      # doctest: +SKIP
>>> module.load_state_dict(model.state_dict(), assign=True)   # doctest: +SKIP
"""

from longshore._checkpoints import (
    Checkpoint,
    CheckpointFile,
    CheckpointInfo,
    CheckpointPiece,
    CheckpointTensor,
    DeleteResult,
    delete,
    latest,
)
from longshore._checkpoints import list_checkpoints as list
from longshore._errors import (
    Cancelled,
    Corrupt,
    Error,
    Exhausted,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    SaveFailedWarning,
    Timeout,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from longshore._handle import SaveHandle
from longshore._load import load
from longshore._model import Model, TensorInfo
from longshore._node import Node, attach, connect
from longshore._parallel import Expert, FusedPart, Parallel, Replicate, Split
from longshore._records import (
    DeviceStatus,
    Fallback,
    HolderStatus,
    LoadReport,
    Member,
    ModelInfo,
    NodeStatus,
    PinnedStatus,
    Progress,
    SkippedFile,
    StepTime,
    UnknownModel,
    UnloadResult,
)
from longshore._save import save
from longshore._save_status import SaveStatus
from longshore._sessions import release_staging

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "Checkpoint",
    "CheckpointFile",
    "CheckpointInfo",
    "CheckpointPiece",
    "CheckpointTensor",
    "Corrupt",
    "DeleteResult",
    "DeviceStatus",
    "Error",
    "Exhausted",
    "Expert",
    "FailedPrecondition",
    "Fallback",
    "FusedPart",
    "HolderStatus",
    "Internal",
    "InvalidArgument",
    "LoadReport",
    "Member",
    "Model",
    "ModelInfo",
    "Node",
    "NodeStatus",
    "NotFound",
    "Parallel",
    "PermissionDenied",
    "PinnedStatus",
    "Progress",
    "Replicate",
    "SaveFailedWarning",
    "SaveHandle",
    "SaveStatus",
    "SkippedFile",
    "Split",
    "StepTime",
    "TensorInfo",
    "Timeout",
    "Unauthenticated",
    "Unavailable",
    "UnknownModel",
    "UnloadResult",
    "Unsupported",
    "__version__",
    "attach",
    "connect",
    "delete",
    "latest",
    "list",
    "load",
    "release_staging",
    "save",
]
