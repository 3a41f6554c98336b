//! longshore-benches
