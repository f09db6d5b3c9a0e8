//! The suite on the server of the test run: every case that needs no server of its own. Those that wait for leases to end are in
//! the tier `full`, as are those that need a server: each of them has one of its own there, in `tests/conformance.rs`.

use tenure_conformance::{Need, Runner, Trial, trials};
use tenure_core::guarantees::Line;
use tenure_core::url::StoreUrl;
use tenure_redis::{RedisConfig, RedisSubject};
use tenure_testbed::shared_redis;

/// Trials that wait for a lease to end, although they silence no connection.
const EXPIRY: [&str; 7] = [
    "s1_kept_for_ttls",
    "s3_kept_when_answers_are_slow",
    "s4_detached_session_expires",
    "s4_detached_session_has_no_effect",
    "s4_nothing_is_valid_before_the_first_renewal",
    "l2_tokens_rise",
    "t4_unknown_outcome_is_reported",
];

fn is_of_the_gate(trial: &Trial) -> bool {
    let of_expiry = |line| matches!(line, Line::Expiry | Line::EarlyRelease | Line::LossSignal);
    !EXPIRY.contains(&trial.id)
        && trial.cases.iter().all(|case| {
            !case.wants_own_store() && !case.needs.contains(&Need::Silence) && !case.line.is_some_and(of_expiry)
        })
}

/// Several threads: the cases of a thread that the machine does not run would find their runtime blocked.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_case_that_needs_no_server_of_its_own_holds() {
    let url = StoreUrl::parse(shared_redis().unwrap().url()).unwrap();
    let subject = RedisSubject::on(RedisConfig::from_url(url).unwrap());
    let chosen: Vec<_> = trials().into_iter().filter(is_of_the_gate).collect();
    let count = chosen.len();
    let report = Runner::new().run_trials(&subject, chosen).await;
    // nextest shows this although the test passes.
    for (trial, why) in report.flaky() {
        println!("FLAKY {trial}: {why}");
    }
    println!("{count} trials, {}", report.summary());
    assert!(report.passed(), "{:#?}", report.failures());
    assert!(report.count("held") > 200, "{report}");
}
