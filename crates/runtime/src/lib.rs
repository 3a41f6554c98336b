//! longshore-runtime
