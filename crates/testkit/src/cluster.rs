//! Processes.
/// A set of daemons.
pub struct Cluster;
