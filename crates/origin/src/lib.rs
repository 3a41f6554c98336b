//! longshore-origin
