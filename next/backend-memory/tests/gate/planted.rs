//! Each planted defect is found by the rules that name it.

use tenure_memory::{Bug, MemoryBackend, MemoryConfig};

#[test]
fn planted_defect_is_found_by_its_rule() {
    let rules = [
        crate::histories::planted(),
        crate::sessions::planted(),
        crate::requests::planted(),
        crate::locks::planted(),
        crate::elections::planted(),
        crate::queues::planted(),
        crate::barriers::planted(),
        crate::stm::planted(),
    ];
    let rules = rules.concat();
    let mut missed = Vec::new();
    for (bug, name, rule) in &rules {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let run = runtime.block_on(async {
            let store = MemoryBackend::connect(MemoryConfig::new().plant(*bug)).unwrap();
            tokio::spawn(rule(store)).await
        });
        if run.is_ok() {
            missed.push(format!("{bug:?} is not found by {name}"));
        }
    }
    for bug in Bug::ALL {
        if !rules.iter().any(|(found, ..)| found == bug) {
            missed.push(format!("no rule is there to find {bug:?}"));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
