//! longshore-testkit
