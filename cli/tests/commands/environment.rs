//! Variables, flags and what errors advise to set.

use std::process::Output;

use longshore_runtime::env;

use crate::support::{Bench, json_of, stderr};

fn run_with(bench: &Bench, variables: &[(&str, &str)], args: &[&str]) -> Output {
    bench.command(args).envs(variables.iter().copied()).output().unwrap()
}

#[test]
fn empty_variables_are_as_good_as_unset() {
    let bench = Bench::new();
    let kept = [env::CACHE_DIR, env::SOCKET_DIR];
    let empty: Vec<(&str, &str)> =
        env::ALL.iter().map(|(name, _)| (*name, "")).filter(|(name, _)| !kept.contains(name)).collect();
    let standard = [("HF_ENDPOINT", ""), ("HF_TOKEN", ""), ("AWS_ENDPOINT_URL", ""), ("AWS_REGION", "")];
    let variables: Vec<_> = empty.into_iter().chain(standard).collect();
    assert_eq!(json_of(&run_with(&bench, &variables, &["load", "model", "--json"]))["tensors"], 2);
    // A variable that is empty keeps no flag from its way to a private loader.
    let folder = bench.path("own");
    let folder = folder.to_str().unwrap();
    let args = ["exec", "--model", "model", "--cache-dir", folder, "--", "true"];
    let output = run_with(&bench, &[(env::CACHE_DIR, ""), (env::LOG_LEVEL, "")], &args);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(bench.path("own").is_dir());
    let home = bench.path("tmp");
    let variables = [(env::CACHE_DIR, ""), ("XDG_CACHE_HOME", home.to_str().unwrap())];
    json_of(&run_with(&bench, &variables, &["load", "model", "--json"]));
    assert!(home.join("longshore").is_dir(), "the user's cache folder is the default");
}

#[test]
fn a_flag_wins_over_a_variable_that_it_contradicts() {
    let bench = Bench::new();
    let variables = [(env::LOADER, "unix:///nonexistent/loader.sock")];
    let loaded = json_of(&run_with(&bench, &variables, &["load", "model", "--embedded", "--json"]));
    assert_eq!(loaded["loader"], "embedded");
    let both = bench.run(&["load", "model", "--embedded", "--loader", "h:1"]);
    assert_eq!(both.status.code(), Some(2));
    assert!(stderr(&both).contains("cannot be used with"), "{}", stderr(&both));
}

#[test]
fn the_advice_names_flags_of_the_command() {
    let bench = Bench::new();
    std::fs::write(bench.path("file"), "").unwrap();
    let load = stderr(&bench.run(&["load", "model", "--cache-dir", "file"]));
    assert!(load.contains("--cache-dir") && !load.contains("--memory-only"), "{load}");
    let any = "127.0.0.1:0";
    let listen = ["--data-listen", any, "--control-listen", any, "--ops-listen", any];
    let worker = stderr(&bench.run(&[&["worker", "--cache-dir", "file"], &listen[..]].concat()));
    assert!(worker.contains("--cache-dir") && worker.contains("--memory-only"), "{worker}");
}
