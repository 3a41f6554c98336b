//! longshore-cluster
