//! The shape that all store URLs share, split once for every backend.
//!
//! `scheme://[user[:password]@]host:port[,host:port...][/path][?key=value&...]`, or
//! `scheme:rest` for the embedded store. The `url` crate takes one host only, which is why the
//! authority is split here.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::{Error, ErrorKind, Result};

/// A text that must never be printed: `Debug` shows `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The files for TLS, and whom to expect.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// The authorities to trust, instead of the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must carry, instead of the host.
    pub server_name: Option<String>,
}

/// A store URL in its parts, percent-decoded.
///
/// A backend takes the parts it knows with [`take`](Self::take) and its sisters and then calls
/// [`finish`](Self::finish), which refuses what nobody took.
#[derive(Clone)]
pub struct StoreUrl {
    scheme: String,
    user: Option<String>,
    password: Option<Secret>,
    hosts: Vec<String>,
    path: String,
    query: BTreeMap<String, String>,
    known: Vec<&'static str>,
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Of the query only the keys: a value may be a password, too.
        f.debug_struct("StoreUrl")
            .field("scheme", &self.scheme)
            .field("user", &self.user)
            .field("password", &self.password)
            .field("hosts", &self.hosts)
            .field("path", &self.path)
            .field("query", &self.query.keys())
            .finish_non_exhaustive()
    }
}

