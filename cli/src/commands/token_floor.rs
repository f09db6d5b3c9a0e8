//! `tenure token-floor`.

use serde_json::json;
use tenure::{ErrorKind, FencingToken};

use crate::args::{Global, TokenFloor};
use crate::exit::{self, Failure};
use crate::output::{self, Object};

pub(crate) async fn run(global: &Global, args: &TokenFloor) -> Result<u8, Failure> {
    global.hint_if_private();
    let store = global.connect().await?;
    let raised = store.raise_token_floor(FencingToken::new(args.at_least));
    raised.await.map_err(|error| match error.kind() {
        // The number is one of the command line.
        ErrorKind::Config => Failure::usage(exit::described(&error)),
        _ => error.into(),
    })?;
    if global.json {
        let mut object = Object::new();
        object.set("at_least", json!(args.at_least));
        object.print()?;
    } else {
        output::line(&format!(
            "tokens are at least {} from now on",
            args.at_least
        ))?;
    }
    Ok(exit::DONE)
}
