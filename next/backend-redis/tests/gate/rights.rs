//! The least rights of a user.

use tenure_core::backend::Backend;
use tenure_core::{ErrorKind, FencingToken, Namespace};
use tenure_redis::{RedisBackend, acl_rules, remove_namespace};
use tenure_testbed::{RedisOptions, RedisServer, shared_redis, unique_name};

use crate::connection::{config, connect};

/// Adds a user with the rules for `namespace` and these more to the shared server; returns the URL.
fn user(namespace: &str, more: &str) -> String {
    let (shared, user) = (shared_redis().unwrap(), unique_name("user"));
    let rules = acl_rules(&Namespace::new(namespace).unwrap());
    shared
        .admin()
        .set_user(&user, &format!("reset on >secret {rules} {more}"))
        .unwrap();
    let address = shared.url().rsplit_once(['@', '/']).unwrap().1;
    format!("redis://{user}:secret@{address}/0?namespace={namespace}")
}

#[tokio::test]
async fn user_with_the_rules_connects_and_acts() {
    let backend = connect(&user(&unique_name("ns"), "")).await.unwrap();
    backend.raise_token_floor(FencingToken::new(1)).await.unwrap();
    backend.guarantees().await.unwrap();
}

#[tokio::test]
async fn user_with_the_rules_of_another_namespace_is_refused() {
    let url = user("mine", "");
    let refused = connect(&url.replace("namespace=mine", "namespace=other"))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized, "{}", refused.chain());
}

/// The server names the line of a script, and not the command.
#[tokio::test]
async fn refusal_inside_a_script_names_the_command() {
    let refused = connect(&user(&unique_name("ns"), "-time")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized);
    assert!(!refused.is_retryable());
    assert!(refused.message().contains("`time`"), "{}", refused.chain());
}

#[tokio::test]
async fn refusal_of_a_command_names_it() {
    let refused = connect(&user(&unique_name("ns"), "-eval")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized);
    assert!(refused.chain().to_string().contains("'eval'"), "{}", refused.chain());
}

/// A server that does not show its settings counts as the weakest.
#[tokio::test]
async fn user_without_info_gets_the_weakest_guarantees() {
    let backend = connect(&user(&unique_name("ns"), "-info")).await.unwrap();
    let guarantees = backend.guarantees().await.unwrap();
    assert!(
        guarantees.deployment.contains("persistence unknown"),
        "{}",
        guarantees.deployment
    );
    assert!(
        guarantees.durability.reason.contains("`info`"),
        "{}",
        guarantees.durability.reason
    );
}

#[test]
fn rules_show_no_passwords_and_match_the_namespace_alone() {
    let rules = acl_rules(&Namespace::new("a*b c").unwrap());
    for right in ["config", "acl", "@", "debug", "monitor", "function"] {
        assert!(!rules.contains(&format!("+{right}")), "{right}: {rules}");
    }
    assert!(rules.contains(r"~{tenure/a\*b?c}/*"), "{rules}");
}

/// Redis names the line of what it refuses, and the rules list the literal names of the commands.
#[test]
fn scripts_have_one_literal_call_a_line() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/lua");
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let source = std::fs::read_to_string(&path).unwrap();
        for line in source.lines() {
            let line = line.split("--").next().unwrap();
            let calls = line.matches("redis.call").count() + line.matches("redis.pcall").count();
            let literal = line.matches("redis.call('").count() + line.matches("redis.pcall('").count();
            assert!(calls <= 1 && calls == literal, "{}: {line}", path.display());
        }
    }
}

#[tokio::test]
async fn removed_namespace_leaves_no_key_and_no_other_namespace_is_touched() {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    // One is the beginning of the other, and one has a character of patterns.
    for namespace in ["orders", "orders2", "ord*"] {
        let url = format!("{}?namespace={namespace}", server.url());
        let backend: RedisBackend = connect(&url).await.unwrap();
        backend.raise_token_floor(FencingToken::new(1)).await.unwrap();
    }
    let removed = |namespace| remove_namespace(config(&format!("{}?namespace={namespace}", server.url())));
    removed("ord*").await.unwrap();
    let keys = |namespace| server.admin().keys(&format!("{{tenure/{namespace}}}/*")).unwrap();
    assert_eq!(keys("ord\\*"), Vec::<String>::new());
    assert!(!keys("orders").is_empty() && !keys("orders2").is_empty());
    removed("orders").await.unwrap();
    assert_eq!(keys("orders"), Vec::<String>::new());
    assert!(!keys("orders2").is_empty());
}
