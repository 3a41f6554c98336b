//! longshore-worker
