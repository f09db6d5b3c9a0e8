//! What docs/your-own-backend.md gives to copy is what the example needs, and what its tests say.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

const PAGE: &str = include_str!("../../docs/your-own-backend.md");

/// The first block of the page in this language.
fn block(language: &str) -> &'static str {
    let mut blocks = PAGE.split("```").skip(1).step_by(2);
    let block = blocks.find_map(|block| block.strip_prefix(language));
    block.unwrap()
}

/// The names under a heading of a manifest.
fn dependencies<'a>(manifest: &'a str, heading: &str) -> Vec<&'a str> {
    let under = manifest.lines().skip_while(|line| *line != heading).skip(1);
    let under = under.take_while(|line| !line.starts_with('['));
    let name = |line: &'a str| line.split(['.', ' ', '=']).next();
    let named = under.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut names: Vec<_> = named.filter_map(name).collect();
    names.sort_unstable();
    names
}

/// What is not there, as the macro has it.
fn without(test: &str) -> Vec<&str> {
    let list = test.split("without: [").nth(1).unwrap();
    let lines = list.split(']').next().unwrap().lines();
    let lines = lines.filter_map(|line| line.split("//").next());
    let words = lines.flat_map(|line| line.split(','));
    words
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .collect()
}

#[test]
fn the_manifest_has_what_the_example_needs() {
    let ours = include_str!("../Cargo.toml");
    for heading in ["[dependencies]", "[dev-dependencies]"] {
        let names = dependencies(ours, heading);
        assert!(names.len() > 2, "{names:?}");
        assert_eq!(dependencies(block("toml"), heading), names, "{heading}");
    }
}

#[test]
fn the_test_leaves_out_what_the_example_does_not_have() {
    let ours = without(include_str!("conformance.rs"));
    assert!(ours.len() > 9, "{ours:?}");
    assert_eq!(without(block("rust,ignore")), ours);
}
