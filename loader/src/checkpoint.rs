//! Checkpoints at this loader: the engine behind its gRPC service and its slab socket.
