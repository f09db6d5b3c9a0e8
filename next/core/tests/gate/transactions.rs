//! Comparisons of transactions, and the texts of their parts.

use tenure_core::{Compare, Op, StmEntry};

#[test]
fn comparison_holds_by_value_and_numbers() {
    let entry = StmEntry::new(*b"m", 3, 5, 2);
    for (compare, holds) in [
        (Compare::value("k").eq("m"), true),
        (Compare::value("k").eq("mm"), false),
        (Compare::value("k").ne("n"), true),
        (Compare::value("k").lt("n"), true),
        (Compare::value("k").lt("m"), false),
        (Compare::value("k").gt("a"), true),
        (Compare::version("k").eq(2), true),
        (Compare::create("k").lt(4), true),
        (Compare::create("k").eq(5), false),
        (Compare::modified("k").gt(4), true),
        (Compare::modified("k").gt(5), false),
    ] {
        assert_eq!(compare.holds(Some(&entry)), holds, "{compare:?}");
    }
}

#[test]
fn absent_key_counts_as_zero_and_has_no_value() {
    for compare in [
        Compare::value("k").eq(""),
        Compare::value("k").ne("x"),
        Compare::value("k").lt("x"),
        Compare::value("k").gt(""),
        Compare::version("k").gt(0),
    ] {
        assert!(!compare.holds(None), "{compare:?}");
    }
    for compare in [
        Compare::version("k").eq(0),
        Compare::create("k").eq(0),
        Compare::modified("k").lt(1),
    ] {
        assert!(compare.holds(None), "{compare:?}");
    }
}

#[test]
fn debug_text_has_no_payload() {
    let entry = StmEntry::new(*b"canary", 3, 5, 2);
    let text = format!(
        "{:?} {:?} {entry:?}",
        Compare::value("k").eq("canary"),
        Op::put("k", "canary")
    );
    assert!(
        text.contains("6 bytes") && !text.contains("canary") && !text.contains("99"),
        "{text}"
    );
}
