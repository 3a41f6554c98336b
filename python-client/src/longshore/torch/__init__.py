"""What Longshore has for PyTorch's own tools.

* `longshore.torch.checkpoint`: torch.distributed.checkpoint writes and reads checkpoints of Longshore.
* `longshore.torch.trainer`: a callback for the Trainer of transformers.
* `longshore.torch.lightning`: a CheckpointIO for Lightning.
* `longshore.torch.folder`: folders that other tools wrote, as checkpoints, and back.
"""
