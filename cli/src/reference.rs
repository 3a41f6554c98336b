//! The reference page: settings, exit codes and metrics, each from the code that has them.

use std::fmt::Write;

use longshore_runtime::config;
use longshore_runtime::metrics::{Description, Metrics};
use longshore_types::{Code, Result};

use crate::args;

/// The page as Markdown.
///
/// # Errors
/// [`Code::Internal`] when metrics clash: a defect.
pub fn page() -> Result<String> {
    let mut text = String::from("# Reference\n\nWritten by `make reference` from the binary itself.\n\n");
    text.push_str(&config::reference(&args::command()));
    text.push_str(
        "\n## Exit codes\n\n0 is success. The same codes travel over gRPC and name the Python exceptions.\n\n",
    );
    text.push_str("| exit | code |\n|---|---|\n");
    for code in Code::ALL {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "| {} | `{code}` |", code.exit_code());
    }
    let worker = Metrics::for_process("longshore_worker", env!("CARGO_PKG_VERSION"))?;
    longshore_worker::metrics::Metrics::new(&worker)?;
    metrics(&mut text, "the worker", &worker.describe());
    metrics(&mut text, "the loader", &longshore_loader::metrics::Metrics::new()?.registry().describe());
    Ok(text)
}

fn metrics(text: &mut String, whose: &str, all: &[Description]) {
    let _ = writeln!(text, "\n## Metrics of {whose}\n\n| metric | labels | meaning |\n|---|---|---|");
    for Description { name, help, labels } in all {
        let _ = writeln!(text, "| `{name}` | {} | {help} |", labels.join(", "));
    }
}
