//! `tenure guarantees`.

use serde_json::json;

use crate::args::Global;
use crate::exit::{self, Failure};
use crate::output;

pub(crate) async fn run(global: &Global) -> Result<u8, Failure> {
    let guarantees = global.connect().await?.guarantees().await?;
    let rows = guarantees.rows();
    if global.json {
        for row in rows {
            let object = json!({
                "deployment": guarantees.deployment,
                "guarantee": row.line.title(),
                "rule": row.line.rule(),
                "value": row.value,
                "reason": row.reason,
            });
            output::line(&object.to_string())?;
        }
    } else {
        let mut table = output::table(true);
        table.set_header([
            "rule",
            "guarantee",
            guarantees.deployment.as_str(),
            "because",
        ]);
        for row in &rows {
            table.add_row([row.line.rule(), row.line.title(), &row.value, &row.reason]);
        }
        output::line(&table.to_string())?;
    }
    Ok(exit::DONE)
}
