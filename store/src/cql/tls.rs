//! TLS to a CQL server: whom we trust there, and who we are. The nodes' certificates must lead to a known authority and
//! name the IP address by which a node is reached: the driver learns the nodes' addresses from one another, not their names.

use std::path::{Path, PathBuf};

use openssl::error::ErrorStack;
use openssl::ssl::{SslConnector, SslFiletype, SslMethod};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;
use scylla::client::session::OpenSsl010Config;

use crate::DatabaseError;

/// TLS to the nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// The authorities that are trusted, as PEM; `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// Our certificate, with those between it and the authority, and its private key, as PEM; for nodes that ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    /// What the driver connects with.
    pub(super) fn context(&self) -> Result<OpenSsl010Config, DatabaseError> {
        let bad = |error: ErrorStack| DatabaseError::Untrusted(error.to_string());
        let mut connector = SslConnector::builder(SslMethod::tls_client()).map_err(bad)?;
        if let Some(ca) = &self.ca {
            let mut trusted = X509StoreBuilder::new().map_err(bad)?;
            for certificate in authorities(ca)? {
                trusted.add_cert(certificate).map_err(bad)?;
            }
            connector.set_cert_store(trusted.build());
        }
        if let Some((certificate, key)) = &self.identity {
            let named = |path: &Path| {
                let path = path.display().to_string();
                move |error: ErrorStack| DatabaseError::Untrusted(format!("{path}: {error}"))
            };
            connector.set_certificate_chain_file(certificate).map_err(named(certificate))?;
            connector.set_private_key_file(key, SslFiletype::PEM).map_err(named(key))?;
            connector.check_private_key().map_err(named(key))?;
        }
        Ok(OpenSsl010Config::new(connector))
    }
}

fn authorities(path: &Path) -> Result<Vec<X509>, DatabaseError> {
    let bad = |problem: String| DatabaseError::Untrusted(format!("{}: {problem}", path.display()));
    let pem = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
    X509::stack_from_pem(&pem).map_err(|error| bad(error.to_string()))
}
