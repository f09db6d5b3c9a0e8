//! One step: a statement with its arguments, and the rows that it answers.

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Decode, Encode, Postgres, Row as _, Type};
use tenure_core::{FencingToken, Result};

use crate::error;

/// A statement, and what is bound to its `$1`, `$2`, ...
pub(crate) struct Step<'q> {
    pub(crate) sql: &'static str,
    pub(crate) query: Query<'q, Postgres, PgArguments>,
}

/// The step `sql`: a single statement, whose answer is small if it goes over a session's connection.
pub(crate) fn step<'q>(sql: &'static str) -> Step<'q> {
    Step {
        sql,
        query: sqlx::query(sql),
    }
}

impl<'q> Step<'q> {
    /// Binds the next argument. Nonces go as `signed(nonce)`, tokens and ids as `i64`.
    #[must_use]
    pub(crate) fn with<T>(self, value: T) -> Self
    where
        T: 'q + Encode<'q, Postgres> + Type<Postgres>,
    {
        Self {
            sql: self.sql,
            query: self.query.bind(value),
        }
    }
}

/// What a step answered.
pub(crate) struct Rows {
    pub(crate) sql: &'static str,
    pub(crate) rows: Vec<PgRow>,
}

impl Rows {
    /// The rows, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        let sql = self.sql;
        self.rows.iter().map(move |row| Row { sql, row })
    }

    /// The first row, if there is one.
    pub(crate) fn opt(&self) -> Option<Row<'_>> {
        let row = self.rows.first()?;
        Some(Row { sql: self.sql, row })
    }

    /// The one row that a function always gives.
    pub(crate) fn first(&self) -> Result<Row<'_>> {
        self.opt()
            .ok_or_else(|| error::unexpected(self.sql, "no row"))
    }
}

/// One row. Columns are named.
#[derive(Clone, Copy)]
pub(crate) struct Row<'r> {
    sql: &'static str,
    row: &'r PgRow,
}

impl<'r> Row<'r> {
    /// A column of any type that the client knows; `Option` for one that may be null.
    pub(crate) fn get<T>(&self, column: &str) -> Result<T>
    where
        T: Decode<'r, Postgres> + Type<Postgres>,
    {
        self.row
            .try_get(column)
            .map_err(|e| error::unexpected(self.sql, e))
    }

    /// A column that holds a token, or nothing.
    pub(crate) fn token(&self, column: &str) -> Result<Option<FencingToken>> {
        self.get::<Option<i64>>(column)?
            .map(|token| {
                u64::try_from(token)
                    .map(FencingToken::new)
                    .map_err(|e| error::unexpected(self.sql, e))
            })
            .transpose()
    }
}
