use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::*;

#[derive(Debug, Parser)]
#[command(name = "thing")]
struct Cli {
    #[command(flatten)]
    config: ConfigArgs,
    /// Speak more
    #[arg(long, global = true, env = "LONGSHORE_TEST_CONFIG_LOUDNESS", default_value_t = 1)]
    loudness: u32,
    #[command(subcommand)]
    command: Sub,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Serve things
    Serve(Serve),
    Fetch(Fetch),
}

#[derive(Debug, Args)]
struct Serve {
    /// Bytes | of memory
    #[arg(long, env = "LONGSHORE_TEST_CONFIG_MEMORY", default_value = "1 GiB")]
    memory_bytes: String,
    #[arg(long)]
    cache_dir: PathBuf,
    #[arg(long, value_delimiter = ',', env = "LONGSHORE_TEST_CONFIG_WORKERS")]
    workers: Vec<String>,
    #[arg(long, hide_env_values = true, env = "LONGSHORE_TEST_CONFIG_TOKEN")]
    token: Option<String>,
    #[arg(long)]
    fsync: bool,
}

#[derive(Debug, Args)]
struct Fetch {
    uri: String,
    #[arg(long, default_value = "nowhere")]
    cache_dir: PathBuf,
}

fn parsed(file: &str, args: &[&str]) -> Result<Parsed, ParseError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, file).unwrap();
    let mut all: Vec<OsString> = vec!["thing".into(), "--config".into(), path.into()];
    all.extend(args.iter().map(OsString::from));
    parse(Cli::command(), all)
}

fn serve(file: &str, args: &[&str]) -> Serve {
    let parsed = parsed(file, args).unwrap();
    match Cli::from_arg_matches(&parsed.matches).unwrap().command {
        Sub::Serve(serve) => serve,
        Sub::Fetch(_) => panic!("not serve"),
    }
}

fn refused(file: &str) -> Error {
    match parsed(file, &["serve"]) {
        Err(ParseError::Config(error)) => error,
        other => panic!("{other:?}"),
    }
}

const FILE: &str = r#"
cache_dir = "/common"
loudness = 4
[serve]
memory_bytes = "2 GiB"
cache-dir = "/own"
workers = ["a:1", "b:1"]
fsync = true
"#;

#[test]
fn file_values_are_defaults_and_flags_win() {
    let from_file = serve(FILE, &["serve"]);
    assert_eq!(from_file.memory_bytes, "2 GiB");
    assert_eq!(from_file.cache_dir, Path::new("/own"), "the table wins over the common key, and satisfies 'required'");
    assert_eq!(from_file.workers, ["a:1", "b:1"]);
    assert!(from_file.fsync);
    let flagged = serve(FILE, &["serve", "--memory-bytes", "3 GiB", "--workers", "c:1,d:1"]);
    assert_eq!((flagged.memory_bytes.as_str(), flagged.workers.len()), ("3 GiB", 2));
    assert_eq!(flagged.workers, ["c:1", "d:1"], "a flag replaces the file's list");
}

#[test]
fn a_common_key_reaches_every_command_that_knows_it() {
    let parsed = parsed(FILE, &["fetch", "s3://b/m"]).unwrap();
    let cli = Cli::from_arg_matches(&parsed.matches).unwrap();
    assert_eq!(cli.loudness, 4);
    assert!(matches!(cli.command, Sub::Fetch(fetch) if fetch.cache_dir == Path::new("/common")));
}

#[test]
fn the_environment_stands_between_file_and_flag() {
    run_child("child_of_the_environment_test", &[("LONGSHORE_TEST_CONFIG_MEMORY", "7 GiB")]);
}

/// A child with the variables set runs another test, so that this process's environment stays as it is.
fn run_child(test: &str, variables: &[(&str, &str)]) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("config::tests::{test}"), "--ignored"])
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
}

#[test]
#[ignore = "run by the_environment_stands_between_file_and_flag"]
fn child_of_the_environment_test() {
    assert_eq!(serve(FILE, &["serve"]).memory_bytes, "7 GiB");
    assert_eq!(serve(FILE, &["serve", "--memory-bytes", "8 GiB"]).memory_bytes, "8 GiB");
}

