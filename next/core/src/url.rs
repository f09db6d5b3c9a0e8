//! The syntax that the URLs of all stores share.
//!
//! `scheme://[user[:password]@]host:port[,host:port...][/path][?key=value&...]`, or `scheme:path[?key=value&...]` for a store
//! without servers. The crate `url` accepts one host only, so the part between is split here.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::credentials::{CredentialSource, Credentials, Secret};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;
use crate::name::Namespace;
use crate::options::{ConnectOptions, TlsFiles, check_label};

/// The URL of a store, split into its percent-decoded parts, and the options of the connection.
///
/// A backend takes what it supports, then calls [`finish`](Self::finish), which refuses the rest. A `take_` function fails with
/// `Config` if the value is not of its form.
#[derive(Clone)]
pub struct StoreUrl {
    scheme: String,
    hosts: Vec<String>,
    path: String,
    query: BTreeMap<String, String>,
    known: Vec<&'static str>,
    options: ConnectOptions,
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only the keys of the query: a value may be a password.
        f.debug_struct("StoreUrl")
            .field("scheme", &self.scheme)
            .field("hosts", &self.hosts)
            .field("path", &self.path)
            .field("query", &self.query.keys())
            .field("options", &self.options)
            .finish()
    }
}

impl StoreUrl {
    /// Parses `text`.
    ///
    /// # Errors
    ///
    /// `Config` if it is not the URL of a store. The message does not repeat the URL, which may contain a password.
    pub fn parse(text: &str) -> Result<Self> {
        let (scheme, rest) = text
            .split_once(':')
            .ok_or_else(|| config("a store URL begins with a scheme, like `memory:` or `redis://host:6379`"))?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if scheme.is_empty() || !scheme.chars().all(is_plain) {
            return Err(config(
                "the scheme of a store URL has letters, digits, `+`, `-` and `.` only",
            ));
        }
        if rest.contains('#') {
            return Err(config("a store URL has no `#` part: write `%23` for the character"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
            None => ("", rest),
        };
        // A `/` or `?` in a password ends the authority early, and the rest of the secret would pass for a path or a query.
        if rest.starts_with("//") && text.matches('@').count() > authority.matches('@').count() {
            return Err(config(
                "an `@` follows the hosts, probably because a password is not percent-encoded: \
                 write `/` as `%2F`, `?` as `%3F`, `#` as `%23` and `@` as `%40`",
            ));
        }
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials), hosts),
            None => (None, authority),
        };
        let credentials = match credentials.map(|text| text.split_once(':').ok_or(text)) {
            Some(Ok((user, password))) => Some(Credentials::new(decode("user", user)?, decode("password", password)?)),
            Some(Err(user)) => Some(Credentials::without_password(decode("user", user)?)),
            None => None,
        };
        let hosts: Vec<_> = if hosts.is_empty() {
            Vec::new()
        } else {
            hosts.split(',').map(str::to_owned).collect()
        };
        hosts.iter().try_for_each(|host| check_host(host))?;
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            hosts,
            path: decode("path", path)?,
            query: parse_query(query)?,
            known: Vec::new(),
            options: ConnectOptions {
                credentials: credentials.map(CredentialSource::fixed),
                ..ConnectOptions::default()
            },
        })
    }

    /// Overrides parts of the URL by those of `options` that are set.
    #[must_use]
    pub fn with(mut self, options: ConnectOptions) -> Self {
        let ours = self.options;
        self.options = ConnectOptions {
            namespace: options.namespace.or(ours.namespace),
            ttl: options.ttl.or(ours.ttl),
            label: options.label.or(ours.label),
            credentials: options.credentials.or(ours.credentials),
            tls: options.tls.or(ours.tls),
            executor: options.executor.or(ours.executor),
        };
        self
    }

    /// Returns the scheme, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Returns the hosts as they are written, each `host` or `host:port`.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Returns the part between the hosts and the query without its first slash, or all of it for a URL without `//`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Takes the value of a query key, and notes the key as one that the store supports.
    pub fn take(&mut self, key: &'static str) -> Option<String> {
        self.known.push(key);
        self.query.remove(key)
    }

    /// Takes the value of a query key as a secret.
    pub fn take_secret(&mut self, key: &'static str) -> Option<Secret> {
        self.take(key).map(Secret::new)
    }

    /// Takes the credentials: the application's, or those before the `@`. A URL `:password@` has the empty user.
    pub fn take_credentials(&mut self) -> Option<CredentialSource> {
        self.options.credentials.take()
    }

    /// Takes the application's runtime for the library's work.
    pub fn take_executor(&mut self) -> Option<Executor> {
        self.options.executor.take()
    }

    /// Takes the namespace: the application's, or that of the query key `namespace`. Fails with `InvalidName` if no store
    /// accepts it.
    pub fn take_namespace(&mut self) -> Result<Option<Namespace>> {
        let text = self.take("namespace");
        match self.options.namespace.take() {
            Some(namespace) => Ok(Some(namespace)),
            None => text.map(Namespace::new).transpose(),
        }
    }

    /// Takes the TTL of sessions that ask for none: the application's, or that of the query key `ttl`.
    pub fn take_ttl(&mut self) -> Result<Option<Duration>> {
        let ttl = self.take_duration("ttl")?;
        match self.options.ttl.take().or(ttl) {
            Some(Duration::ZERO) => Err(config("the TTL of a connection must be above zero")),
            ttl => Ok(ttl),
        }
    }

    /// Takes the label of the client: the application's, or that of the query key `client_label`.
    pub fn take_label(&mut self) -> Result<Option<String>> {
        let text = self.take("client_label");
        let label = self.options.label.take().or(text);
        label.map(|label| check_label(&label).map(str::to_owned)).transpose()
    }

    /// Takes the application's files for TLS, for a store whose query keys for them have names of their own.
    pub fn take_tls_files(&mut self) -> Option<TlsFiles> {
        self.options.tls.take()
    }

    /// Takes the files for TLS: the application's, or those of the query keys `ca`, `cert`, `key` and `server_name`. Returns
    /// `None` if the URL is not `secure`. `secure_scheme` is the scheme that asks for TLS.
    ///
    /// Refuses one of `cert` and `key` without the other, and anything that is set without TLS.
    pub fn take_tls(&mut self, secure: bool, secure_scheme: &str) -> Result<Option<TlsFiles>> {
        let options = self.options.tls.take();
        let asked = TlsFiles {
            ca: self.take("ca").map(PathBuf::from),
            identity: match (self.take("cert"), self.take("key")) {
                (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
                (None, None) => None,
                _ => {
                    return Err(config("`cert` and `key` in the URL go together: set both or none"));
                }
            },
            server_name: self.take("server_name"),
        };
        // Ignoring them would send in plain text what the user wants protected.
        if !secure && (options.is_some() || asked != TlsFiles::default()) {
            return Err(config(format!(
                "files for TLS need TLS: write the scheme `{secure_scheme}`"
            )));
        }
        let options = options.unwrap_or_default();
        Ok(secure.then(|| TlsFiles {
            ca: options.ca.or(asked.ca),
            identity: options.identity.or(asked.identity),
            server_name: options.server_name.or(asked.server_name),
        }))
    }

    /// Takes a duration such as `500ms`, `10s` or `2m`, which must be above zero.
    pub fn take_duration(&mut self, key: &'static str) -> Result<Option<Duration>> {
        let Some(text) = self.take(key) else {
            return Ok(None);
        };
        let duration = parse_duration(&text)
            .filter(|duration| !duration.is_zero())
            .ok_or_else(|| {
                config(format!(
                    "`{key}` in the URL must be a duration above zero with a unit, like `500ms`, `10s` or `2m`"
                ))
            })?;
        Ok(Some(duration))
    }

    /// Takes `true` or `false`; an absent key is false.
    pub fn take_flag(&mut self, key: &'static str) -> Result<bool> {
        match self.take(key).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(config(format!("`{key}` in the URL must be `true` or `false`"))),
        }
    }

    /// Refuses what was not taken: a query key, or an option of the connection.
    ///
    /// # Errors
    ///
    /// `Config`, with what is left and what the store supports.
    pub fn finish(self) -> Result<()> {
        let (scheme, options) = (&self.scheme, &self.options);
        if let Some(key) = self.query.keys().next() {
            let known = if self.known.is_empty() {
                "none".to_owned()
            } else {
                self.known.join(", ")
            };
            return Err(config(format!(
                "a URL with the scheme `{scheme}` has no query key `{key}`; it has: {known}"
            )));
        }
        let left = [
            ("namespace", options.namespace.is_some()),
            ("TTL", options.ttl.is_some()),
            ("client label", options.label.is_some()),
            ("credentials", options.credentials.is_some()),
            ("files for TLS", options.tls.is_some()),
            ("executor", options.executor.is_some()),
        ];
        match left.into_iter().find(|(_, is_left)| *is_left) {
            Some((option, _)) => Err(config(format!(
                "a store with the scheme `{scheme}` takes no {option}: remove it"
            ))),
            None => Ok(()),
        }
    }
}

