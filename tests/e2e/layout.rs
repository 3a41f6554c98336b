//! The rules of the workspace: who may import whom, and where unsafe code may be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Crates in which unsafe code may be.
const UNSAFE_CRATES: [&str; 3] = ["longshore-memory", "longshore-device", "longshore-fakecuda"];
/// Crates that are not part of the product.
const OUTSIDE: [&str; 4] = ["longshore-tests", "longshore-benches", "longshore-testkit", "longshore-fakecuda"];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn metadata() -> Metadata {
    let manifest = workspace().join("Cargo.toml");
    let mut command = MetadataCommand::new();
    command.manifest_path(manifest).no_deps().other_options(["--offline".to_owned()]);
    command.exec().unwrap()
}

/// Names of what each crate imports, but not for its tests.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let packages = metadata().packages.into_iter();
    packages
        .map(|package| {
            let imported =
                package.dependencies.iter().filter(|dependency| dependency.kind != DependencyKind::Development);
            (package.name.to_string(), imported.map(|dependency| dependency.name.clone()).collect())
        })
        .collect()
}

fn ours(imports: &BTreeSet<String>) -> BTreeSet<&str> {
    imports.iter().map(String::as_str).filter(|name| name.starts_with("longshore-")).collect()
}

#[test]
fn loader_and_worker_never_import_each_other_and_only_the_command_line_knows_both() {
    for (name, imported) in imports() {
        let imported = ours(&imported);
        let both = imported.contains("longshore-worker") && imported.contains("longshore-loader");
        assert!(!both || name == "longshore-cli" || OUTSIDE.contains(&&*name), "{name} imports loader and worker");
        if name == "longshore-worker" || name == "longshore-loader" {
            let other = imported.iter().find(|other| ["longshore-worker", "longshore-loader"].contains(other));
            assert_eq!(other, None, "{name} imports it");
        }
    }
}

#[test]
fn types_know_nobody_and_crates_know_no_daemon() {
    let all = imports();
    assert_eq!(ours(&all["longshore-types"]), BTreeSet::new());
    assert_eq!(ours(&all["longshore-proto"]), BTreeSet::from(["longshore-types"]));
    assert_eq!(ours(&all["longshore-memory"]), BTreeSet::from(["longshore-types"]));
    for name in ["checkpoint", "cluster", "device", "memory", "origin", "runtime", "types", "wire"] {
        let imported = ours(&all[&format!("longshore-{name}")]);
        let daemons = ["longshore-worker", "longshore-loader", "longshore-cli", "longshore-proto"];
        assert!(daemons.iter().all(|daemon| !imported.contains(daemon)), "{name} imports {imported:?}");
    }
}

#[test]
fn what_is_for_tests_is_not_shipped_and_stores_and_cards_are_opened_in_one_place() {
    for (name, imported) in imports() {
        for development_only in ["longshore-testkit", "longshore-fakecuda"] {
            assert!(
                !imported.contains(development_only) || OUTSIDE.contains(&&*name),
                "{name} ships {development_only}"
            );
        }
        assert!(!imported.contains("object_store") || name == "longshore-origin", "{name} opens stores");
        assert!(!imported.contains("cudarc") || name == "longshore-device", "{name} calls CUDA");
        assert!(!imported.contains("hashring") || name == "longshore-cluster", "{name} has a ring of its own");
    }
}

#[test]
fn the_fake_driver_knows_nobody_and_only_the_testkit_knows_it() {
    let all = imports();
    assert_eq!(ours(&all["longshore-fakecuda"]), BTreeSet::new());
    let knows_it = |imported: &BTreeSet<String>| imported.contains("longshore-fakecuda");
    let importers: Vec<&String> = all.iter().filter(|(_, imported)| knows_it(imported)).map(|(name, _)| name).collect();
    assert_eq!(importers, ["longshore-testkit"]);
}

#[test]
fn every_crate_takes_its_lints_from_the_workspace_or_is_one_of_those_that_may_be_unsafe() {
    let root = std::fs::read_to_string(workspace().join("Cargo.toml")).unwrap();
    assert!(root.contains("unsafe_code = \"forbid\""));
    for package in metadata().packages {
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap();
        if !UNSAFE_CRATES.contains(&package.name.as_str()) {
            assert!(manifest.contains("[lints]\nworkspace = true"), "{} sets lints of its own", package.name);
        }
    }
}

#[test]
fn unsafe_code_is_only_where_it_may_be() {
    let mut seen = 0;
    for package in metadata().packages {
        let folder = package.manifest_path.parent().unwrap();
        for file in rust_files(folder.as_std_path()) {
            seen += 1;
            let code = without_comments_and_strings(&std::fs::read_to_string(&file).unwrap());
            let mut words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
            let found = words.any(|word| word == "unsafe");
            let allowed = UNSAFE_CRATES.contains(&package.name.as_str());
            assert!(!found || allowed, "unsafe code in {}", file.display());
        }
    }
    assert!(seen > 50, "only {seen} files were looked at");
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    files
}

/// Good enough for code that is formatted: a text that spans lines may hide code, but never the other way round.
fn without_comments_and_strings(code: &str) -> String {
    let mut out = String::new();
    for line in code.lines() {
        let mut in_text = false;
        let mut previous = ' ';
        for (at, c) in line.char_indices() {
            match c {
                '/' if !in_text && line[at..].starts_with("//") => break,
                '"' if previous != '\\' && previous != '\'' => in_text = !in_text,
                c if !in_text => out.push(c),
                _ => {}
            }
            previous = c;
        }
        out.push('\n');
    }
    out
}

#[test]
fn the_scanner_finds_code_and_passes_over_words() {
    let code = |text| without_comments_and_strings(text).contains("unsafe");
    assert!(code("let x = unsafe { y() }; // fine"));
    assert!(!code("// unsafe { }\nlet x = \"unsafe { }\";"));
    assert!(code("let c = '\"'; unsafe { y() }"));
}
