//! longshore-loader
