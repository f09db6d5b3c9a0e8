use crate::support::tenure;

#[test]
fn command_line_ends_with_the_code_of_its_mistake() {
    let cases: [(&[&str], i32, &str); 16] = [
        (&[], 64, "Usage"),
        (&["conquer"], 64, "conquer"),
        (&["guarantees", "--unknown"], 64, "--unknown"),
        (&["guarantees", "--url", "memory:", "--url", "memory:"], 64, "one --url"),
        (&["guarantees", "--url", "nonsense"], 78, "scheme"),
        (&["guarantees", "--url", "consul://h/x"], 78, "memory, etcd"),
        (&["guarantees", "--url", "etcd://u:canary@h:1/x"], 78, "feature `etcd`"),
        (&["guarantees", "--url", "memory:?tll=1s"], 78, "`tll`"),
        (&["conform", "--only", "no_such_*"], 64, "no case matches `no_such_*`"),
        (&["guarantees", "--url", "redis://u:canary@h:1?tll=1s"], 78, "`tll`"),
        (
            &["guarantees", "--url", "redis://u:canary@127.0.0.1:1"],
            69,
            "127.0.0.1:1",
        ),
        (&["conform", "--url", "memory:shared"], 78, "without a name"),
        (&["conform", "--url", "redis://u:canary@127.0.0.1:1"], 69, "127.0.0.1:1"),
        (&["conform", "--url", "redis://u:canary@127.0.0.1"], 78, "host:port"),
        (
            &["conform", "--url", "redis+sentinel://u:canary@127.0.0.1:1"],
            78,
            "name of the service",
        ),
        (
            &["conform", "--only", "l1_*", "--out", "/no/such/folder/x"],
            70,
            "/no/such/folder/x",
        ),
    ];
    for (args, code, said) in cases {
        let ended = tenure(args);
        assert_eq!(ended.code, Some(code), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(said), "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{args:?}");
        assert!(!ended.stderr.contains("canary"), "{args:?}");
    }
}

#[test]
fn help_and_version_are_printed_on_stdout() {
    let help = tenure(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
    for word in ["conform", "guarantees", "Exit codes", "69", "memory:"] {
        assert!(help.stdout.contains(word), "{word}: {}", help.stdout);
    }
    let version = tenure(&["--version"]);
    assert_eq!(version.code, Some(0));
    assert!(version.stdout.starts_with("tenure "));
}
