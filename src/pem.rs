//! Certificates and private keys in PEM files, with errors that name the file and the problem.

use std::{fmt, path::Path, sync::Arc};

use tokio_rustls::rustls::{
    self, InconsistentKeys,
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{Error as PemError, PemObject as _, SectionKind},
    },
    server::ParsedCertificate,
    sign::CertifiedKey,
};

use crate::error::{Error, Expected, Result};

/// Longest file in bytes.
const MAX_LENGTH: u64 = 1 << 20;

/// The cryptography of all TLS connections.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A PEM file that an argument names.
#[derive(Clone)]
pub struct PemFile<'a> {
    /// Name of the argument.
    field: &'static str,
    path: &'a Path,
    bytes: Vec<u8>,
}

impl fmt::Debug for PemFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The content may be secret.
        f.debug_struct("PemFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Content of a PEM file.
struct Content {
    certificates: Vec<CertificateDer<'static>>,
    key: Option<PrivateKeyDer<'static>>,
    is_encrypted: bool,
}

impl<'a> PemFile<'a> {
    /// Reads the file at `path`, the value of the argument `field`.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind) if it can't be read or has more than 1 MiB.
    pub fn read(field: &'static str, path: &'a Path) -> Result<Self> {
        let failed = |e| {
            let error = Error::invalid(field, path.display(), "a readable PEM file");
            error.with_source(Error::io("read", path, e))
        };
        let length = std::fs::metadata(path).map_err(failed)?.len();
        if length > MAX_LENGTH {
            let value = format!("{}, {length} bytes long", path.display());
            let limit = Expected::at_most(format!("{MAX_LENGTH} bytes"));
            return Err(Error::invalid(field, value, limit));
        }
        Ok(Self { field, path, bytes: std::fs::read(path).map_err(failed)? })
    }

    /// Its content, as it was read.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The certificates, at least one.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind); its cause names the problem.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>> {
        let expected = "a PEM file with certificates";
        let content = self.content(expected)?;
        if content.certificates.is_empty() {
            let problem = match content.key.is_some() || content.is_encrypted {
                true => "it has a private key and no certificate; the two files may be swapped"
                    .to_owned(),
                false => "it has no certificate".to_owned(),
            };
            return Err(self.invalid(expected, problem));
        }
        for (i, certificate) in content.certificates.iter().enumerate() {
            if let Err(e) = ParsedCertificate::try_from(certificate) {
                let problem = format!("its certificate number {} is damaged: {e}", i + 1);
                return Err(self.invalid(expected, problem));
            }
        }
        Ok(content.certificates)
    }

    /// The private key.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind); its cause names the problem.
    pub fn private_key(&self) -> Result<PrivateKeyDer<'static>> {
        let expected = "a PEM file with an unencrypted private key";
        let content = self.content(expected)?;
        let problem = match (content.key, content.is_encrypted) {
            (Some(key), _) => return Ok(key),
            (None, true) => {
                "its key is encrypted; openssl pkey -in FILE -out NEW writes it without a passphrase"
            }
            (None, false) if !content.certificates.is_empty() => {
                "it has a certificate and no private key; the two files may be swapped"
            }
            (None, false) => "it has no private key",
        };
        Err(self.invalid(expected, problem.to_owned()))
    }

    fn invalid(&self, expected: &'static str, problem: String) -> Error {
        Error::invalid(self.field, self.path.display(), expected).with_source(problem)
    }

    fn content(&self, expected: &'static str) -> Result<Content> {
        let bytes = &self.bytes;
        let has = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        // PKCS #8, and the format of OpenSSL before it, whose headers the parser of PEM does not know.
        let is_encrypted =
            has("-----BEGIN ENCRYPTED PRIVATE KEY-----") || has("Proc-Type: 4,ENCRYPTED");
        let mut content = Content { certificates: Vec::new(), key: None, is_encrypted };
        if bytes.trim_ascii().is_empty() {
            return Err(self.invalid(expected, "it is empty".to_owned()));
        }
        if !has("-----BEGIN ") {
            // A sequence of ASN.1 in more than 127 bytes.
            let problem = match bytes.starts_with(&[0x30, 0x82]) {
                true => {
                    "it is DER, not PEM; openssl x509 or openssl pkey with -inform DER converts it"
                }
                false => "it is not PEM: no line begins with -----BEGIN",
            };
            return Err(self.invalid(expected, problem.to_owned()));
        }
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes) {
            match section {
                Ok((SectionKind::Certificate, der)) => content.certificates.push(der.into()),
                Ok((kind, der)) => {
                    content.key = content.key.or_else(|| PrivateKeyDer::from_pem(kind, der));
                }
                Err(_) if is_encrypted => {}
                Err(e) => return Err(self.invalid(expected, pem_problem(&e))),
            }
        }
        Ok(content)
    }
}

/// Description of damaged PEM.
fn pem_problem(error: &PemError) -> String {
    match error {
        PemError::MissingSectionEnd { .. } => {
            "a section of it has no END line; the file may be cut short".to_owned()
        }
        PemError::IllegalSectionStart { .. } => "a BEGIN line of it is malformed".to_owned(),
        PemError::Base64Decode(_) => "a section of it is not Base64".to_owned(),
        other => other.to_string(),
    }
}

/// The certificate chain and its private key, checked to belong together.
///
/// # Errors
/// [`Kind::InvalidArgument`](crate::error::Kind) naming the file that is unusable; its cause names the problem.
pub fn identity(certificate: &PemFile<'_>, key: &PemFile<'_>) -> Result<CertifiedKey> {
    let chain = certificate.certificates()?;
    let der = key.private_key()?;
    let expected = "a PEM file with the certificate's private key";
    let signing = provider().key_provider.load_private_key(der);
    let signing = signing.map_err(|e| {
        key.invalid(expected, format!("its key is damaged or of an unsupported type: {e}"))
    })?;
    let of = |certificates: &[CertificateDer<'static>]| {
        CertifiedKey::new(certificates.to_vec(), signing.clone())
    };
    let is_mismatch = |certified: &CertifiedKey| {
        let mismatch = rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch);
        certified.keys_match().is_err_and(|error| error == mismatch)
    };
    let certified = of(&chain);
    if !is_mismatch(&certified) {
        return Ok(certified);
    }
    let name = certificate.path.display();
    match (1..chain.len()).find(|&i| !is_mismatch(&of(&chain[i..]))) {
        Some(i) => {
            let problem = format!(
                "the key in {} belongs to its certificate number {}, which must be the first one",
                key.path.display(),
                i + 1
            );
            Err(certificate.invalid("a PEM file with the own certificate first", problem))
        }
        None => {
            Err(key
                .invalid(expected, format!("its key does not belong to the certificate in {name}")))
        }
    }
}
