//! One token that SIGTERM and SIGINT cancel. A second signal ends the process at once.

use longshore_types::{Code, Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that the first SIGTERM or SIGINT cancels. Call it once, inside the tokio runtime.
///
/// A second signal exits with 128 + its number: the way out for who does not want to wait for the drain.
///
/// # Errors
/// [`Code::Internal`] when the handlers cannot be installed.
pub fn token() -> Result<CancellationToken> {
    let failed = |error: std::io::Error| {
        Error::new(Code::Internal, format!("cannot install signal handlers: {error}")).with_source(error)
    };
    let terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let token = CancellationToken::new();
    tokio::spawn(watch(terminate, interrupt, token.clone()));
    Ok(token)
}

async fn watch(mut terminate: Signal, mut interrupt: Signal, token: CancellationToken) {
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => ("SIGTERM", 128 + 15),
            _ = interrupt.recv() => ("SIGINT", 128 + 2),
        }
    };
    let (signal, _) = next().await;
    tracing::info!(signal, "shutting down; a second signal ends the process at once");
    token.cancel();
    let (_, exit_code) = next().await;
    std::process::exit(exit_code);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs one of the ignored tests below in a process of its own, because signals go to a whole process.
    fn child(test: &str) -> std::process::Output {
        let this = std::env::current_exe().unwrap();
        Command::new(this).args(["--exact", test, "--ignored", "--nocapture"]).output().unwrap()
    }

    fn signal_self(name: &str) {
        let status =
            Command::new("kill").args([&format!("-{name}"), &std::process::id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    #[test]
    fn the_first_signal_cancels_and_the_second_exits() {
        let output = child("shutdown::tests::two_signals");
        assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(String::from_utf8_lossy(&output.stdout).contains("cancelled by the first"));
    }

    #[tokio::test]
    #[ignore = "run by the_first_signal_cancels_and_the_second_exits"]
    async fn two_signals() {
        let token = token().unwrap();
        assert!(!token.is_cancelled());
        signal_self("TERM");
        token.cancelled().await;
        println!("cancelled by the first");
        signal_self("INT");
        std::future::pending::<()>().await;
    }
}
