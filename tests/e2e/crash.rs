//! A kill or a fault can strike a save anywhere. Each test is a row of the crash matrix: the real process is killed by
//! SIGKILL at a named point, or something breaks, and then: a checkpoint is whole or not there at all, what was acknowledged
//! holds, and what was sent is not sent again but for one part a stream.

mod disk;
mod durable;
mod origin;
mod ranks;
mod site;
mod slabs;
mod trainer;
mod upload;
mod visible;

/// The Rust files below a folder of the workspace, as one text.
fn source_of(folder: &str) -> String {
    fn read(folder: &std::path::Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, text);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut text = String::new();
    read(&root.join(folder), &mut text);
    text
}

#[test]
fn crash_points_all_have_a_test() {
    let product = source_of("crates/checkpoint/src");
    // Every kill is a test of its own, but for those amid a recovery.
    let tests = source_of("tests/e2e/crash") + include_str!("recover.rs");
    let points: std::collections::BTreeSet<&str> =
        product.split("failpoint::hit(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(points.len() >= 20, "{points:?}");
    for point in points {
        let is_used = [format!("\"{point}\""), format!("\"{point}@")].iter().any(|used| tests.contains(used.as_str()));
        assert!(is_used, "no test kills at {point}");
    }
}
