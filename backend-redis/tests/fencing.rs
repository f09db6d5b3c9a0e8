//! What docs/fencing.md offers to a resource that is kept in Redis does what it says.

use tenure_testbed::RedisServer;

/// The script between the marks of the page.
fn script() -> &'static str {
    include_str!("../../docs/fencing.md")
        .split("```lua\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("a script in docs/fencing.md")
}

#[test]
fn an_older_token_is_refused_at_the_resource() {
    let server = RedisServer::start().unwrap();
    let write = |token: u64, value: &str| {
        let token = token.to_string();
        let call = ["EVAL", script(), "2", "v", "v:token", &token, value];
        server.command(&call).unwrap().trim() == "1"
    };
    let value = || server.command(&["GET", "v"]).unwrap().trim().to_owned();
    let now = 1_795_278_906_814_628;
    assert!(write(now, "a") && write(now, "b"), "a holder writes on");
    assert!(write(now + 1, "c"));
    assert!(!write(now, "late"), "an older token");
    assert_eq!(value(), "c");
    // The control: without the token's check the late one gets through.
    server.command(&["SET", "v", "late"]).unwrap();
    assert_eq!(value(), "late");
    // The greatest tokens there are.
    assert!(write((1 << 53) - 1, "z") && !write((1 << 53) - 2, "y"));
}
