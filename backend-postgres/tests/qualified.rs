//! Every function and every cast of a statement names its schema, or runs under a fixed `search_path`: else a role that
//! may create functions could have its own run as another. `search_path.rs` proves it on a server for the steps that
//! it takes; this looks at the text of all.

#![allow(clippy::unwrap_used)] // A file that cannot be read has to fail.

use std::path::Path;

/// What PostgreSQL's grammar itself knows, whatever the path.
const GRAMMAR: [&str; 9] = [
    "bigint", "boolean", "coalesce", "double", "greatest", "integer", "interval", "least", "nullif",
];

const FIXED: &str = "SET search_path = pg_catalog, pg_temp";

fn files(folder: &str, ending: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|it| it == ending) {
            let text = std::fs::read_to_string(&path).unwrap();
            files.push((path.display().to_string(), text));
        }
    }
    assert!(!files.is_empty(), "no .{ending} in {}", folder.display());
    files
}

/// The functions that `text` creates and that do not set their path: their names. The body of one with `RETURN` is
/// parsed when it is created, under the path of the migration.
fn unfixed(text: &str) -> Vec<String> {
    let text = text.replace("CREATE OR REPLACE FUNCTION", "CREATE FUNCTION");
    let created = text.split("CREATE FUNCTION ").skip(1);
    let unfixed = created.filter(|function| {
        let head = function.split_once("AS $$").map(|(head, _)| head);
        match head {
            Some(head) => !head.contains(FIXED),
            None => !function.contains("\n    RETURN "),
        }
    });
    unfixed
        .map(|function| function.split('(').next().unwrap().to_owned())
        .collect()
}

/// The string literals of a Rust source, before its tests.
fn literals(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]").next().unwrap();
    let code: Vec<&str> = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let code = code.join("\n");
    let (mut literals, mut inside, mut chars) = (Vec::new(), None::<String>, code.chars());
    while let Some(char) = chars.next() {
        match (&mut inside, char) {
            (None, '"') => inside = Some(String::new()),
            (None, '\\') => drop(chars.next()),
            (None, _) => {}
            (Some(literal), '\\') => {
                if let Some(escaped) = chars.next().filter(|it| !it.is_whitespace()) {
                    literal.push(escaped);
                }
            }
            (Some(_), '"') => literals.extend(inside.take()),
            (Some(literal), other) => literal.push(other),
        }
    }
    literals
}

/// The functions that a statement calls, and the types that it casts to, without their schema.
fn unqualified(statement: &str) -> Vec<String> {
    let is_name = |it: char| it.is_ascii_alphanumeric() || it == '_' || it == '.';
    let mut found = Vec::new();
    for (at, _) in statement.match_indices('(') {
        let before = &statement[..at];
        let name = &before[before.rfind(|it| !is_name(it)).map_or(0, |end| end + 1)..];
        let alias = before[..at - name.len()].ends_with("AS ");
        let known = name.contains('.') || GRAMMAR.contains(&name);
        if !name.is_empty() && !known && !alias && name != name.to_ascii_uppercase() {
            found.push(name.to_owned());
        }
    }
    for (at, cast) in statement.match_indices("::") {
        let rest = &statement[at + cast.len()..];
        let name = &rest[..rest.find(|it| !is_name(it)).unwrap_or(rest.len())];
        if !name.contains('.') && !GRAMMAR.contains(&name) {
            found.push(format!("::{name}"));
        }
    }
    found
}

#[test]
fn functions_of_the_migrations_fix_their_path() {
    for (file, text) in files("migrations/functions", "sql") {
        assert_eq!(unfixed(&text), Vec::<String>::new(), "{file}");
    }
    let migration = tenure_postgres::migration();
    let (first, rest) = migration.split_once('\n').unwrap();
    assert_eq!(unqualified(first), Vec::<String>::new());
    assert!(rest.starts_with(FIXED));
}

#[test]
fn functions_of_the_documents_fix_their_path() {
    for (file, text) in files("../docs", "md").into_iter().chain(files("..", "md")) {
        assert_eq!(unfixed(&text), Vec::<String>::new(), "{file}");
    }
}

#[test]
fn statements_name_the_schema_of_what_they_use() {
    let mut statements = 0;
    for (file, source) in files("src", "rs") {
        let sql = |it: &String| {
            ["SELECT ", "WITH ", "INSERT "]
                .iter()
                .any(|verb| it.starts_with(verb))
        };
        for statement in literals(&source).into_iter().filter(sql) {
            statements += 1;
            assert_eq!(
                unqualified(&statement),
                Vec::<String>::new(),
                "{file}: {statement}"
            );
        }
    }
    assert!(statements > 40, "only {statements} statements were found");
}

#[test]
fn what_is_unqualified_is_found() {
    assert_eq!(
        unqualified("SELECT now(), pg_catalog.now(), $1::text, 0::bigint, $1::pg_catalog.text"),
        ["now", "::text"]
    );
    assert_eq!(
        unqualified(
            "SELECT n.a FROM pg_catalog.unnest($1::bigint[]) AS n(a) WHERE NOT EXISTS (SELECT)"
        ),
        Vec::<String>::new()
    );
    let bad = "CREATE FUNCTION a(b text) RETURNS void LANGUAGE sql AS $$ SELECT now() $$;";
    assert_eq!(unfixed(bad), ["a"]);
    assert_eq!(
        literals("a(\"SELECT \\\n   1\"); // \"x\"\n"),
        ["SELECT    1", "x"]
    );
}
