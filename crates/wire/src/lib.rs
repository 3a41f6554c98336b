//! longshore-wire