#[test]
fn an_empty_variable_is_as_good_as_unset() {
    let names = ["MEMORY", "LOUDNESS", "TOKEN", "WORKERS", "CACHE_DIR"].map(|n| format!("LONGSHORE_TEST_CONFIG_{n}"));
    run_child("child_of_the_empty_variable_test", &names.each_ref().map(|name| (name.as_str(), "")));
}

#[test]
#[ignore = "run by an_empty_variable_is_as_good_as_unset"]
fn child_of_the_empty_variable_test() {
    let serve_of = |parsed: &Parsed| match Cli::from_arg_matches(&parsed.matches).unwrap().command {
        Sub::Serve(serve) => serve,
        Sub::Fetch(_) => panic!("not serve"),
    };
    let bare = parse(Cli::command(), ["thing", "serve", "--cache-dir", "/c"].map(OsString::from).to_vec()).unwrap();
    let serve_bare = serve_of(&bare);
    assert_eq!((serve_bare.memory_bytes.as_str(), serve_bare.token.is_none()), ("1 GiB", true));
    assert!(serve_bare.workers.is_empty());
    assert_eq!(Cli::from_arg_matches(&bare.matches).unwrap().loudness, 1, "also for arguments of all commands");
    assert_eq!(serve(FILE, &["serve"]).memory_bytes, "2 GiB", "the file counts");
    assert_eq!(serve(FILE, &["serve"]).workers, ["a:1", "b:1"]);
    let has_variable = |arg: &clap::Arg| arg.get_env().is_some_and(|name| name == "LONGSHORE_TEST_CONFIG_MEMORY");
    assert!(bare.command.find_subcommand("serve").unwrap().get_arguments().any(has_variable), "it keeps its name");
}

#[test]
fn unknown_keys_and_malformed_files_are_named() {
    for (file, named) in [
        ("memory_byte = 1", "memory_byte"),
        ("[serve]\nuri = 'x'", "uri"),
        ("[server]\nfsync = true", "[server]"),
        ("[serve]\nworkers = [[1]]", "serve.workers"),
        ("[serve\n", "not valid TOML"),
        ("config = 'x'", "config"),
    ] {
        let error = refused(file);
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains(named) && error.message().contains("config.toml"), "{error}");
    }
    let absent = parse(Cli::command(), ["thing", "--config=/nonexistent/x.toml", "serve"].map(OsString::from).to_vec());
    assert!(matches!(absent, Err(ParseError::Config(error)) if error.code() == Code::NotFound));
}

#[test]
fn wrong_values_in_the_file_are_refused_by_the_flags_parser() {
    assert!(matches!(parsed("loudness = 'very'", &["fetch", "x"]), Err(ParseError::Usage(_))));
}

#[test]
fn the_file_is_found_before_the_double_dash_only() {
    let args = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
    assert_eq!(find(&args(&["x", "exec", "--", "--config", "f"]), None), None);
    assert_eq!(find(&args(&["x", "--config=f", "exec"]), Some("g".into())), Some("f".into()));
    assert_eq!(find(&args(&["x"]), Some("g".into())), Some("g".into()));
    assert_eq!(find(&args(&["x"]), Some("".into())), None);
}

#[test]
fn the_effective_configuration_loads_again_and_hides_secrets() {
    let first = parsed(FILE, &["serve", "--token", "hunter2"]).unwrap();
    let text = effective(&first);
    assert!(!text.contains("hunter2") && text.contains("token = \"***\"  # flag"), "{text}");
    assert!(text.contains("workers = [\"a:1\", \"b:1\"]  # default or file"), "{text}");
    let again = serve(&text, &["serve"]);
    assert_eq!((again.memory_bytes.as_str(), again.fsync, again.workers.len()), ("2 GiB", true, 2));
    assert!(text.contains("loudness = 4"), "{text}");
}

#[test]
fn the_reference_lists_every_setting() {
    let text = reference(&Cli::command());
    assert!(
        text.contains(
            "| `memory_bytes` | `--memory-bytes` | `LONGSHORE_TEST_CONFIG_MEMORY` | `1 GiB` | Bytes \\| of memory |"
        ),
        "{text}"
    );
    assert!(text.contains("## `thing serve`") && text.contains("| `LONGSHORE_CACHE_DIR` |"), "{text}");
}
