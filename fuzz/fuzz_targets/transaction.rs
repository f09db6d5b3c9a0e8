#![no_main]
//! The text of a transaction, as `tenure txn` reads it: no panic, and each refusal names its line.

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../cli/src/script.rs"]
mod script;
#[allow(dead_code)]
#[path = "../../cli/src/words.rs"]
mod words;

fuzz_target!(|text: &[u8]| {
    match script::parse(text) {
        Ok(read) => assert!(read.compares.len() + read.then.len() + read.or_else.len() > 0),
        Err(why) => assert!(
            why.starts_with("line ") || why.starts_with("the transaction is empty"),
            "{why}"
        ),
    }
});
