//! What the tests, benches and demos of Longshore stand on: servers that can be told to misbehave, generators of
//! models good and bad, and a harness for the real processes. Nothing of it is part of the product.
//!
//! * [`origin::FakeOrigin`]: an object store (S3, GCS, Hugging Face hub or plain HTTP) that is fast, counts and lies on demand;
//! * [`content`]: bytes that are computed and not kept, so that 20 GB need no memory;
//! * [`modelgen`]: safetensors models of every kind, with what a reader must find in them, and the bad ones;
//! * [`proxy::FaultProxy`]: a TCP proxy that delays, cuts and corrupts;
//! * [`fake_cuda::FakeCuda`]: a CUDA driver for machines without a GPU;
//! * [`cluster::Cluster`]: workers and loaders as real processes.
//!
//! Here a failure of the set-up itself panics with its reason: there is nobody to hand an error to but the test.

pub mod cluster;
pub mod content;
pub mod fake_cuda;
pub mod modelgen;
pub mod origin;
pub mod proxy;

pub use cluster::Cluster;
pub use content::Content;
pub use fake_cuda::{FakeCuda, FakeCudaOptions};
pub use origin::{Dialect, FakeOrigin, Fault, FaultKind, OriginConfig};
pub use proxy::FaultProxy;
