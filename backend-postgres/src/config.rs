//! URL and options.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tenure_core::backend::{Secret, StoreUrl};
use tenure_core::{DEFAULT_TTL, Error, ErrorKind, Namespace, Result};

/// How much TLS: PostgreSQL's `sslmode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SslMode {
    /// None.
    Disable,
    /// None: the client has no other way to `allow` it. With a password, for a host that is not this machine:
    /// as `Require`.
    Allow,
    /// If the server can: what PostgreSQL's own programs do. With a password, for a host that is not this machine:
    /// as `Require`, because a server without TLS could ask for the password in clear text.
    #[default]
    Prefer,
    /// Always, whoever the server is.
    Require,
    /// Always, with a certificate by a known authority.
    VerifyCa,
    /// Always, with a certificate by a known authority for the host's name.
    VerifyFull,
}

impl FromStr for SslMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "disable" => Self::Disable,
            "allow" => Self::Allow,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            other => {
                return Err(refuse(format!(
                    "`sslmode={other}` must be disable, allow, prefer, require, verify-ca or verify-full"
                )));
            }
        })
    }
}

/// How to reach a PostgreSQL, and how to use it.
///
/// `postgres://[user[:password]@]host[:port][,host[:port]...][/database]?namespace=ns`, with the query
/// keys
///
/// | key | meaning | default |
/// |---|---|---|
/// | `namespace` | the part of the store that is used | `default` |
/// | `ttl` | TTL of a session that asks for none | `10s` |
/// | `timeout` | for one request outside a session | `5s` |
/// | `connect_timeout` | for one connection attempt | `2s` |
/// | `sslmode` | `disable`, `allow`, `prefer`, `require`, `verify-ca`, `verify-full` | `prefer`; `verify-full` with `sslrootcert` |
/// | `sslrootcert` | authorities in PEM, beside those of the system; makes `require` mean `verify-ca` | |
/// | `sslcert`, `sslkey` | the client's certificate and key in PEM | |
/// | `application_name` | what the server's views and log show | `tenure` |
/// | `interop` | `true` takes the names of locks verbatim, to share them with any SQL client | `false` |
///
/// Of several hosts, the first that is reached and can be written to is used.
#[derive(Clone)]
pub struct PostgresConfig {
    /// Host and port of each server to ask.
    pub(crate) hosts: Vec<(String, u16)>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) database: Option<String>,
    pub(crate) namespace: Namespace,
    pub(crate) ttl: Duration,
    pub(crate) timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) ssl_mode: SslMode,
    pub(crate) ssl_root: Option<PathBuf>,
    pub(crate) ssl_cert: Option<PathBuf>,
    pub(crate) ssl_key: Option<PathBuf>,
    pub(crate) application: String,
    pub(crate) interop: bool,
}

impl PostgresConfig {
    /// One server.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            hosts: vec![(host.into(), port)],
            user: None,
            password: None,
            database: None,
            namespace: Namespace::default(),
            ttl: DEFAULT_TTL,
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            ssl_mode: SslMode::default(),
            ssl_root: None,
            ssl_cert: None,
            ssl_key: None,
            application: "tenure".into(),
            interop: false,
        }
    }

    /// Reads a `postgres://` URL.
    ///
    /// # Errors
    ///
    /// `Config` for a URL without a host, an unknown query key, and values that make no sense.
    pub fn from_url(mut url: StoreUrl) -> Result<Self> {
        let hosts = url
            .hosts()
            .iter()
            .map(|host| host_and_port(host))
            .collect::<Result<Vec<_>>>()?;
        if hosts.is_empty() {
            return Err(refuse(
                "a `postgres://` URL needs a host: `postgres://user@host:5432/database`",
            ));
        }
        let mut config = Self::new("", 0);
        config.hosts = hosts;
        let (user, password) = url.credentials();
        config.user = user.filter(|user| !user.is_empty()).map(str::to_owned);
        config.password = password.cloned();
        config.database = Some(url.path().to_owned()).filter(|path| !path.is_empty());
        if let Some((database, rest)) = config.database.as_ref().and_then(|it| it.split_once('/')) {
            return Err(refuse(format!(
                "the URL's database is `{database}/{rest}`, with a slash: a namespace is given by `?namespace=`, as in `postgres://host/{database}?namespace={rest}`; a database that is called so, by PGDATABASE"
            )));
        }
        if let Some(namespace) = url.take("namespace") {
            config.namespace = Namespace::new(namespace)?;
        }
        for (key, field) in [
            ("ttl", &mut config.ttl),
            ("timeout", &mut config.timeout),
            ("connect_timeout", &mut config.connect_timeout),
        ] {
            if let Some(duration) = url.take_duration(key)? {
                if duration.is_zero() {
                    return Err(refuse(format!("`{key}` must be above zero")));
                }
                *field = duration;
            }
        }
        let mode = url.take("sslmode").map(|mode| mode.parse()).transpose()?;
        config.ssl_root = url.take("sslrootcert").map(PathBuf::from);
        config.ssl_mode = match (mode, &config.ssl_root) {
            (None, None) => SslMode::default(),
            (Some(mode), None) => mode,
            // Whoever names an authority wants it asked: as with PostgreSQL's own programs.
            (None, Some(_)) => SslMode::VerifyFull,
            (Some(SslMode::Require), Some(_)) => SslMode::VerifyCa,
            (Some(mode @ (SslMode::VerifyCa | SslMode::VerifyFull)), Some(_)) => mode,
            (Some(_), Some(_)) => {
                return Err(refuse(
                    "with `sslrootcert`, `sslmode` is require, verify-ca or verify-full: the others ask no authority",
                ));
            }
        };
        config.ssl_cert = url.take("sslcert").map(PathBuf::from);
        config.ssl_key = url.take("sslkey").map(PathBuf::from);
        if config.ssl_cert.is_some() != config.ssl_key.is_some() {
            return Err(refuse("`sslcert` and `sslkey` go together"));
        }
        if let Some(name) = url.take("application_name") {
            config.application = name;
        }
        config.interop = url.take_flag("interop")?;
        url.finish()?;
        config.check_ends()?;
        Ok(config)
    }

    /// Refuses what would end early on its way to the server, and go on there as another parameter.
    fn check_ends(&self) -> Result<()> {
        let texts = [
            self.user.as_deref(),
            self.password.as_ref().map(Secret::expose),
            self.database.as_deref(),
            Some(&*self.application),
        ];
        match texts.into_iter().flatten().any(|text| text.contains('\0')) {
            true => Err(refuse(
                "user, password, database and `application_name` cannot contain NUL",
            )),
            false => Ok(()),
        }
    }

    /// Whether the files that it names are there: the client tells less of them.
    pub(crate) fn check_files(&self) -> Result<()> {
        for (key, path) in [
            ("sslrootcert", &self.ssl_root),
            ("sslcert", &self.ssl_cert),
            ("sslkey", &self.ssl_key),
        ] {
            if let Some(path) = path {
                std::fs::File::open(path).map_err(|why| {
                    let path = path.display();
                    refuse(format!("cannot read the certificate file `{key}={path}`"))
                        .with_source(why)
                })?;
            }
        }
        Ok(())
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// Whether locks are shared with any SQL client that runs
    /// `pg_catalog.pg_advisory_lock(pg_catalog.hashtextextended('NAME', 0))`: names are then taken verbatim, in every namespace.
    /// `key:N` is the lock on the 64-bit key N, and `key:A,B` that on two 32-bit keys. Foreign clients stand
    /// in no line and get no tokens: see `guarantees()`.
    #[must_use]
    pub fn interop(mut self, interop: bool) -> Self {
        self.interop = interop;
        self
    }

    /// The TTL of a session that asks for none.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }
}

