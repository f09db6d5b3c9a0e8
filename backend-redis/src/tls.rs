//! TLS, checked in full or not at all: there is no way from here to a plain connection.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tenure_core::backend::TlsFiles;
use tenure_core::{Error, ErrorKind, Result};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::{Address, refuse};
use crate::error::no_connection;

/// Speaks TLS over `stream`. The files are read anew for each connection: certificates are
/// replaced while programs run.
pub(crate) async fn secure(
    files: &TlsFiles,
    address: &Address,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>> {
    let name = files.server_name.as_ref().unwrap_or(&address.host);
    let name = ServerName::try_from(name.clone())
        .map_err(|_| refuse(format!("`{name}` can be no name in a certificate")))?;
    let config = Arc::new(settings(files).await?);
    TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|error| handshake_failed(address, error))
}

async fn settings(files: &TlsFiles) -> Result<ClientConfig> {
    // Named here, so that it does not matter whether and what the process has installed.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| refuse("rustls cannot be set up").with_source(error))?
        .with_root_certificates(roots(files).await?);
    let Some((cert, key)) = &files.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(cert).await?;
    let secret = PrivateKeyDer::from_pem_slice(&read(key).await?)
        .map_err(|error| bad_file(key, "a private key").with_source(error))?;
    builder
        .with_client_auth_cert(chain, secret)
        .map_err(|error| {
            refuse(format!(
                "the key in `{}` is not that of the certificate in `{}`",
                key.display(),
                cert.display()
            ))
            .with_source(error)
        })
}

async fn roots(files: &TlsFiles) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    match &files.ca {
        Some(path) => {
            for certificate in certificates(path).await? {
                store
                    .add(certificate)
                    .map_err(|error| bad_file(path, "certificates").with_source(error))?;
            }
        }
        None => {
            let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs)
                .await
                .map_err(|error| {
                    refuse("the system's certificates cannot be read").with_source(error)
                })?;
            // Some systems have a few that nobody can read. The rest will do.
            store.add_parsable_certificates(loaded.certs);
        }
    }
    Ok(store)
}

async fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&read(path).await?)
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| bad_file(path, "certificates").with_source(error))?;
    match certificates.is_empty() {
        true => Err(bad_file(path, "certificates")),
        false => Ok(certificates),
    }
}

async fn read(path: &Path) -> Result<Vec<u8>> {
    tokio::fs::read(path)
        .await
        .map_err(|error| refuse(format!("`{}` cannot be read", path.display())).with_source(error))
}

fn bad_file(path: &Path, what: &str) -> Error {
    refuse(format!("`{}` has no {what} in PEM form", path.display()))
}

fn handshake_failed(address: &Address, error: io::Error) -> Error {
    let refused = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match refused {
        Some(rustls::Error::InvalidCertificate(_)) => Error::new(
            ErrorKind::Unauthorized,
            format!(
                "the certificate of {address} is refused (authority: `ca`; name: the host, or `server_name`)"
            ),
        ),
        Some(rustls::Error::AlertReceived(_)) => client_refused(address),
        _ => no_connection(format!(
            "no TLS connection to {address}; does that port speak TLS?"
        )),
    }
    .with_source(error)
}

/// What a server does to a client whose certificate it does not like: it says so, or hangs up.
pub(crate) fn client_refused(address: &Address) -> Error {
    Error::new(
        ErrorKind::Unauthorized,
        format!("{address} wants another certificate of this client: see `cert` and `key`"),
    )
}
