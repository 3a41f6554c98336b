//! longshore-device
