//! `tenure schema`.

use crate::args::{self, Global};
use crate::exit::{BAD_CONFIG, Failure};

pub(crate) fn run(global: &Global, args: &args::Schema) -> Result<u8, Failure> {
    let (scheme, _) = global.url()?.split_once(':').unwrap_or_default();
    if args.grants.as_deref() == Some("") {
        return Err(Failure::usage("schema: the role has no name"));
    }
    match scheme {
        "postgres" | "postgresql" => print(args),
        _ => Err(Failure::new(
            BAD_CONFIG,
            "schema: only a PostgreSQL has one; name it with --url or TENURE_URL, `postgres:` will do",
        )),
    }
}

#[cfg(feature = "postgres")]
fn print(args: &args::Schema) -> Result<u8, Failure> {
    let sql = match &args.grants {
        Some(role) => tenure::postgres::grants(role),
        None => tenure::postgres::migration(),
    };
    crate::output::line(sql.trim_end())?;
    Ok(crate::exit::DONE)
}

#[cfg(not(feature = "postgres"))]
fn print(_: &args::Schema) -> Result<u8, Failure> {
    Err(Failure::new(
        BAD_CONFIG,
        "schema: this tenure was built without PostgreSQL: switch on the cargo feature `postgres`",
    ))
}
