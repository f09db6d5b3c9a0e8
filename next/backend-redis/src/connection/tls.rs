//! TLS with full verification. There is no way from here to a plain connection.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tenure_core::{Error, ErrorKind, Result, TlsFiles};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::stream::Counted;
use crate::config::{Address, refuse};
use crate::error::unavailable;

/// Establishes TLS over `stream`. The files are read for each connection: certificates are replaced while programs run.
pub(super) async fn secure(files: &TlsFiles, address: &Address, stream: Counted) -> Result<TlsStream<Counted>> {
    let name = files.server_name.as_ref().unwrap_or(&address.host);
    let name = ServerName::try_from(name.clone())
        .map_err(|_| refuse(format!("`{name}` cannot be a name in a certificate: set `server_name`")))?;
    let config = Arc::new(settings(files).await?);
    let connecting = TlsConnector::from(config).connect(name, stream);
    connecting.await.map_err(|error| handshake_failed(address, error))
}

async fn settings(files: &TlsFiles) -> Result<ClientConfig> {
    // Named here, so that the process-wide provider does not matter.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| refuse("rustls cannot be set up").with_source(error))?
        .with_root_certificates(roots(files).await?);
    let Some((certificate, key)) = &files.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(certificate).await?;
    let secret = PrivateKeyDer::from_pem_slice(&read(key).await?)
        .map_err(|error| bad_file(key, "a private key").with_source(error))?;
    builder.with_client_auth_cert(chain, secret).map_err(|error| {
        let (key, certificate) = (key.display(), certificate.display());
        refuse(format!(
            "the key in `{key}` does not belong to the certificate in `{certificate}`"
        ))
        .with_source(error)
    })
}

async fn roots(files: &TlsFiles) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    match &files.ca {
        Some(path) => {
            for certificate in certificates(path).await? {
                let added = store.add(certificate);
                added.map_err(|error| bad_file(path, "certificates").with_source(error))?;
            }
        }
        None => {
            let loading = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs);
            let loaded = loading
                .await
                .map_err(|error| refuse("the system's certificates cannot be read: set `ca`").with_source(error))?;
            // Some systems have a few unreadable ones. The rest is enough.
            store.add_parsable_certificates(loaded.certs);
        }
    }
    Ok(store)
}

async fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read(path).await?;
    let certificates: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(bad_file(path, "certificates")),
        Err(error) => Err(bad_file(path, "certificates").with_source(error)),
    }
}

async fn read(path: &Path) -> Result<Vec<u8>> {
    tokio::fs::read(path)
        .await
        .map_err(|error| refuse(format!("`{}` cannot be read", path.display())).with_source(error))
}

fn bad_file(path: &Path, missing: &str) -> Error {
    refuse(format!("`{}` has no {missing} in PEM form", path.display()))
}

fn handshake_failed(address: &Address, error: io::Error) -> Error {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(_)) => Error::new(
            ErrorKind::Unauthorized,
            format!(
                "the certificate of {address} is refused: set `ca` for the authority, and `server_name` if the host is not its name"
            ),
        ),
        Some(rustls::Error::AlertReceived(_)) => client_refused(address),
        _ => unavailable(format!("no TLS connection to {address}: does that port speak TLS?")),
    }
    .with_source(error)
}

/// Returns the error of a server that does not accept the client's certificate: it says so, or closes the connection.
pub(super) fn client_refused(address: &Address) -> Error {
    Error::new(
        ErrorKind::Unauthorized,
        format!("{address} wants another certificate of this client: set `cert` and `key`"),
    )
}
