//! Throw-away certificates, good and bad, as PEM files in a temporary folder.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Doing, Error, Result};
use crate::reaper::Reaper;
use crate::tls::{Identity, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, date_time_ymd,
};

/// A certificate authority with everything it signed, and what it should not be mistaken for.
///
/// The files go when this is dropped, and when this process ends in any way.
#[derive(Debug)]
pub struct Certs {
    folder: Reaper,
    /// The authority that signed the good ones.
    pub ca: PathBuf,
    /// An authority that signed nothing here but [`foreign_client`](Self::foreign_client).
    pub other_ca: PathBuf,
    /// For a server on `127.0.0.1` and `localhost`.
    pub server: Identity,
    /// For a server of another name: `elsewhere.invalid`.
    pub wrong_host: Identity,
    /// For a client with the common name `tenure-client`.
    pub client: Identity,
    /// The same, expired in the year 2001.
    pub expired_client: Identity,
    /// The same, signed by [`other_ca`](Self::other_ca).
    pub foreign_client: Identity,
}

type Authority = CertifiedIssuer<'static, KeyPair>;

impl Certs {
    /// Makes them all; takes a few milliseconds.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the folder cannot be written, or the certificates cannot be made.
    pub fn generate() -> Result<Self> {
        let folder = Reaper::with_folder("certs")?;
        let (ca, other) = (
            authority("tenure test authority")?,
            authority("another authority")?,
        );
        let at = folder.folder();
        let server = |name, hosts: &[&str]| {
            let mut params = params(name, hosts)?;
            params.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ];
            Ok::<_, Error>(params)
        };
        let client = || {
            let mut params = params("tenure-client", &[])?;
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            Ok::<_, Error>(params)
        };
        let mut expired = client()?;
        expired.not_before = date_time_ymd(2000, 1, 1);
        expired.not_after = date_time_ymd(2001, 1, 1);
        Ok(Self {
            ca: write(at, "ca.pem", &ca.pem())?,
            other_ca: write(at, "other-ca.pem", &other.pem())?,
            server: sign(
                at,
                "server",
                server("tenure-server", &["127.0.0.1", "localhost"])?,
                &ca,
            )?,
            wrong_host: sign(
                at,
                "wrong-host",
                server("elsewhere", &["elsewhere.invalid"])?,
                &ca,
            )?,
            client: sign(at, "client", client()?, &ca)?,
            expired_client: sign(at, "expired-client", expired, &ca)?,
            foreign_client: sign(at, "foreign-client", client()?, &other)?,
            folder,
        })
    }

    /// A server with the good certificate, which demands none of its clients.
    pub fn tls(&self) -> Tls {
        Tls::new(&self.ca, self.server.clone())
    }

    /// A server with the good certificate, which demands one of its clients.
    pub fn mutual_tls(&self) -> Tls {
        self.tls().require_client(&self.ca, self.client.clone())
    }

    /// The folder with the files.
    pub fn folder(&self) -> &Path {
        self.folder.folder()
    }
}

fn params(name: &str, hosts: &[&str]) -> Result<CertificateParams> {
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    let mut params = CertificateParams::new(hosts).map_err(made)?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

fn authority(name: &str) -> Result<Authority> {
    let mut params = params(name, &[])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().map_err(made)?).map_err(made)
}

fn sign(folder: &Path, name: &str, params: CertificateParams, by: &Authority) -> Result<Identity> {
    let key = KeyPair::generate().map_err(made)?;
    let cert = params.signed_by(&key, by).map_err(made)?;
    Ok(Identity {
        cert: write(folder, &format!("{name}.pem"), &cert.pem())?,
        key: write(folder, &format!("{name}-key.pem"), &key.serialize_pem())?,
    })
}

fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, text).doing("write a certificate")?;
    Ok(path)
}

fn made(error: rcgen::Error) -> Error {
    Error::Io {
        doing: "make a certificate".to_owned(),
        source: std::io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EtcdServer;

    #[test]
    fn a_server_accepts_the_good_client_only() {
        let certs = Certs::generate().unwrap();
        let server = EtcdServer::builder()
            .tls(certs.mutual_tls())
            .start()
            .unwrap();
        assert!(server.run_etcdctl(&["get", "x"]).is_ok());
        let attempt = |identity: &Identity| {
            let endpoint = server.endpoint();
            let mut command = std::process::Command::new("etcdctl");
            command.env("ETCDCTL_API", "3").args([
                "--endpoints",
                &endpoint,
                "--dial-timeout=1s",
                "--command-timeout=1s",
            ]);
            command
                .arg("--cacert")
                .arg(&certs.ca)
                .arg("--cert")
                .arg(&identity.cert)
                .arg("--key")
                .arg(&identity.key);
            command
                .args(["get", "x"])
                .output()
                .unwrap()
                .status
                .success()
        };
        assert!(attempt(&certs.client));
        assert!(!attempt(&certs.expired_client));
        assert!(!attempt(&certs.foreign_client));
    }
}
