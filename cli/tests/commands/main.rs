//! The real binary, run as users run it.

mod daemons;
mod embedded;
mod private;
mod support;
