//! The server's TLS: certificate, key and authority of client certificates.

use std::sync::Arc;

use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
};

use crate::{
    error::{Error, Result},
    pem::{self, PemFile},
    service::Tls,
};

/// Protocols that clients may choose by ALPN.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Configuration of TLS connections.
///
/// # Errors
/// [`Kind::InvalidArgument`](crate::error::Kind) naming the file that can't be used; its cause names the problem.
pub(super) fn server_config(files: &Tls) -> Result<Arc<ServerConfig>> {
    let certificate = PemFile::read("tls_cert", &files.certificate)?;
    let key = PemFile::read("tls_key", &files.key)?;
    let identity = pem::identity(&certificate, &key)?;
    let provider = pem::provider();
    let clients: Arc<dyn ClientCertVerifier> = match &files.client_ca {
        None => Arc::new(NoClientAuth),
        Some(path) => {
            let unusable = |problem| {
                let expected = "a PEM file with certificates of authorities";
                Error::invalid("client_ca", path.display(), expected).with_source(problem)
            };
            let mut roots = RootCertStore::empty();
            for certificate in PemFile::read("client_ca", path)?.certificates()? {
                roots.add(certificate).map_err(|e| unusable(e.to_string()))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
            verifier.build().map_err(|e| unusable(e.to_string()))?
        }
    };
    let config =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|e| Error::internal("choosing versions of TLS").with_source(e))?;
    let mut config = config
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    Ok(Arc::new(config))
}
