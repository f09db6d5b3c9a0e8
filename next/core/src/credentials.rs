//! Users, passwords, and functions that return them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::error::{Error, ErrorKind, Result};

/// A text that is never printed: `Debug` shows `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text, for the code that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A user and a password. `Debug` does not show the password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    user: String,
    password: Option<Secret>,
}

impl Credentials {
    /// Creates credentials with a password. On Redis, the empty user is the default user.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            user: user.into(),
            password: Some(Secret::new(password)),
        }
    }

    /// Creates credentials without a password.
    pub fn without_password(user: impl Into<String>) -> Self {
        Self {
            user: user.into(),
            password: None,
        }
    }

    /// Returns the user, which may be empty.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Returns the password, if there is one.
    pub fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }
}

/// The source of the credentials of each connection: fixed ones, or the application's function.
#[derive(Clone)]
pub struct CredentialSource(Source);

#[derive(Clone)]
enum Source {
    Fixed(Credentials),
    Function {
        function: Arc<Function>,
        /// The call in progress. It outlives an attempt that no longer waits for it, and serves the next one.
        call: Arc<Mutex<Option<JoinHandle<Result<Credentials>>>>>,
    },
}

type Function = dyn Fn() -> BoxFuture<'static, Result<Credentials>> + Send + Sync;

impl CredentialSource {
    pub(crate) const fn fixed(credentials: Credentials) -> Self {
        Self(Source::Fixed(credentials))
    }

    pub(crate) fn function<F, C>(function: F) -> Self
    where
        F: Fn() -> C + Send + Sync + 'static,
        C: Future<Output = Result<Credentials>> + Send + 'static,
    {
        Self(Source::Function {
            function: Arc::new(move || function().boxed()),
            call: Arc::default(),
        })
    }

    /// Returns the credentials if they are fixed, for a client that asks for them only once.
    pub const fn as_fixed(&self) -> Option<&Credentials> {
        match &self.0 {
            Source::Fixed(credentials) => Some(credentials),
            Source::Function { .. } => None,
        }
    }

    /// Returns the credentials for the next connection. One call of the function runs at a time, on a thread that may block.
    /// Call this inside the runtime of the connection.
    ///
    /// # Errors
    ///
    /// The kind of the function's own error, and `Unavailable` when the function panics or takes longer than `limit`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the call continues, and the next attempt receives its result.
    pub async fn credentials(&self, limit: Duration) -> Result<Credentials> {
        let (function, call) = match &self.0 {
            Source::Fixed(credentials) => return Ok(credentials.clone()),
            Source::Function { function, call } => (function, call),
        };
        let answer = async {
            let mut call = call.lock().await;
            let answer = call.get_or_insert_with(|| begin(function)).await;
            *call = None;
            answer
        };
        let problem = match tokio::time::timeout(limit, answer).await {
            Ok(Ok(Ok(credentials))) => return Ok(credentials),
            Ok(Ok(Err(error))) => {
                return Err(
                    Error::new(error.kind(), "the application's function for credentials failed")
                        .retryable(error.is_retryable())
                        .with_source(error),
                );
            }
            Ok(Err(stopped)) if stopped.is_panic() => "panicked".to_owned(),
            Ok(Err(_)) => "was stopped with its runtime".to_owned(),
            Err(_) => format!("did not return within {limit:?}"),
        };
        let message = format!("the application's function for credentials {problem}");
        Err(Error::new(ErrorKind::Unavailable, message))
    }
}

/// Calls `function` on a thread of its own: one that blocks would delay renewals on the library's thread.
fn begin(function: &Arc<Function>) -> JoinHandle<Result<Credentials>> {
    let (function, runtime) = (Arc::clone(function), Handle::current());
    spawn_blocking(move || runtime.block_on(function()))
}

impl fmt::Debug for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Fixed(credentials) => credentials.fmt(f),
            Source::Function { .. } => f.write_str("the application's function"),
        }
    }
}
