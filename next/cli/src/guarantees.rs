//! `tenure guarantees`.

use serde_json::json;
use tenure::guarantees::Line;

use crate::args::Args;
use crate::exit::{self, Failure};
use crate::output;
use crate::text::{self, one_line};

pub(crate) async fn run(args: &Args) -> Result<u8, Failure> {
    let url = match args.url.as_slice() {
        [] => "memory:",
        [url] => url,
        _ => return Err(Failure::usage("`guarantees` takes one --url")),
    };
    let guarantees = tenure::connect(url).await?.guarantees().await?;
    if args.json {
        for line in Line::ALL {
            let (value, reason) = guarantees.claim(*line);
            let object = json!({
                "deployment": guarantees.deployment,
                "id": line.id(),
                "rule": line.rule(),
                "guarantee": line.title(),
                "value": value,
                "reason": reason,
            });
            output::print(&object.to_string())?;
        }
        return Ok(exit::DONE);
    }
    output::print(&one_line(&guarantees.deployment))?;
    let rows = Line::ALL.iter().map(|line| {
        let (value, reason) = guarantees.claim(*line);
        [
            line.rule().to_owned(),
            line.title().to_owned(),
            one_line(&value),
            one_line(reason),
        ]
    });
    output::print(&text::table(&rows.collect::<Vec<_>>()))?;
    Ok(exit::DONE)
}
