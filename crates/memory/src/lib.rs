//! longshore-memory