/// Parses a duration of digits and a unit: `ms`, `s`, `m` or `h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let milliseconds = match &text[unit..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    text[..unit]
        .parse::<u64>()
        .ok()?
        .checked_mul(milliseconds)
        .map(Duration::from_millis)
}

fn config(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

fn decode(part: &str, text: &str) -> Result<String> {
    check_escapes(part, text)?;
    let decoded = percent_decode_str(text).decode_utf8();
    decoded
        .map(Into::into)
        .map_err(|_| config(format!("the {part} in the URL is not UTF-8 after percent-decoding")))
}

/// Refuses a `%` without two hexadecimal digits: it may be a password that was not encoded.
fn check_escapes(part: &str, text: &str) -> Result<()> {
    let is_escape = |rest: &str| {
        rest.as_bytes()
            .get(..2)
            .is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit))
    };
    if text.split('%').skip(1).all(is_escape) {
        return Ok(());
    }
    Err(config(format!(
        "the {part} in the URL has a `%` without two hexadecimal digits behind it: write `%25` for the character"
    )))
}

fn parse_query(text: &str) -> Result<BTreeMap<String, String>> {
    check_escapes("query", text)?;
    let mut query = BTreeMap::new();
    for (key, value) in form_urlencoded::parse(text.as_bytes()) {
        if query.insert(key.to_string(), value.into_owned()).is_some() {
            return Err(config(format!("the query of the URL has the key `{key}` twice")));
        }
    }
    Ok(query)
}

/// Refuses an empty host, and an IPv6 address without brackets, whose last part would pass for a port.
fn check_host(host: &str) -> Result<()> {
    let port = match host.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((address, port))) if address.parse::<Ipv6Addr>().is_ok() => port,
        Some(_) => "[",
        None => host.find(':').map_or("", |at| &host[at..]),
    };
    let is_port = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|port| !port.contains([':', '[', ']']));
    if is_port && !host.is_empty() && !host.starts_with(':') && (host.starts_with('[') || !host.contains(']')) {
        return Ok(());
    }
    Err(config(
        "a host in the URL is not of the form `host:port`: write an IPv6 address in brackets, `[::1]:6379`",
    ))
}