fn host_and_port(text: &str) -> Result<(String, u16)> {
    let bad = || {
        refuse(format!(
            "`{text}` is not `host` or `host:port`; PostgreSQL's usual port is 5432"
        ))
    };
    // An IPv6 address stands in brackets.
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or_else(bad)?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(bad()),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() {
        return Err(bad());
    }
    let port = port.map_or(Ok(5432), |port| port.parse().map_err(|_| bad()))?;
    Ok((host.to_owned(), port))
}

fn refuse(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By hand, so that a field added to the config is not printed by accident.
        f.debug_struct("PostgresConfig")
            .field("hosts", &self.hosts)
            .field("user", &self.user)
            .field("password", &self.password)
            .field("database", &self.database)
            .field("namespace", &self.namespace)
            .field("ttl", &self.ttl)
            .field("ssl_mode", &self.ssl_mode)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<PostgresConfig> {
        PostgresConfig::from_url(StoreUrl::parse(url)?)
    }

    #[test]
    fn a_full_url() {
        let config = parse("postgres://u:canary@a:1,b,[::1]:3/orders?namespace=ns&ttl=3s&sslmode=verify-full&interop=true").unwrap();
        assert_eq!(
            config.hosts,
            [("a".into(), 1), ("b".into(), 5432), ("::1".into(), 3)]
        );
        assert_eq!(config.database.as_deref(), Some("orders"));
        assert_eq!(config.namespace.as_str(), "ns");
        assert_eq!(config.ttl, Duration::from_secs(3));
        assert_eq!(config.ssl_mode, SslMode::VerifyFull);
        assert!(config.interop);
        assert!(!format!("{config:?}").contains("canary"));
    }

    #[test]
    fn an_authority_that_is_named_is_asked() {
        for (query, mode) in [
            ("", SslMode::Prefer),
            ("sslrootcert=a", SslMode::VerifyFull),
            ("sslrootcert=a&sslmode=require", SslMode::VerifyCa),
            ("sslrootcert=a&sslmode=verify-full", SslMode::VerifyFull),
            ("sslmode=require", SslMode::Require),
        ] {
            let config = parse(&format!("postgres://h?{query}")).unwrap();
            assert_eq!(config.ssl_mode, mode, "{query}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            "postgres://",
            "postgres://h:port",
            "postgres://:1",
            "postgres://[::1",
            "postgres://h?nonsense=1",
            "postgres://h?ttl=soon",
            "postgres://h?ttl=0s",
            "postgres://h?sslmode=maybe",
            "postgres://h?application_name=a%00options%00-cfsync=off",
            "postgres://a%00options%00b@h/",
            "postgres://u:p%00@h/",
            "postgres://h/d%00options",
            "postgres://h/shop/more",
            "postgres://h/shop/",
            "postgres://h?sslcert=a",
            "postgres://h?sslrootcert=a&sslmode=prefer",
        ] {
            assert_eq!(parse(bad).unwrap_err().kind(), ErrorKind::Config, "{bad}");
        }
    }
}
