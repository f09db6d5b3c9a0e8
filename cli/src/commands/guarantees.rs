//! `tenure guarantees`.

use serde_json::json;
use tenure_conformance::{TESTED, is_tested};

use crate::args::Global;
use crate::exit::{self, Failure};
use crate::output;

pub(crate) async fn run(global: &Global) -> Result<u8, Failure> {
    let guarantees = global.connect().await?.guarantees().await?;
    let rows = guarantees.rows();
    if global.json {
        for row in rows {
            let mut object = output::Object::new();
            object.set("deployment", guarantees.deployment.as_str().into());
            object.set("guarantee", row.line.title().into());
            object.set("rule", row.line.rule().into());
            object.set("value", json!(row.value));
            object.set("reason", json!(row.reason));
            object.set("tested", json!(is_tested(&guarantees.deployment)));
            object.print()?;
        }
    } else {
        let mut table = output::table(true);
        table.set_header([
            "rule",
            "guarantee",
            &output::printable(&guarantees.deployment),
            "because",
        ]);
        for row in &rows {
            let (value, reason) = (
                output::printable(&row.value),
                output::printable(&row.reason),
            );
            table.add_row([row.line.rule(), row.line.title(), &value, &reason]);
        }
        output::line(&output::printable_lines(&table.to_string()))?;
        if is_tested(&guarantees.deployment) == Some(false) {
            output::line(&format!(
                "claimed, not tested: the published matrix was run with {}",
                TESTED.join(", ")
            ))?;
        }
    }
    Ok(exit::DONE)
}
