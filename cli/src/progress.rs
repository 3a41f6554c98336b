//! Progress on stderr: a bar on a terminal, now and then a plain line elsewhere, nothing with `--json` in a pipe.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use longshore_types::format_bytes;

use crate::output::Output;

/// Plain lines are no closer together than this.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
const TEMPLATE: &str = "{msg:10} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";

/// Shows how far something is.
#[derive(Debug)]
pub struct Progress {
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    Nothing,
    Bar(ProgressBar),
    Lines { last: Instant },
}

impl Progress {
    /// For this terminal, or the lack of one.
    pub fn new(output: Output) -> Self {
        let shown = match std::io::stderr().is_terminal() {
            true => Shown::Bar(bar()),
            false if output.json => Shown::Nothing,
            false => Shown::Lines { last: Instant::now() },
        };
        Progress { shown }
    }

    /// `done` of `total` bytes in `step`; a total of 0 is not known yet.
    pub fn update(&mut self, step: &str, done_bytes: u64, total_bytes: u64) {
        match &mut self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                bar.set_message(step.to_owned());
                match total_bytes {
                    0 => bar.unset_length(),
                    total => bar.set_length(total),
                }
                bar.set_position(done_bytes.min(total_bytes));
            }
            Shown::Lines { last } => {
                if last.elapsed() < LINE_INTERVAL || total_bytes == 0 {
                    return;
                }
                *last = Instant::now();
                let (done, total) = (format_bytes(done_bytes), format_bytes(total_bytes));
                // A line that cannot be shown is no reason to stop.
                let _ = writeln!(std::io::stderr(), "{step}: {done} of {total}");
            }
        }
    }

    /// Shows a line beside the progress; nothing with `--json` in a pipe.
    pub fn line(&self, line: &str) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.println(line),
            // A line that cannot be shown is no reason to stop.
            Shown::Lines { .. } => drop(writeln!(std::io::stderr(), "{line}")),
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Shown::Bar(bar) = self.shown {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10)).with_style(style)
}
