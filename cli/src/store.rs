//! From the global options to a store and a session.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::File;
use std::io::Read as _;

use tenure::{ConnectOptions, Error, ErrorKind, Name, Namespace, Session, SessionOptions, Store};

use crate::args::{Global, Hold};
use crate::exit::{BAD_CONFIG, Failure, say};

const DEFAULT_URL: &str = "memory:";

/// The variable that names a file with the URL, for URLs with a password.
const URL_FILE: &str = "TENURE_URL_FILE";

impl Global {
    /// The one store that a command works on.
    pub(crate) fn url(&self) -> Result<&str, Failure> {
        match self.url.as_slice() {
            [] => Ok(DEFAULT_URL),
            [url] => utf8_url(url),
            _ => Err(Failure::usage("this command takes one --url")),
        }
    }

    /// Every store that was named, in order; none if none was.
    pub(crate) fn urls(&self) -> Result<Vec<&str>, Failure> {
        self.url.iter().map(|url| utf8_url(url)).collect()
    }

    /// What overrides the URLs.
    pub(crate) fn connect_options(&self) -> Result<ConnectOptions, Failure> {
        let options = ConnectOptions::new();
        match &self.namespace {
            None => Ok(options),
            Some(text) => {
                let namespace = Namespace::new(utf8("namespace", text)?)?;
                Ok(options.namespace(namespace))
            }
        }
    }

    /// Connects to the one store that a command works on.
    pub(crate) async fn connect(&self) -> Result<Store, Failure> {
        let store = tenure::connect_with(self.url()?, self.connect_options()?).await?;
        Ok(store)
    }

    /// Opens a session there. The outer failure is one of the command line, the inner one of the store.
    pub(crate) async fn open(&self) -> Result<Result<Session, Error>, Failure> {
        let mut options = SessionOptions::new();
        if let Some(ttl) = self.ttl {
            options = options.ttl(ttl);
        }
        let connecting = tenure::connect_with(self.url()?, self.connect_options()?);
        Ok(match connecting.await {
            Ok(store) => store.open(options).await,
            Err(error) => Err(error),
        })
    }

    /// What a command that is run finds of the URL in its environment: a URL may hold a password, so nothing
    /// unless that is asked for.
    pub(crate) fn url_for_child(&self, hold: &Hold) -> Vec<(&'static str, Option<OsString>)> {
        match (hold.pass_url, self.url.as_slice()) {
            (false, _) => vec![("TENURE_URL", None), (URL_FILE, None)],
            (true, [url]) if !self.from_file => vec![("TENURE_URL", Some(url.clone()))],
            (true, _) => Vec::new(),
        }
    }

    /// Without a URL, takes that of the file which the environment names.
    pub(crate) fn read_url_file(&mut self) -> Result<(), Failure> {
        let Some(path) = std::env::var_os(URL_FILE).filter(|_| self.url.is_empty()) else {
            return Ok(());
        };
        let refused = |why: &dyn Display| {
            let path = path.to_string_lossy();
            Failure::new(BAD_CONFIG, format!("{URL_FILE} names {path:?}: {why}"))
        };
        let mut text = String::new();
        // No URL is longer; it may be a device.
        let read =
            File::open(&path).and_then(|file| file.take(64 * 1024).read_to_string(&mut text));
        read.map_err(|error| refused(&error))?;
        match text.trim() {
            "" => Err(refused(
                &"the file is empty: it has to hold the URL of a store",
            )),
            url if url.contains('\n') => Err(refused(&"the file has more than one line")),
            url => {
                self.url.push(url.into());
                self.from_file = true;
                Ok(())
            }
        }
    }

    /// Says so when nobody else can see what a command does. A hint, no error: it is how one tries a
    /// command.
    pub(crate) fn hint_if_private(&self) {
        let scheme = self.url().ok().and_then(|url| url.split_once(':'));
        if scheme.is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("memory")) {
            say(
                "hint: `memory:` is private to this process, so nobody else sees what is done here; \
                 name a store with --url, TENURE_URL or TENURE_URL_FILE",
            );
        }
    }
}

/// Checks a name before anything is sent.
pub(crate) fn name(text: &OsStr) -> Result<Name, Failure> {
    Ok(Name::new(utf8("name", text)?)?)
}

fn utf8<'a>(what: &str, text: &'a OsStr) -> Result<&'a str, Failure> {
    let refused = || Error::new(ErrorKind::InvalidName, format!("the {what} is not UTF-8"));
    text.to_str().ok_or_else(|| refused().into())
}

fn utf8_url(url: &OsStr) -> Result<&str, Failure> {
    // A script that exports what it did not find would look for a mistake in a URL that it never wrote.
    if url.is_empty() && std::env::var_os("TENURE_URL").is_some_and(|url| url.is_empty()) {
        return Err(Failure::new(
            BAD_CONFIG,
            "TENURE_URL is empty: give it the URL of a store, or unset it",
        ));
    }
    url.to_str()
        .ok_or_else(|| Failure::new(BAD_CONFIG, "the URL is not UTF-8"))
}