fn config(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

/// Refuses a `%` that begins no escape: who wrote it meant something else, or forgot to write `%25`.
fn check_escapes(what: &str, text: &str) -> Result<()> {
    let ends = |rest: &str| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    match text.split('%').skip(1).all(ends) {
        true => Ok(()),
        false => Err(config(format!(
            "the {what} in the URL has a `%` without two hexadecimal digits behind it: write `%25` for the character"
        ))),
    }
}

/// Refuses a host whose brackets hold no IPv6 address, and an IPv6 address without brackets: its last part would
/// be taken for a port, and the rest be looked up as a name.
fn check_host(host: &str) -> Result<()> {
    let refused = || {
        config(
            "a host in the URL is no `host:port`: an IPv6 address stands in brackets, `[::1]:6379`",
        )
    };
    let port = match host.strip_prefix('[') {
        Some(inside) => {
            let (address, port) = inside.split_once(']').ok_or_else(refused)?;
            address.parse::<Ipv6Addr>().map_err(|_| refused())?;
            match port {
                "" => return Ok(()),
                port => port.strip_prefix(':').ok_or_else(refused)?,
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) if !name.contains(']') => port,
            None if !host.contains(']') => return Ok(()),
            _ => return Err(refused()),
        },
    };
    match port.contains([':', '[', ']']) {
        true => Err(refused()),
        false => Ok(()),
    }
}

fn decode(what: &str, text: &str) -> Result<String> {
    check_escapes(what, text)?;
    percent_decode_str(text)
        .decode_utf8()
        .map(Into::into)
        .map_err(|_| {
            config(format!(
                "the {what} in the URL is not UTF-8 once percent-decoded"
            ))
        })
}

impl StoreUrl {
    /// Splits `text`.
    ///
    /// # Errors
    ///
    /// `Config` when it is no URL; the message never repeats the URL, which may hold a password.
    pub fn parse(text: &str) -> Result<Self> {
        let (scheme, rest) = text.split_once(':').ok_or_else(|| {
            config(
                "a store URL starts with a scheme, like `memory:` or `etcd://host:2379/namespace`",
            )
        })?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if scheme.is_empty() || !scheme.chars().all(plain) {
            return Err(config(
                "the URL's scheme must be letters, digits, `+`, `-` or `.`",
            ));
        }
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, query),
            None => (rest, ""),
        };
        if rest.contains('#') || query.contains('#') {
            return Err(config(
                "a store URL has no `#` part: write `%23` for the character",
            ));
        }
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
            None => ("", rest),
        };
        // A `/` or `?` that stands bare in a password ends the authority early: the rest of the
        // secret would go into the path, the query, or an error's text.
        let ats = |text: &str| text.matches('@').count();
        if rest.starts_with("//") && ats(text) > ats(authority) {
            return Err(config(
                "an `@` after the hosts: in a user or password write `/` as `%2F`, `?` as `%3F`, `#` as `%23` and `@` as `%40`",
            ));
        }
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials), hosts),
            None => (None, authority),
        };
        let (user, password) =
            match credentials.map(|c| c.split_once(':').map_or((c, None), |(u, p)| (u, Some(p)))) {
                Some((user, password)) => (
                    Some(decode("user", user)?),
                    password
                        .map(|p| decode("password", p).map(Secret::new))
                        .transpose()?,
                ),
                None => (None, None),
            };
        let hosts = match hosts {
            "" => Vec::new(),
            hosts => hosts.split(',').map(str::to_owned).collect(),
        };
        if hosts.iter().any(String::is_empty) {
            return Err(config("the URL's list of hosts has an empty entry"));
        }
        for host in &hosts {
            check_host(host)?;
        }
        check_escapes("query", query)?;
        let mut map = BTreeMap::new();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            if map.insert(key.to_string(), value.into_owned()).is_some() {
                return Err(config(format!("the URL's query has the key `{key}` twice")));
            }
        }
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            user,
            password,
            hosts,
            path: decode("path", path)?,
            query: map,
            known: Vec::new(),
        })
    }

    /// The scheme, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// `user` and `password` before the `@`.
    pub fn credentials(&self) -> (Option<&str>, Option<&Secret>) {
        (self.user.as_deref(), self.password.as_ref())
    }

    /// `host:port`, one or more, as written.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// What follows the hosts, without its first slash; for `scheme:rest`, the rest.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Takes the query's `key`, and notes it as known.
    pub fn take(&mut self, key: &'static str) -> Option<String> {
        self.known.push(key);
        self.query.remove(key)
    }

    /// Takes the query's `key` as what must never be printed.
    pub fn take_secret(&mut self, key: &'static str) -> Option<Secret> {
        self.take(key).map(Secret)
    }

    /// Takes a duration such as `500ms`, `10s` or `2m`.
    ///
    /// # Errors
    ///
    /// `Config` if it is none.
    pub fn take_duration(&mut self, key: &'static str) -> Result<Option<Duration>> {
        self.take(key)
            .map(|text| {
                humantime::parse_duration(&text).map_err(|_| {
                    config(format!(
                        "`{key}={text}` is no duration: write `500ms`, `10s` or `2m`"
                    ))
                })
            })
            .transpose()
    }

    /// Takes `true` or `false`; absent is false.
    ///
    /// # Errors
    ///
    /// `Config` if it is neither.
    pub fn take_flag(&mut self, key: &'static str) -> Result<bool> {
        match self.take(key).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(config(format!("`{key}={other}` must be `true` or `false`"))),
        }
    }

    /// Takes `ca`, `cert`, `key` and `server_name`, which only make sense with TLS: nothing if the
    /// scheme is not a `secure` one. What to write then is `instead`.
    ///
    /// # Errors
    ///
    /// `Config` for one of `cert` and `key`, and for any of them without TLS.
    pub fn take_tls(&mut self, secure: bool, instead: &str) -> Result<Option<TlsFiles>> {
        let files = TlsFiles {
            ca: self.take("ca").map(PathBuf::from),
            identity: match (self.take("cert"), self.take("key")) {
                (Some(cert), Some(key)) => Some((cert.into(), key.into())),
                (None, None) => None,
                _ => return Err(config("`cert` and `key` go together")),
            },
            server_name: self.take("server_name"),
        };
        let asked = files.ca.is_some() || files.identity.is_some() || files.server_name.is_some();
        // Silently dropping them would send in plain what was meant to be protected.
        if asked && !secure {
            return Err(config(format!(
                "`ca`, `cert`, `key` and `server_name` need TLS: write `{instead}`"
            )));
        }
        Ok(secure.then_some(files))
    }

    /// Refuses every key that was not taken.
    ///
    /// # Errors
    ///
    /// `Config`, naming the key and those that are known.
    pub fn finish(self) -> Result<()> {
        match self.query.keys().next() {
            None => Ok(()),
            Some(key) => Err(config(format!(
                "`{}` URLs know no query key `{key}`; they know: {}",
                self.scheme,
                if self.known.is_empty() {
                    "none".into()
                } else {
                    self.known.join(", ")
                }
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_everything() {
        let mut url =
            StoreUrl::parse("etcd://us%40er:p%2Fw@a:1,b:2/name%20space?ttl=10s&interop=true")
                .unwrap();
        assert_eq!(url.scheme(), "etcd");
        assert_eq!(url.credentials().0, Some("us@er"));
        assert_eq!(url.credentials().1.unwrap().expose(), "p/w");
        assert_eq!(url.hosts(), ["a:1", "b:2"]);
        assert_eq!(url.path(), "name space");
        assert_eq!(
            url.take_duration("ttl").unwrap(),
            Some(Duration::from_secs(10))
        );
        assert!(url.take_flag("interop").unwrap());
        url.finish().unwrap();
    }

    #[test]
    fn schemes_with_a_plus_and_passwords_without_a_user() {
        let mut url =
            StoreUrl::parse("rediss+sentinel://:pass@a:1,b:2/service?namespace=ns").unwrap();
        assert_eq!(url.scheme(), "rediss+sentinel");
        assert_eq!(url.credentials().0, Some(""));
        assert_eq!(url.credentials().1.unwrap().expose(), "pass");
        assert_eq!(url.hosts(), ["a:1", "b:2"]);
        assert_eq!(url.path(), "service");
        assert_eq!(url.take("namespace").as_deref(), Some("ns"));
        // Whether a store can do without hosts is for its backend to say.
        assert!(StoreUrl::parse("redis://").unwrap().hosts().is_empty());
    }

    #[test]
    fn addresses_of_ipv6_stand_in_brackets() {
        let url = StoreUrl::parse("etcd://u:p@[::1]:2379,[fe80::1],h:1,h/ns").unwrap();
        assert_eq!(url.hosts(), ["[::1]:2379", "[fe80::1]", "h:1", "h"]);
    }

    #[test]
    fn opaque_form() {
        assert_eq!(StoreUrl::parse("memory:").unwrap().path(), "");
        assert_eq!(StoreUrl::parse("memory:shared").unwrap().path(), "shared");
    }

    #[test]
    fn unknown_keys_and_secrets() {
        let mut url = StoreUrl::parse("etcd://u:canary@h:1/ns?tll=10s&word=canary").unwrap();
        assert!(!format!("{url:?}").contains("canary"));
        assert_eq!(url.take_secret("word").unwrap().expose(), "canary");
        let _ = url.take("ttl");
        let error = url.finish().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("`tll`") && error.to_string().contains("ttl"));
    }

    #[test]
    fn a_password_that_is_not_encoded_is_refused_and_not_shown() {
        for url in [
            "etcd://u:can/ary@h:1/ns",
            "etcd://u:can?ary@h:1/ns",
            "etcd://u:can#ary@h:1/ns",
            "etcd://u:12/canary@h:1/ns",
            "etcd://can:9/x?y=ary@h:1",
            "etcd://u:x@can/ary@h:1/ns",
            "etcd://u:x@can?ary@h:1",
        ] {
            let error = StoreUrl::parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("can/") && !shown.contains("ary"), "{shown}");
        }
        // Encoded, it is an ordinary character.
        assert!(StoreUrl::parse("etcd://h:1/a%40b").is_ok());
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "etcd",
            "://x",
            "a b://x",
            "etcd://h,,i/ns",
            "etcd://h/ns?a=1&a=2",
            "etcd://h/%ff",
            "etcd://h/%zz",
            "etcd://u:50%@h/ns",
            "etcd://u:%zz@h/ns",
            "etcd://h/ns?a=%4",
            "etcd://h/n#x",
            "redis://u:p@[::1",
            "redis://[::1",
            "redis://::1",
            "redis://::1:6379",
            "redis://[h]:6379",
            "redis://[::1]6379",
            "redis://[::1]:1:2",
            "redis://h]:1",
            "redis://h,[::1",
        ] {
            assert_eq!(
                StoreUrl::parse(bad).unwrap_err().kind(),
                ErrorKind::Config,
                "{bad:?}"
            );
        }
    }
}
