//! Certificates, good and bad, as PEM files in a temporary folder.

use std::fs;
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};

use crate::error::{Action, Error, Result};
use crate::folder::Folder;

/// A certificate and its private key, both PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// The files that a server needs to serve TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The authority that signed the server's certificate.
    pub ca: PathBuf,
    /// The certificate that the server presents.
    pub server: Identity,
    /// The authority of the certificates that clients have to present; none is demanded without it.
    pub client_ca: Option<PathBuf>,
}

/// An authority with all certificates that it signed, and those that must be refused. Dropped, the files are removed.
#[derive(Debug)]
pub struct Certs {
    /// The authority that signed the good ones.
    pub ca: PathBuf,
    /// Another authority, which signed [`foreign_client`](Self::foreign_client) only.
    pub other_ca: PathBuf,
    /// For a server on `127.0.0.1` and `localhost`.
    pub server: Identity,
    /// For a server of another name, `elsewhere.invalid`.
    pub wrong_host: Identity,
    /// For a client with the common name `tenure-client`.
    pub client: Identity,
    /// The same, expired in 2001.
    pub expired_client: Identity,
    /// The same, signed by [`other_ca`](Self::other_ca).
    pub foreign_client: Identity,
    _folder: Folder,
}

type Authority = CertifiedIssuer<'static, KeyPair>;

impl Certs {
    /// Generates them all: a few milliseconds.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the files cannot be written.
    pub fn generate() -> Result<Self> {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        let folder = Folder::create("certs")?;
        let (ca, other) = (authority("tenure test authority")?, authority("another authority")?);
        // Replicas, sentinels and nodes are clients with the certificate of a server.
        let server = |hosts: &[&str]| params("tenure-server", hosts, vec![ServerAuth, ClientAuth]);
        let client = || params("tenure-client", &[], vec![ClientAuth]);
        let mut expired = client()?;
        (expired.not_before, expired.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1));
        Ok(Self {
            ca: write(&folder, "ca.pem", &ca.pem())?,
            other_ca: write(&folder, "other-ca.pem", &other.pem())?,
            server: sign(&folder, "server", &server(&["127.0.0.1", "localhost"])?, &ca)?,
            wrong_host: sign(&folder, "wrong-host", &server(&["elsewhere.invalid"])?, &ca)?,
            client: sign(&folder, "client", &client()?, &ca)?,
            expired_client: sign(&folder, "expired-client", &expired, &ca)?,
            foreign_client: sign(&folder, "foreign-client", &client()?, &other)?,
            _folder: folder,
        })
    }

    /// A server with the good certificate, which demands none of its clients.
    pub fn tls(&self) -> Tls {
        Tls {
            ca: self.ca.clone(),
            server: self.server.clone(),
            client_ca: None,
        }
    }

    /// A server with the good certificate, which demands one of its clients.
    pub fn mutual_tls(&self) -> Tls {
        Tls {
            client_ca: Some(self.ca.clone()),
            ..self.tls()
        }
    }
}

fn params(name: &str, hosts: &[&str], usages: Vec<ExtendedKeyUsagePurpose>) -> Result<CertificateParams> {
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    let mut params = CertificateParams::new(hosts).map_err(failed)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = usages;
    Ok(params)
}

fn authority(name: &str) -> Result<Authority> {
    let mut params = params(name, &[], Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().map_err(failed)?).map_err(failed)
}

fn sign(folder: &Folder, name: &str, params: &CertificateParams, authority: &Authority) -> Result<Identity> {
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, authority).map_err(failed)?;
    Ok(Identity {
        certificate: write(folder, &format!("{name}.pem"), &certificate.pem())?,
        key: write(folder, &format!("{name}-key.pem"), &key.serialize_pem())?,
    })
}

fn write(folder: &Folder, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, text).action("write a certificate")?;
    Ok(path)
}

fn failed(error: rcgen::Error) -> Error {
    Error::Io {
        action: "generate a certificate".to_owned(),
        source: std::io::Error::other(error),
    }
}
